import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from engine.maths.kmeans import assign, kmeans, split
from engine.maths.rows import Rows
from golden import load


def blobs(n=300, dim=4, groups=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=g) * 10
    true = torch.randint(groups, (n,), generator=g)
    return centres[true] + torch.randn(n, dim, generator=g), true


def plainly(x, centroids, iterations):
    """Lloyd's algorithm as written in a textbook, one cluster at a time, in float64."""
    x, centroids = x.double(), centroids.double().clone()
    for step in range(iterations + 1):
        labels = torch.cdist(x, centroids).argmin(1)
        for k in range(len(centroids)) if step < iterations else ():
            if (labels == k).any():
                centroids[k] = x[labels == k].mean(0)
    return labels, centroids


def test_deepercluster_kmeans_agrees_with_the_authors():
    g = load("deepercluster/kmeans.npz")
    x, start = torch.from_numpy(g.given("X")), torch.from_numpy(g.given("C0"))
    for niter in (0, 1, 10):
        for backend, name in (("torch", "faiss0"), ("faiss", "faiss1")):
            found = kmeans(x, start, iterations=niter, backend=backend)
            g.exact(f"labels_niter{niter}_{name}", found.labels)
            g.agree(f"centroids_niter{niter}_{name}", found.centroids)
    # The original assigns whole batches only; what is left of the data set stays without a label.
    batch = int(g.given("batch_size"))
    whole = 235 // batch * batch
    found = kmeans(x[:whole], start, iterations=2)
    g.exact("R_labels_niter2_n235", torch.cat([found.labels, torch.full((235 - whole,), -1)]))
    g.agree("R_centroids_niter2_n235", found.centroids)


def test_splitting_leaves_no_cluster_empty_as_the_authors_rule_does():
    g = load("deepercluster/kmeans.npz")
    x, start = torch.from_numpy(g.given("X")), torch.from_numpy(g.given("C1"))
    assert kmeans(x, start, iterations=0).empty == 2
    for niter in (1, 4):
        reason = "victims and near-ties are random in the original: only the property counts"
        theirs = g.checked(f"E_labels_niter{niter}", reason)
        their_centroids = torch.from_numpy(g.checked(f"E_centroids_niter{niter}", reason))
        found = kmeans(x, start, iterations=niter, empty="split")
        assert len(np.unique(theirs)) == 10 and found.empty == 0
        assert torch.equal(found.sizes, torch.bincount(found.labels, minlength=10))
        cost = [
            float((x - c[torch.as_tensor(y)]).square().sum())
            for c, y in ((their_centroids, theirs), (found.centroids, found.labels))
        ]
        assert cost[1] < 1.1 * cost[0]


def test_deepclusterv2_kmeans_agrees_with_the_authors():
    g = load("swav/deepclusterv2_kmeans.npz")
    bank, index = torch.from_numpy(g.given("emb")), torch.from_numpy(g.given("index"))
    assert bank.shape == (2, g.meta["N"], g.meta["D"]) and g.meta["torch_seed"]  # which drew init_idx
    for iterations in g.meta["iters"]:
        labels = torch.full((len(g.meta["K"]), g.meta["size_dataset"]), -100)
        for head in range(len(g.meta["K"])):
            rows = bank[head % 2]
            found = kmeans(rows, rows[g.given(f"init_idx_{head}")], iterations=iterations, spherical=True)
            labels[head, index] = found.labels
            g.agree(f"centroids_it{iterations}_h{head}", found.centroids)
        g.exact(f"assign_it{iterations}", labels)
    rows = torch.from_numpy(g.given("empty_emb0"))
    start = rows[g.given("init_idx_0")]
    assert kmeans(rows, start, iterations=0, spherical=True).empty == 1
    found = kmeans(rows, start, iterations=g.meta["empty_iters"], spherical=True)
    labels = torch.full((g.meta["size_dataset"],), -100)
    labels[index] = found.labels
    g.exact("empty_assign", labels)
    g.agree("empty_centroids", found.centroids)


def test_several_restarts_land_where_faiss_does():
    g = load("deepercluster/deepcluster_kmeans_objective.npz")
    x, clusters, iterations = torch.from_numpy(g.given("X")), int(g.given("k")), int(g.given("niter"))
    theirs = g.checked(
        "final_objectives_6_seeds", "start points are random: ours must lie in or below the range, x 1.2"
    )
    for init in ("random", "kmeans++"):
        found = kmeans(x, clusters, iterations=iterations, init=init, restarts=3)
        assert found.objective <= 1.2 * theirs.max()
        assert found.objective == pytest.approx(float((x - found.centroids[found.labels]).square().sum()), rel=1e-5)
        assert list(found.history) == sorted(found.history, reverse=True)


