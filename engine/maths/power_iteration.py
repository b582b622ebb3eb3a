"""Power iteration clustering of a nearest-neighbour graph: DeepCluster's second clustering, which chooses the number of clusters itself.

Paper     https://arxiv.org/abs/1807.05520, appendix (after Lin and Cohen 2010, and Cho and Lee 2012)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix


def pic(
    neighbours: np.ndarray,
    distances: np.ndarray,
    sigma: float = 0.2,
    alpha: float = 0.001,
    *,
    iterations: int = 200,
    dtype: Any = np.float64,
) -> np.ndarray:
    """(n,) int64 cluster of each node, numbered by the node at its top.

    neighbours, distances   (n, k) nearest other nodes of each node and their squared distances; edges weigh exp(-distance / sigma^2)
    alpha                   share of the graph in each step v <- alpha W'v + (1 - alpha) / n; the rest is uniform
    dtype   of v: the differences that matter are a thousandth of it, which float32, the authors' choice, leaves partly to rounding
    Every node points to the neighbour that lies highest above it, weighted by the edge; a cluster is what leads to the same top.
    """
    n, k = neighbours.shape
    weights = np.exp(-distances / sigma**2).astype(dtype).ravel()
    a = csr_matrix((weights, neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    graph = (a + a.T).tocsr()
    v = np.full(n, 1 / n, dtype=dtype)
    for _ in range(iterations):
        v = (alpha * (graph.T @ v) + (1 - alpha) / n).astype(dtype)
        v /= v.sum()
    above = _highest(graph, v)
    while not np.array_equal(above, above[above]):
        above = above[above]
    return np.unique(above, return_inverse=True)[1].astype(np.int64)


def _highest(graph: csr_matrix, v: np.ndarray) -> np.ndarray:
    """(n,) the neighbour j of each i with the largest positive w_ij (v_j - v_i), else i itself; the first of equal ones."""
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    gain = graph.data * (v[graph.indices] - v[rows])
    order = np.lexsort((np.arange(len(gain)), -gain, rows))
    first = order[np.unique(rows[order], return_index=True)[1]]
    above = np.arange(graph.shape[0])
    up = first[gain[first] > 0]
    above[rows[up]] = graph.indices[up]
    return above


def absorb_singletons(labels: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Nodes alone in their cluster join that of their nearest neighbour that is not; those without one stay. Numbered anew."""
    alone = np.bincount(labels)[labels] == 1
    company = ~alone[neighbours]
    joins = alone & company.any(1)
    result = labels.copy()
    result[joins] = labels[neighbours[joins, company[joins].argmax(1)]]
    return np.unique(result, return_inverse=True)[1].astype(np.int64)
