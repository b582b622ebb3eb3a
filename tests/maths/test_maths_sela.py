import numpy as np
import pytest
import torch

from engine.maths.rows import Rows
from engine.maths.sela import plan, sela_labels
from golden import load

CASES = ("tiny", "mid", "lam10", "peaky", "wide", "lam5")


def logits(n=600, k=12, seed=0, scale=1.0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("case", CASES)
def test_one_head_agrees_with_the_authors(case):
    g = load("sela/sinkhorn_single.npz")
    z, lam = torch.from_numpy(g.given(f"{case}_logits")), float(g.given(f"{case}_lambda"))
    loose = sela_labels(z, lam, dtype=torch.float64)
    g.agree_fraction(f"{case}_labels", loose.labels.int(), 0.99)
    g.exact(f"{case}_iters", loose.iterations)
    g.agree(f"{case}_err", loose.error)
    q = plan(z, loose.log_r, lam, len(z))
    g.agree(f"{case}_Q_rowsum", q.sum(0))
    g.agree(f"{case}_Q_colsum_minmax", torch.stack([q.sum(1).min(), q.sum(1).max()]))
    if case == "tiny":
        g.agree("tiny_Q_KxN", q.T)
    tight = sela_labels(z, lam, tolerance=0.01, dtype=torch.float64)
    g.agree_fraction(f"{case}_tight_labels", tight.labels.int(), 0.99)
    g.exact(f"{case}_tight_iters", tight.iterations)
    g.agree(f"{case}_tight_err", tight.error)
    g.agree(f"{case}_tight_cost", tight.cost)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("relaxation", [1.0, 1.6])
def test_single_precision_and_fewer_iterations_give_the_same_labels(case, relaxation):
    g = load("sela/sinkhorn_single.npz")
    z, lam = torch.from_numpy(g.given(f"{case}_logits")), float(g.given(f"{case}_lambda"))
    found = sela_labels(z, lam, relaxation=relaxation)
    assert found.converged and torch.equal(found.sizes, torch.bincount(found.labels, minlength=z.shape[1]))
    g.agree_fraction(f"{case}_labels", found.labels.int(), 0.99)
    assert found.iterations < int(g.given(f"{case}_iters")) / 2 or relaxation == 1 or case == "lam5"


def test_several_heads_on_stored_features_agree_with_the_authors():
    g = load("sela/sinkhorn_multihead.npz")
    x, order, lam = torch.from_numpy(g.given("features")), g.given("visit_order"), float(g.given("lam"))
    labels, iterations = torch.zeros(int(g.given("nheads")), len(x), dtype=torch.int32), []
    for head in range(len(labels)):
        w, b = (torch.from_numpy(g.given(f"{name}{head}")).double() for name in "Wb")
        found = sela_labels(Rows(x.double(), order, lambda f, w=w, b=b: f.double() @ w.T + b), lam, dtype=torch.float64)
        labels[head, order] = found.labels.int()  # the order in which rows come must not matter
        iterations.append(found.iterations)
    g.agree_fraction("labels", labels, 0.99)
    g.exact("iters", iterations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dead_cluster_gets_its_share_and_nothing_turns_nan(dtype):
    z = logits()
    z[:, 3], z[:, 4] = z[:, 3] - 400, z[:, 4] - 200  # p to the power 25 is below 1e-2000
    found = sela_labels(z, dtype=dtype)
    assert found.converged and torch.isfinite(found.log_r).all()
    assert (found.sizes - 50).abs().max() <= 2


def test_more_clusters_than_images_and_one_cluster_are_labelled_too():
    assert sela_labels(logits(5, 30)).labels.unique().numel() == 5
    one = sela_labels(logits(9, 1))
    assert one.labels.tolist() == [0] * 9 and one.converged and one.cost == 0


def test_memory_can_be_bounded_and_shards_do_not_matter(tmp_path, monkeypatch):
    z = logits(300)
    whole = sela_labels(z)
    np.save(tmp_path / "z.npy", z[:130].numpy())
    shards = [np.load(tmp_path / "z.npy", mmap_mode="r"), z[130:]]
    assert torch.equal(sela_labels(shards).labels, whole.labels)
    monkeypatch.setattr("engine.maths.sela.BLOCK_CELLS", 12 * 37)
    for keep in (True, False):
        again = sela_labels(shards, keep=keep)
        assert torch.equal(again.labels, whole.labels)
        assert again.error == pytest.approx(whole.error, rel=0.05)


def test_an_earlier_solution_shortens_the_next():
    z = logits(scale=2)
    first = sela_labels(z)
    second = sela_labels(z + 0.01 * logits(seed=1), start=first.log_r)
    assert second.iterations < first.iterations and second.converged


def test_it_stops_when_told_and_says_that_it_did_not_converge():
    found = sela_labels(logits(scale=8), max_iterations=5)
    assert found.iterations == 5 and not found.converged


@pytest.mark.parametrize("wrong", [{"lam": 0}, {"tolerance": 0}, {"relaxation": 2}, {"max_iterations": 0}])
def test_a_wrong_argument_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        sela_labels(logits(), **wrong)


def test_logits_that_are_not_finite_are_refused():
    z = logits()
    z[4, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        sela_labels(z)


@pytest.mark.parametrize(("rows", "relaxation"), [(100_000, 1.6), (60_000, 1.0)])
def test_float32_stops_by_the_rule_where_float64_does(rows, relaxation):
    logits = torch.randn(rows, 100, generator=torch.Generator().manual_seed(0)) * 0.2
    single, double = (
        sela_labels(logits, 25.0, relaxation=relaxation, max_iterations=200, dtype=d)
        for d in (torch.float32, torch.float64)
    )
    assert single.converged and double.converged and single.iterations == double.iterations
    assert (single.labels == double.labels).double().mean() >= 0.9999


def test_an_error_within_rounding_that_stops_falling_ends_the_iteration():
    logits = torch.randn(20_000, 50, generator=torch.Generator().manual_seed(0)) * 0.2
    found = sela_labels(logits, 25.0, relaxation=1.6, tolerance=1e-9, max_iterations=1000)
    assert found.converged and found.iterations < 200 and found.error < 20_000 * 1e-6
    short = sela_labels(logits * 20, 25.0, tolerance=1e-9, max_iterations=11)
    assert not short.converged, "far from rounding, a large error is no end"


@pytest.mark.parametrize("keep", [True, False])
def test_float32_needs_the_iterations_of_float64_whether_the_matrix_is_kept_or_not(keep):
    z = torch.randn(20_000, 200, generator=torch.Generator().manual_seed(0)) * 0.5
    single, double = (
        sela_labels(z, 25.0, relaxation=1.6, keep=keep, tolerance=0.02, max_iterations=120, dtype=d)
        for d in (torch.float32, torch.float64)
    )
    assert single.converged and single.iterations == double.iterations
    assert (single.labels == double.labels).double().mean() >= 0.9999
    assert single.cost == pytest.approx(double.cost, rel=1e-6)


def test_a_head_is_asked_once_for_a_kept_matrix():
    read = []

    def head(x):
        read.append(len(x))
        return 2 * x

    found = sela_labels(Rows(logits(), transform=head))
    assert found.converged and sum(read) == 600 + 1, "600 rows once, and one that asks for the width"