@pytest.mark.parametrize("n, clusters, dim, iterations", [(1, 1, 1, 3), (50, 50, 2, 2), (333, 7, 5, 4)])
def test_equals_the_textbook(n, clusters, dim, iterations):
    x = torch.randn(n, dim, generator=torch.manual_seed(n))
    labels, centroids = plainly(x, x[:clusters], iterations)
    found = kmeans(x, x[:clusters], iterations=iterations)
    assert torch.equal(found.labels, labels)
    assert torch.allclose(found.centroids.double(), centroids, atol=1e-5)
    again, distances = assign(x, found.centroids)
    assert torch.equal(again, labels)
    assert torch.allclose(
        distances.double(), torch.cdist(x.double(), found.centroids.double()).amin(1).square(), atol=1e-5
    )


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("empty", ["keep", "split"])
def test_blocks_and_shards_do_not_change_a_bit(tmp_path, monkeypatch, spherical, empty):
    x, _ = blobs(1000)
    x = F.normalize(x, dim=1) if spherical else x
    start = torch.cat([x[:6], x[:2] if not spherical else -x[:2] * 9])
    whole = kmeans(x, start, spherical=spherical, empty=empty, iterations=5)
    np.save(tmp_path / "x.npy", x[:600].numpy())
    shards = [np.load(tmp_path / "x.npy", mmap_mode="r"), x[600:601].numpy(), x[601:]]
    streamed = kmeans(Rows(shards), start, spherical=spherical, empty=empty, iterations=5)
    assert torch.equal(whole.labels, streamed.labels) and torch.equal(whole.centroids, streamed.centroids)
    monkeypatch.setattr("engine.maths.kmeans.BLOCK_CELLS", 1)
    blocked = kmeans(x, start, spherical=spherical, empty=empty, iterations=5)
    assert torch.equal(whole.labels, blocked.labels)
    assert torch.allclose(whole.centroids, blocked.centroids, atol=1e-6)


def test_an_empty_cluster_keeps_its_centroid_or_takes_half_of_another():
    x, _ = blobs()
    start = torch.cat([x[:3], torch.full((1, 4), 1e4)])
    kept = kmeans(x, start, iterations=3)
    assert kept.empty == 1 and torch.equal(kept.centroids[3], start[3])
    repaired = kmeans(x, start, iterations=3, empty="split")
    assert repaired.empty == 0


def test_split_halves_are_balanced_and_close():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2])
    centroids = torch.arange(18.0).reshape(6, 3) + 1
    sizes = torch.bincount(labels, minlength=6)
    for seed in range(20):
        new, moved, counts = split(labels, centroids, sizes, torch.Generator().manual_seed(seed))
        assert torch.equal(counts, torch.bincount(new, minlength=6)) and (counts > 0).all()
        for cluster in (3, 4, 5):  # those that were empty
            donor = int(labels[new == cluster][0])
            assert (labels[new == cluster] == donor).all()
            assert abs(int(counts[cluster]) - int(counts[donor])) <= 1
            assert 0 < (moved[cluster] - moved[donor]).abs().max() < 1e-2
            assert (moved[donor] - centroids[donor]).abs().max() < 1e-2
        untouched = [k for k in range(3) if counts[k] == sizes[k]]
        assert torch.equal(moved[untouched], centroids[untouched])


def test_as_many_clusters_as_rows_gives_each_its_own():
    x, _ = blobs(20)
    found = kmeans(x, torch.zeros(20, 4), iterations=30, empty="split")
    assert sorted(found.labels.tolist()) == list(range(20))


def test_plusplus_finds_blobs_that_are_far_apart():
    x, true = blobs(600, groups=8, seed=3)
    found = kmeans(x, 8, init="kmeans++")
    pairs = {(int(a), int(b)) for a, b in zip(true, found.labels, strict=True)}
    assert len(pairs) == 8


