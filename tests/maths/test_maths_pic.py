import numpy as np
import pytest

from engine.maths.power_iteration import absorb_singletons, pic
from golden import load


def test_clusters_agree_with_the_authors():
    g = load("deepercluster/deepcluster_pic.npz")
    x = g.given("X").astype(np.float64)
    squared = ((x[:, None] - x) ** 2).sum(-1)
    near = np.argsort(squared, axis=1, kind="stable")[:, :6]
    g.exact("I", near)
    g.agree("D", np.take_along_axis(squared, near, 1))
    neighbours, distances = g.given("I")[:, 1:], g.given("D")[:, 1:]
    sigma = float(g.given("sigma"))
    row = np.zeros((1, len(neighbours)), dtype=np.float32)
    row[0, neighbours[0]] = np.exp(-distances[0] / sigma**2)
    g.agree("adjacency_row0", row)
    g.exact("clusters", pic(neighbours, distances, sigma, float(g.given("alpha")), dtype="float32"))


def plainly(neighbours, distances, sigma, alpha, iterations, dtype):
    """The same from its definition: a dense matrix, one node at a time."""
    n = len(neighbours)
    graph = np.zeros((n, n), dtype=dtype)
    for i in range(n):
        for j, d in zip(neighbours[i], distances[i], strict=True):
            graph[i, j] += dtype(np.exp(-d / sigma**2))
            graph[j, i] += dtype(np.exp(-d / sigma**2))
    v = np.full(n, 1 / n, dtype=dtype)
    for _ in range(iterations):
        v = (alpha * (graph @ v) + (1 - alpha) / n).astype(dtype)
        v = v / v.sum()
    top = []
    for i in range(n):
        while (gain := graph[i] * (v - v[i])).max() > 0:
            i = int(gain.argmax())
        top.append(i)
    return np.unique(top, return_inverse=True)[1]


@pytest.mark.parametrize("iterations, alpha", [(1, 0.5), (3, 0.5), (200, 0.5), (200, 0.001)])
def test_equals_the_plain_definition(iterations, alpha):
    x = np.random.default_rng(2).standard_normal((80, 3))
    squared = ((x[:, None] - x) ** 2).sum(-1)
    near = np.argsort(squared, axis=1)[:, 1:6]
    distances = np.take_along_axis(squared, near, 1)
    found = pic(near, distances, 0.7, alpha, iterations=iterations)
    assert np.array_equal(found, plainly(near, distances, 0.7, alpha, iterations, np.float64))


def test_the_precision_decides_about_clusters_and_the_default_is_double():
    g = load("deepercluster/deepcluster_pic.npz")
    neighbours, distances, sigma, alpha = (
        g.given("I")[:, 1:],
        g.given("D")[:, 1:],
        float(g.given("sigma")),
        float(g.given("alpha")),
    )
    double, single = (
        pic(neighbours, distances, sigma, alpha),
        pic(neighbours, distances, sigma, alpha, dtype=np.float32),
    )
    assert np.array_equal(double, plainly(neighbours, distances, sigma, alpha, 200, np.float64))
    assert not np.array_equal(double, single)


def test_two_far_groups_are_never_in_one_cluster():
    x = np.random.default_rng(0).standard_normal((60, 3)) * 0.1
    x[30:] += 5
    squared = ((x[:, None] - x) ** 2).sum(-1)
    near = np.argsort(squared, axis=1)[:, 1:6]
    labels = pic(near, np.take_along_axis(squared, near, 1), sigma=0.5)
    assert not set(labels[:30]) & set(labels[30:])


def test_singletons_join_their_nearest_company():
    labels = np.array([0, 0, 1, 2, 3, 4, 4])
    neighbours = np.array([[1, 2], [0, 2], [3, 1], [4, 2], [3, 2], [6, 0], [5, 0]])
    assert absorb_singletons(labels, neighbours).tolist() == [0, 0, 0, 1, 2, 3, 3]
    neighbours[2] = [6, 1]  # company on both places: the nearer one counts
    assert absorb_singletons(labels, neighbours).tolist() == [0, 0, 3, 1, 2, 3, 3]
