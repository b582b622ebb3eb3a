"""Scores of a clustering against classes, all from one table: NMI, adjusted mutual information, ARI, Hungarian accuracy, purity.

The expected mutual information of the adjustment costs scikit-learn a minute at ImageNet's size. It depends on the margins only,
so equal margins are counted once, and each hypergeometric law is summed over its 12 standard deviations around the mean
(at least 64 terms), which leaves out less than 1e-30. Definitions: Vinh, Epps, Bailey (2010); degenerate cases as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln

DENSE_CELLS = 1 << 26  # a table of at most this many cells is counted densely (512 MB)
CHUNK_TERMS = 1 << 20  # terms of the expected mutual information held at once
EPS = float(np.finfo(np.float64).eps)

AVERAGES: dict[str, Callable[[float, float], float]] = {
    "arithmetic": lambda a, b: (a + b) / 2,
    "geometric": lambda a, b: float(np.sqrt(a * b)),
    "max": max,
}


@dataclass(frozen=True)
class Contingency:
    """How often each class meets each cluster, without empty rows, columns and cells."""

    classes: np.ndarray  # (nnz,) row of each non-empty cell
    clusters: np.ndarray  # (nnz,) its column
    counts: np.ndarray  # (nnz,) int64 > 0
    class_sizes: np.ndarray  # (C,) int64 > 0
    cluster_sizes: np.ndarray  # (K,) int64 > 0

    @property
    def n(self) -> int:
        return int(self.class_sizes.sum())

    def dense(self) -> np.ndarray:
        """(C, K) int64."""
        table = np.zeros((len(self.class_sizes), len(self.cluster_sizes)), dtype=np.int64)
        table[self.classes, self.clusters] = self.counts
        return table


def contingency(true: Any, predicted: Any) -> Contingency:
    """Count pairs of labels. Both are (N,) integers (arrays, lists or tensors); any values, gaps and negative ones included."""
    true, n_true = _compact(true, "true")
    predicted, n_predicted = _compact(predicted, "predicted")
    if len(true) != len(predicted):
        raise ValueError(f"contingency: {len(true)} true labels, {len(predicted)} predicted labels")
    pairs = true * n_predicted + predicted
    if n_true * n_predicted <= DENSE_CELLS:
        table = np.bincount(pairs, minlength=n_true * n_predicted)
        cells = np.flatnonzero(table)
        counts = table[cells]
    else:
        cells, counts = np.unique(pairs, return_counts=True)
    classes, clusters = np.divmod(cells, max(n_predicted, 1))
    used_classes, classes = np.unique(classes, return_inverse=True)
    used_clusters, clusters = np.unique(clusters, return_inverse=True)
    sizes = (_sum_at(classes, counts, len(used_classes)), _sum_at(clusters, counts, len(used_clusters)))
    return Contingency(classes, clusters, counts.astype(np.int64), *sizes)


def _compact(labels: Any, name: str) -> tuple[np.ndarray, int]:
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    if labels.ndim != 1:
        raise ValueError(f"contingency: {name} labels must be one-dimensional, not {labels.shape}")
    if not len(labels):
        return labels.astype(np.int64), 0
    if not np.issubdtype(labels.dtype, np.integer):
        if not np.array_equal(labels, labels.astype(np.int64)):
            raise ValueError(f"contingency: {name} labels must be integers")
        labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < max(4 * len(labels), 1 << 16):
        return labels.astype(np.int64), high + 1
    values, labels = np.unique(labels, return_inverse=True)
    return labels.astype(np.int64), len(values)


def _sum_at(index: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(index, weights=counts, minlength=n).astype(np.int64)  # sums below 2^53 are exact


def scores(table: Contingency) -> dict[str, float]:
    """``nmi``, ``anmi`` (adjusted mutual information), both with arithmetic averages, ``ari``, ``hungarian``, ``purity``."""
    return {
        "nmi": nmi(table),
        "anmi": ami(table),
        "ari": ari(table),
        "hungarian": matched_accuracy(table)[0],
        "purity": purity(table),
    }


def influences(table: Contingency, found: dict[str, float]) -> dict[str, np.ndarray]:
    """(nnz,) what one more sample of each cell changes ``scores`` by, times n: the derivatives of ``nmi``, ``anmi``, ``ari`` and
    ``purity`` by the shares of the cells, centred. The expectation in ``anmi`` and each cluster's largest class are taken as fixed.
    """
    n = max(table.n, 1)
    share, class_shares, cluster_shares = table.counts / n, table.class_sizes / n, table.cluster_sizes / n
    a, b = class_shares[table.classes], cluster_shares[table.clusters]
    half = (entropy(table.class_sizes) + entropy(table.cluster_sizes)) / 2
    by_information, by_half = np.log(share / (a * b)), -np.log(a * b) / 2
    in_class, in_cluster = float((class_shares**2).sum()), float((cluster_shares**2).sum())
    by_chance = 2 * (a * in_cluster + b * in_class)
    above = 1 - found["anmi"]
    parts = {  # slope, and what the score divides by
        "nmi": (by_information - found["nmi"] * by_half, half),
        "anmi": (
            by_information - found["anmi"] * by_half,
            (half - mutual_information(table)) / above if above > 1e-9 else 0,
        ),
        "ari": (
            2 * share - by_chance - found["ari"] * (a + b - by_chance),
            (in_class + in_cluster) / 2 - in_class * in_cluster,
        ),
        "purity": (_largest(table).astype(np.float64), 1.0),
    }
    return {
        name: (slope - share @ slope) / bottom if bottom > EPS else np.zeros(len(share))
        for name, (slope, bottom) in parts.items()
    }


def errors(table: Contingency, found: dict[str, float]) -> dict[str, float]:
    """Standard errors of the ``scores`` of a table, when other samples are drawn and both labellings stay as they are: the
    delta method. Of Hungarian accuracy with the best map taken as fixed.
    """
    n = max(table.n, 1)
    result = {name: float(np.sqrt(table.counts @ each**2)) / n for name, each in influences(table, found).items()}
    result["hungarian"] = float(np.sqrt(found["hungarian"] * (1 - found["hungarian"]) / n))
    return result


def cells(table: Contingency, true: Any, predicted: Any) -> np.ndarray:
    """(N,) the cell of ``table`` that each sample is counted in; the labels are those that the table was counted from."""
    classes = np.unique(np.asarray(true), return_inverse=True)[1]
    clusters = np.unique(np.asarray(predicted), return_inverse=True)[1]
    wide = len(table.cluster_sizes)
    return np.searchsorted(table.classes * wide + table.clusters, classes * wide + clusters)


def entropy(sizes: np.ndarray) -> float:
    """Entropy in nats of the distribution proportional to ``sizes`` (non-negative counts)."""
    p = sizes[sizes > 0] / max(sizes.sum(), 1)
    return float(-(p * np.log(p)).sum())


def mutual_information(table: Contingency) -> float:
    """In nats, >= 0."""
    n = table.n
    log_ratio = np.log(table.counts) + np.log(n)
    log_ratio -= np.log(table.class_sizes)[table.classes] + np.log(table.cluster_sizes)[table.clusters]
    terms = table.counts / n * log_ratio
    return max(float(np.where(np.abs(terms) < EPS, 0.0, terms).sum()), 0.0)


def nmi(table: Contingency, average: str = "arithmetic") -> float:
    """Mutual information over an average of both entropies, in [0, 1]; 1 when both labellings are one group."""
    if len(table.class_sizes) == len(table.cluster_sizes) <= 1:
        return 1.0
    mi = mutual_information(table)
    if mi <= EPS:
        return 0.0
    return mi / AVERAGES[average](entropy(table.class_sizes), entropy(table.cluster_sizes))


def ami(table: Contingency, average: str = "arithmetic") -> float:
    """Mutual information above its expectation, over an average of both entropies above it; 0 for a random labelling, at most 1."""
    if len(table.class_sizes) == len(table.cluster_sizes) <= 1:
        return 1.0
    if len(table.class_sizes) == 1 or len(table.cluster_sizes) == 1:
        return 0.0
    expected = expected_mutual_information(table.class_sizes, table.cluster_sizes)
    top = mutual_information(table) - expected
    bottom = AVERAGES[average](entropy(table.class_sizes), entropy(table.cluster_sizes)) - expected
    return _away_from_zero(top) / _away_from_zero(bottom)


def _away_from_zero(x: float) -> float:
    return min(x, -EPS) if x < 0 else max(x, EPS)


def expected_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mean mutual information (nats) of two labellings with group sizes ``a`` and ``b``, over all permutations of one of them."""
    n = int(a.sum())
    a, times_a = np.unique(a, return_counts=True)
    b, times_b = np.unique(b, return_counts=True)
    aa, bb = np.repeat(a, len(b)), np.tile(b, len(a))
    times = np.outer(times_a, times_b).ravel().astype(np.float64)
    log_factorial = _log_factorial(n)
    mean = aa * (bb / n)
    reach = np.maximum(12 * np.sqrt(mean * (1 - aa / n) * ((n - bb) / max(n - 1, 1))), 32)
    low = np.maximum(np.maximum(1, aa + bb - n), np.floor(mean - reach).astype(np.int64))
    high = np.minimum(np.minimum(aa, bb), np.ceil(mean + reach).astype(np.int64))
    lengths = np.maximum(high - low + 1, 0)
    constant = log_factorial(aa) + log_factorial(bb) + log_factorial(n - aa) + log_factorial(n - bb) - log_factorial(n)
    total, begin, ends = 0.0, 0, np.cumsum(lengths)
    while begin < len(lengths):
        done = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, done + CHUNK_TERMS, side="right")), begin + 1)
        part, repeats = slice(begin, end), lengths[begin:end]
        ai, bi = np.repeat(aa[part], repeats), np.repeat(bb[part], repeats)
        nij = np.arange(repeats.sum()) - np.repeat(ends[part] - repeats - done, repeats) + np.repeat(low[part], repeats)
        log_p = np.repeat(constant[part], repeats) - log_factorial(nij)
        log_p -= log_factorial(ai - nij) + log_factorial(bi - nij) + log_factorial(n - ai - bi + nij)
        information = nij / n * (np.log(nij) + np.log(n) - np.log(ai) - np.log(bi))
        total += float((np.repeat(times[part], repeats) * information * np.exp(log_p)).sum())
        begin = end
    return total