@pytest.mark.parametrize("spherical", [False, True])
def test_faiss_gives_the_same_labels(spherical):
    x, _ = blobs(500, dim=6)
    x = F.normalize(x, dim=1) if spherical else x
    ours, theirs = (kmeans(x, x[:9], spherical=spherical, backend=b, iterations=4) for b in ("torch", "faiss"))
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-4)


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"start": 9}, "9 clusters of 8 rows"),
        ({"empty": "drop"}, "empty"),
        ({"init": "best"}, "init"),
        ({"iterations": -1}, "iterations"),
    ],
)
def test_a_wrong_argument_is_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        kmeans(torch.randn(8, 2), **{"start": 2, **wrong})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_refused(wrong):
    x = torch.randn(8, 2)
    x[3, 1] = wrong
    for iterations in (0, 3):
        with pytest.raises(ValueError, match="not finite"):
            kmeans(x, x[:2], iterations=iterations)


def test_of_several_restarts_the_best_is_kept():
    x, _ = blobs(200, groups=9, seed=4)
    generator = torch.Generator().manual_seed(7)
    single = [kmeans(x, 9, generator=generator).objective for _ in range(4)]
    assert max(single) > 1.2 * min(single)
    assert kmeans(x, 9, restarts=4, generator=torch.Generator().manual_seed(7)).objective == min(single)


def test_plusplus_draws_by_the_law_of_its_paper():
    """Two of three points: the first uniform, then the better of two candidates drawn in proportion to the squared distance."""
    at = [0.0, 1.0, 3.0]
    expected = dict.fromkeys(((0, 1), (0, 2), (1, 2)), 0.0)
    for first in range(3):
        weights = np.array([(x - at[first]) ** 2 for x in at])
        left = [sum(min((x - at[first]) ** 2, (x - at[c]) ** 2) for x in at) for c in range(3)]
        for one, other in np.ndindex(3, 3):
            chosen = one if left[one] <= left[other] else other
            if chosen != first:
                expected[min(first, chosen), max(first, chosen)] += (
                    weights[one] * weights[other] / weights.sum() ** 2 / 3
                )
    generator, draws, found = torch.Generator().manual_seed(0), 3000, dict.fromkeys(expected, 0)
    x = torch.tensor(at)[:, None]
    for _ in range(draws):
        starts = kmeans(x, 2, init="kmeans++", iterations=0, generator=generator).centroids
        found[tuple(sorted(at.index(v) for v in starts.flatten().tolist()))] += 1
    for pair, p in expected.items():
        assert found[pair] / draws == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / draws)), pair


def collapsed(spread, dim=64, rows=1000, scale=1.0, unit=False):
    """Ten clear clusters whose spread is small beside what all rows share, as nearly collapsed features have it."""
    g = torch.Generator().manual_seed(0)
    true = torch.arange(rows) % 10
    x = 1 + spread * (torch.randn(10, dim, generator=g)[true] + 0.1 * torch.randn(rows, dim, generator=g))
    return (F.normalize(x.double(), dim=1).float() if unit else x) * scale, true


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3, 3e-4, 1e-4])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_clusters_far_from_the_origin_are_found(spherical, spread, backend):
    x, true = collapsed(spread, unit=spherical)
    found = kmeans(x, 10, init="kmeans++", iterations=50, restarts=10, spherical=spherical, backend=backend)
    assert adjusted_rand_score(true, found.labels) > 0.99, "scikit-learn's KMeans finds 1.0 at every spread"
    again, _ = assign(x, found.centroids, spherical=spherical, backend=backend)
    assert (again == found.labels).double().mean() > 0.99


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e8, 1e18])
def test_the_unit_of_the_rows_does_not_matter(scale):
    scale = 2.0 ** round(np.log2(scale))  # exact, so that equal clusters are asked for and not only good ones
    x, _ = collapsed(0.5)
    plain, scaled = (kmeans(rows, 10, init="kmeans++", iterations=20) for rows in (x, x * scale))
    assert torch.equal(plain.labels, scaled.labels) and torch.equal(plain.centroids * scale, scaled.centroids)
    assert scaled.objective == pytest.approx(plain.objective * scale**2)


def test_shards_far_from_the_origin_give_the_labels_of_the_whole():
    x, _ = collapsed(1e-4, rows=3000)
    whole, shards = (kmeans(rows, x[:10], iterations=5) for rows in (x, [x[:1234], x[1234:]]))
    assert torch.equal(whole.labels, shards.labels) and torch.equal(whole.centroids, shards.centroids)
