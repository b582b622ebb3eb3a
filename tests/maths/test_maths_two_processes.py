"""Every distributed form equals the plain one; all of them in one pair of processes."""

import pytest
import torch
from two_processes import run

from engine.errors import Degenerate
from engine.maths.hierarchy import hierarchy
from engine.maths.kmeans import kmeans
from engine.maths.pca import pca
from engine.maths.sela import sela_labels
from engine.maths.sinkhorn import sinkhorn
from golden import load


def on_rank(rank, inputs):
    out = {}
    for name, (halves, epsilon, iterations) in inputs["sinkhorn"].items():
        out[name] = sinkhorn(halves[rank], epsilon, iterations).numpy()
    for name, (halves, start, options) in inputs["kmeans"].items():
        found = kmeans(halves[rank], start, **options)
        out[name] = [found.labels.numpy(), found.centroids.numpy(), found.sizes.numpy(), found.objective]
    for relaxation in (1.0, 1.6):
        found = sela_labels(inputs["logits"][rank], relaxation=relaxation)
        out[f"sela {relaxation}"] = [found.labels.numpy(), found.sizes.numpy(), found.iterations, found.cost]
    empty = inputs["x"][:0] if rank == 0 else inputs["x"]
    out["empty"] = [
        kmeans(empty, 5).labels.numpy(),
        pca(empty, 2).mean.numpy(),
        hierarchy(empty, 2, 8).subs.numpy(),
        sela_labels(torch.cat(inputs["logits"]) if rank else inputs["logits"][0][:0]).labels.numpy(),
        sinkhorn(empty).numpy(),
    ]
    found = hierarchy(inputs["halves"][rank], 2, 8, iterations=3)
    out["hierarchy"] = [found.supers.numpy(), found.subs.numpy()]
    found = pca(inputs["halves"][rank], 2)
    out["pca"] = [found.mean.numpy(), found.projection.numpy()]
    out["bad rows of the other rank"] = refused(inputs, rank)
    return out


def refused(inputs, rank):
    """What each rank is told when only rank 1 holds a NaN: the same on both, so that none waits for the other."""
    logits, x = inputs["logits"][rank].clone(), inputs["halves"][rank].clone()
    if rank == 1:
        logits[0, 0] = x[0, 0] = float("nan")
    told = []
    for function in (
        lambda: sinkhorn(logits),
        lambda: sela_labels(logits),
        lambda: kmeans(x, 3),
        lambda: pca(x, 2),
        lambda: hierarchy(x, 2, 8),
    ):
        try:
            told.append(repr(function()))
        except Degenerate as error:
            told.append(str(error))
    return told


@pytest.fixture(scope="module")
def world2():
    g = load("swav/sinkhorn_world2.npz")
    assert g.given("scores").shape == tuple(g.meta[key] for key in ("world_size", "B_per_rank", "K"))
    uneven = torch.rand(30, 11, generator=torch.manual_seed(5))
    inputs = {
        "sinkhorn": {
            "golden": (torch.from_numpy(g.given("scores")), g.meta["epsilon"], g.meta["iterations"]),
            "uneven": ([uneven[:8], uneven[8:]], 0.05, 3),
        },
        "kmeans": {},
    }
    g = load("swav/deepclusterv2_kmeans_world2.npz")
    banks = torch.from_numpy(g.given("emb"))
    assert (banks.shape[0], *banks.shape[2:]) == tuple(g.meta[key] for key in ("world_size", "N_per_rank", "D"))
    for head in range(len(g.meta["K"])):
        halves = banks[:, head % 2]
        start = halves[0][g.given(f"init_idx_{head}")]
        inputs["kmeans"][f"golden {head}"] = (halves, start, {"iterations": g.meta["iters"], "spherical": True})
    x = torch.randn(200, 3, generator=torch.manual_seed(1))
    inputs["x"], inputs["halves"] = x, [x[:70], x[70:]]
    far = torch.cat([x[:4], torch.full((3, 3), 1e3)])
    z = torch.randn(200, 9, generator=torch.manual_seed(2)) * 2
    inputs["logits"] = [z[:33], z[33:]]
    inputs["kmeans"]["split"] = ([x[:70], x[70:]], far, {"empty": "split", "iterations": 3})
    inputs["kmeans"]["split at the end"] = ([x[:70], x[70:]], far, {"empty": "split", "iterations": 0})
    inputs["kmeans"]["faiss"] = ([x[:70], x[70:]], 6, {"empty": "split", "iterations": 5, "backend": "faiss"})
    inputs["kmeans"]["drawn"] = ([x[:70], x[70:]], 6, {"init": "kmeans++", "iterations": 5, "restarts": 2})
    return inputs, run(on_rank, inputs)


