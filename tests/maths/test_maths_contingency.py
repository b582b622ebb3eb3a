import numpy as np
import pytest
import torch
from sklearn import metrics

from engine.maths import contingency as c
from golden import load


def pair(n, classes, clusters, seed, noise=0.4):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    return true, np.where(rng.random(n) < noise, rng.integers(0, clusters, n), true % clusters)


DEGENERATE = {
    "one group on both sides": ([3, 3, 3], [7, 7, 7]),
    "one sample": ([0], [5]),
    "one cluster": ([0, 1, 2, 2], [1, 1, 1, 1]),
    "one class": ([4, 4, 4], [0, 1, 1]),
    "all clusters are singletons": ([0, 0, 1, 1], [0, 1, 2, 3]),
    "both sides are singletons": ([0, 1, 2, 3], [3, 2, 1, 0]),
    "a perfect permutation": ([0, 0, 1, 1, 2, 2], [9, 9, -4, -4, 100000, 100000]),
    "independent": ([0, 0, 1, 1], [0, 1, 0, 1]),
}
CASES = {
    **DEGENERATE,
    "few clusters": pair(900, 12, 5, 0),
    "many clusters": pair(900, 5, 200, 1),
    "more clusters than samples": pair(30, 4, 1000, 2, noise=1.0),
    "unbalanced": (np.repeat([0, 1, 2], [900, 90, 10]), pair(1000, 3, 3, 4, noise=1.0)[1]),
    "wide laws": pair(60000, 3, 2, 5, noise=0.9),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_scikit_learn(name):
    true, predicted = CASES[name]
    table = c.contingency(true, predicted)
    for average in c.AVERAGES:
        expected = metrics.normalized_mutual_info_score(true, predicted, average_method=average)
        assert c.nmi(table, average) == pytest.approx(expected, abs=1e-9)
        expected = metrics.adjusted_mutual_info_score(true, predicted, average_method=average)
        assert c.ami(table, average) == pytest.approx(expected, abs=1e-9)
    assert c.ari(table) == pytest.approx(metrics.adjusted_rand_score(true, predicted), abs=1e-12)


def test_scores_agree_with_the_golden_ones():
    g = load("sela/cluster_scores.npz")
    names = [str(name) for name in g.given("score_names")]
    for case in sorted({name.rsplit("_", 1)[0] for name in g.names if name.endswith("_true")}):
        table = c.contingency(g.given(f"{case}_true"), g.given(f"{case}_pred"))
        clusters, classes = g.given(f"{case}_K_C")
        assert len(table.cluster_sizes) <= clusters and len(table.class_sizes) <= classes
        ours = {
            **{f"nmi_{average}": c.nmi(table, average) for average in c.AVERAGES},
            **{f"ami_{average}": c.ami(table, average) for average in c.AVERAGES},
            "ari": c.ari(table),
            "hungarian_acc": c.matched_accuracy(table)[0],
            "majority_acc": c.purity(table),
        }
        g.agree(f"{case}_scores", [ours[name] for name in names])


def test_sparse_counting_equals_dense(monkeypatch):
    true, predicted = pair(500, 9, 40, 3)
    dense = c.contingency(true, predicted)
    monkeypatch.setattr(c, "DENSE_CELLS", 10)
    sparse = c.contingency(true, predicted)
    assert np.array_equal(dense.dense(), sparse.dense())
    assert np.array_equal(dense.dense(), metrics.cluster.contingency_matrix(true, predicted))


def test_chunks_of_the_expected_information_do_not_matter(monkeypatch):
    table = c.contingency(*pair(900, 30, 50, 6))
    whole = c.ami(table)
    monkeypatch.setattr(c, "CHUNK_TERMS", 7)
    assert c.ami(table) == pytest.approx(whole, abs=1e-14)


def test_hungarian_map_reaches_the_accuracy_it_claims():
    true, predicted = pair(400, 6, 9, 8)
    accuracy, mapping = c.matched_accuracy(c.contingency(true, predicted))
    to_class = {cluster: cls for cls, cluster in mapping}
    assert accuracy == pytest.approx(np.mean([to_class.get(p, -1) == t for t, p in zip(true, predicted, strict=True)]))


def test_tensors_and_lists_are_labels_too():
    both = [c.scores(c.contingency(kind([0, 0, 1, 2]), kind([1, 1, 0, 0]))) for kind in (list, torch.tensor, np.array)]
    assert both[0] == both[1] == both[2]
    assert set(both[0]) == {"nmi", "anmi", "ari", "hungarian", "purity"}


@pytest.mark.parametrize(
    "true, predicted, word", [([0, 1], [0], "2 true"), ([[0]], [[0]], "one-dimensional"), ([0.5], [0], "integers")]
)
def test_labels_that_cannot_be_counted_are_refused(true, predicted, word):
    with pytest.raises(ValueError, match=word):
        c.contingency(true, predicted)


def jackknife(score, true, predicted):
    """Standard error from leaving out one sample at a time; samples of one cell give the same."""
    pairs, cell, times = np.unique(np.stack([true, predicted]), axis=1, return_inverse=True, return_counts=True)
    first = [int(np.flatnonzero(cell == k)[0]) for k in range(pairs.shape[1])]
    left_out = np.array([score(np.delete(true, i), np.delete(predicted, i)) for i in first])
    n = len(true)
    return np.sqrt((n - 1) / n * (times * (left_out - times @ left_out / n) ** 2).sum())


def test_the_errors_of_scores_are_those_of_a_jackknife_and_of_a_share():
    table = 10 * np.array([[600, 9, 25, 8], [8, 30, 12, 3], [15, 11, 40, 7], [30, 6, 9, 16]])
    true, predicted = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
    counted = c.contingency(true, predicted)
    found = c.scores(counted)
    theirs = {
        "nmi": metrics.normalized_mutual_info_score,
        "anmi": metrics.adjusted_mutual_info_score,
        "ari": metrics.adjusted_rand_score,
        "purity": lambda t, p: sum(np.bincount(t[p == k]).max() for k in range(4)) / len(t),
    }
    errors = c.errors(counted, found)
    for name, score in theirs.items():
        assert found[name] == pytest.approx(score(true, predicted), abs=1e-9)
        assert errors[name] == pytest.approx(jackknife(score, true, predicted), rel=0.01), name
    share = 6860 / table.sum()
    assert found["hungarian"] == pytest.approx(share)
    assert errors["hungarian"] == pytest.approx(np.sqrt(share * (1 - share) / table.sum()), rel=1e-9)


def test_every_sample_knows_its_cell():
    true, predicted = pair(300, 4, 6, 9)
    table = c.contingency(true * 3 - 2, predicted)
    where = c.cells(table, true * 3 - 2, predicted)
    assert np.array_equal(np.bincount(where), table.counts)
    assert np.array_equal(table.classes[where], true) and np.array_equal(table.clusters[where], predicted)


@pytest.mark.parametrize(
    "true, predicted",
    [
        ([0] * 6, [0] * 6),
        ([0] * 6, [0, 1, 2] * 2),
        ([0, 1, 2] * 2, [0] * 6),
        ([0, 1, 2] * 2, [2, 0, 1] * 2),
        (range(6), range(6)),
    ],
)
def test_errors_of_tables_without_doubt_are_zero(true, predicted):
    table = c.contingency(list(true), list(predicted))
    errors = c.errors(table, c.scores(table))
    assert all(np.isfinite(e) for e in errors.values())
    assert all(errors[name] == pytest.approx(0, abs=1e-7) for name in ("nmi", "anmi", "ari"))