def _log_factorial(n: int) -> Callable[[Any], Any]:
    if n > 1 << 23:
        return lambda x: gammaln(np.asarray(x) + 1.0)
    table = gammaln(np.arange(n + 1) + 1.0)
    return lambda x: table[x]


def ari(table: Contingency) -> float:
    """Adjusted Rand index: share of agreeing pairs above chance; 0 for a random labelling, at most 1."""
    n = table.n
    squares = int((table.counts**2).sum())
    in_class, in_cluster = int((table.class_sizes**2).sum()), int((table.cluster_sizes**2).sum())
    false_positive, false_negative = in_cluster - squares, in_class - squares
    if false_positive == 0 and false_negative == 0:
        return 1.0
    true_positive = squares - n
    true_negative = n * n - in_class - in_cluster + squares
    top = 2 * (true_positive * true_negative - false_negative * false_positive)
    return top / (
        (true_positive + false_negative) * (false_negative + true_negative)
        + (true_positive + false_positive) * (false_positive + true_negative)
    )


def purity(table: Contingency) -> float:
    """Share of samples that belong to their cluster's largest class."""
    return float(table.counts[_largest(table)].sum() / table.n) if table.n else 1.0


def _largest(table: Contingency) -> np.ndarray:
    """(nnz,) bool: the cell is its cluster's largest, the first of equals."""
    order = np.lexsort((table.classes, -table.counts, table.clusters))
    first = np.ones(len(order), dtype=bool)
    first[1:] = table.clusters[order][1:] != table.clusters[order][:-1]
    largest = np.zeros(len(order), dtype=bool)
    largest[order] = first
    return largest


def matched_accuracy(table: Contingency) -> tuple[float, np.ndarray]:
    """Accuracy under the best one-to-one map of clusters to classes, and that map as (m, 2) rows (class, cluster) of the table."""
    if not table.n:
        return 1.0, np.zeros((0, 2), dtype=np.int64)
    dense = table.dense()
    rows, columns = linear_sum_assignment(dense, maximize=True)
    return float(dense[rows, columns].sum() / table.n), np.stack([rows, columns], axis=1)