def test_sinkhorn_over_two_processes_agrees_with_the_authors(world2):
    g = load("swav/sinkhorn_world2.npz")
    for rank, answer in enumerate(world2[1]):
        g.agree("q", answer["golden"], part=rank)


def test_sinkhorn_of_uneven_ranks_equals_one_process(world2):
    halves, epsilon, iterations = world2[0]["sinkhorn"]["uneven"]
    both = torch.cat([torch.from_numpy(answer["uneven"]) for answer in world2[1]])
    assert torch.allclose(both, sinkhorn(torch.cat(list(halves)), epsilon, iterations), atol=1e-6)


def test_deepclusterv2_kmeans_over_two_processes_agrees_with_the_authors(world2):
    g = load("swav/deepclusterv2_kmeans_world2.npz")
    index = torch.from_numpy(g.given("index"))
    for rank, answer in enumerate(world2[1]):
        labels = torch.full((len(g.meta["K"]), g.meta["size_dataset"]), -100)
        for head in range(len(g.meta["K"])):
            for r in range(2):
                labels[head, index[r]] = torch.from_numpy(world2[1][r][f"golden {head}"][0])
            g.agree(f"centroids_h{head}", answer[f"golden {head}"][1])
        g.exact(f"assign_rank{rank}", labels)


@pytest.mark.parametrize("name", ["split", "split at the end", "drawn", "faiss"])
def test_kmeans_over_two_processes_equals_one(world2, name):
    _, start, options = world2[0]["kmeans"][name]
    one = kmeans(world2[0]["x"], start, **options)
    labels = torch.cat([torch.from_numpy(answer[name][0]) for answer in world2[1]])
    assert torch.equal(labels, one.labels) and one.empty == 0
    for answer in world2[1]:
        assert torch.allclose(torch.from_numpy(answer[name][1]), one.centroids, atol=1e-6)
        assert torch.equal(torch.from_numpy(answer[name][2]), one.sizes)
        assert answer[name][3] == pytest.approx(one.objective, rel=1e-6)


def test_pca_over_two_processes_equals_one(world2):
    one = pca(world2[0]["x"], 2)
    for answer in world2[1]:
        assert torch.allclose(torch.from_numpy(answer["pca"][0]), one.mean, atol=1e-6)
        assert torch.allclose(torch.from_numpy(answer["pca"][1]).abs(), one.projection.abs(), atol=1e-5)


@pytest.mark.parametrize("relaxation", [1.0, 1.6])
def test_sela_over_two_processes_equals_one(world2, relaxation):
    one = sela_labels(torch.cat(world2[0]["logits"]), relaxation=relaxation)
    answers = [answer[f"sela {relaxation}"] for answer in world2[1]]
    assert torch.equal(torch.cat([torch.from_numpy(a[0]) for a in answers]), one.labels)
    for _, sizes, iterations, cost in answers:
        assert sizes.tolist() == one.sizes.tolist() and iterations == one.iterations
        assert cost == pytest.approx(one.cost, rel=1e-6)


def test_a_process_without_rows_takes_part_and_changes_nothing(world2):
    x, logits = world2[0]["x"], torch.cat(world2[0]["logits"])
    one = [kmeans(x, 5).labels, pca(x, 2).mean, hierarchy(x, 2, 8).subs, sela_labels(logits).labels, sinkhorn(x)]
    for i, expected in enumerate(one):
        first, second = (torch.from_numpy(answer["empty"][i]) for answer in world2[1])
        assert torch.allclose(second, expected, atol=1e-6) and len(first) == (3 if i == 1 else 0)


def test_two_levels_over_two_processes_equal_one(world2):
    one = hierarchy(world2[0]["x"], 2, 8, iterations=3)
    for i, expected in enumerate((one.supers, one.subs)):
        assert torch.equal(torch.cat([torch.from_numpy(answer["hierarchy"][i]) for answer in world2[1]]), expected)


def test_rows_that_are_not_finite_on_one_rank_end_every_rank_in_the_same_words(world2):
    first, second = (found["bad rows of the other rank"] for found in world2[1])
    assert first == second and len(first) == 5
    for told, name in zip(first, ("sinkhorn", "sela_labels", "kmeans", "pca", "kmeans"), strict=True):
        assert told.startswith(f"{name}: ") and "not finite" in told
