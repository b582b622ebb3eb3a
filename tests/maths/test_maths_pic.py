import numpy as np

from engine.maths.pic import absorb_singletons, pic
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
    g.exact("clusters", pic(neighbours, distances, sigma, float(g.given("alpha")), dtype=np.float32))


def test_two_far_groups_are_never_in_one_cluster():
    x = np.random.default_rng(0).standard_normal((60, 3)) * 0.1
    x[30:] += 5
    squared = ((x[:, None] - x) ** 2).sum(-1)
    near = np.argsort(squared, axis=1)[:, 1:6]
    labels = pic(near, np.take_along_axis(squared, near, 1), sigma=0.5)
    assert not set(labels[:30]) & set(labels[30:])


def test_singletons_join_their_nearest_company():
    labels = np.array([0, 0, 1, 2, 3])
    neighbours = np.array([[1, 2], [0, 2], [3, 1], [4, 2], [3, 2]])
    assert absorb_singletons(labels, neighbours).tolist() == [0, 0, 0, 1, 2]
