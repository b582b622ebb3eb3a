"""DeepCluster: labels, sampler, head and the authors' small functions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from engine import rng
from engine.batch import Batch
from engine.maths.kmeans import kmeans
from golden import load
from reproduce.clustering import UNSEEN, by_image, compact, uniform_over_labels
from reproduce.methods.deepcluster import DeepCluster, reduce
from zoo.errors import UserError

IMAGES = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))


def method(**settings):
    backbone = nn.Linear(8, 8)
    backbone.dim = 8
    torch.manual_seed(0)
    return DeepCluster(backbone, **{"clusters": 6, "pca": 4, **settings})


def context(net):
    return SimpleNamespace(extract=lambda view: (np.arange(60), net.features(IMAGES).detach()), seed=2, n=60)


def test_samplers_draw_what_the_authors_draw():
    g = load("deepercluster/uniform_samplers.npz")
    labels = g.given("pseudo_labels").astype(np.int64)
    total, replicas = int(g.given("total_size")), int(g.given("replicas"))
    order = uniform_over_labels(labels, total, np.random.RandomState(int(g.given("seed"))))
    g.exact("all", order)
    for rank in range(replicas):
        g.exact(f"rank{rank}", order[rank::replicas])
    draw = np.random.RandomState(int(g.given("dc_np_seed")))
    g.exact("dc_indexes", uniform_over_labels(labels, int(g.given("dc_N")), draw))


def test_uniform_sampling_is_uniform_over_labels_and_repeats_only_small_ones():
    labels = np.repeat([4, 7, 9, UNSEEN], [50, 12, 3, 20])
    order = uniform_over_labels(labels, 60, np.random.default_rng(0))
    counts = {label: (labels[order] == label).sum() for label in (4, 7, 9, UNSEEN)}
    assert counts[UNSEEN] == 0 and all(abs(counts[k] - 20) <= 3 for k in (4, 7, 9))
    assert len(np.unique(order[labels[order] == 4])) == counts[4]
    with pytest.raises(UserError, match="no image has a label"):
        uniform_over_labels(np.full(5, UNSEEN), 3, np.random.default_rng(0))


def test_labels_are_renumbered_over_clusters_that_have_images_as_the_authors_do():
    g = load("deepercluster/deepcluster_cluster_assign.json")

    def of_lists(lists, n):
        index, labels = (
            np.concatenate(parts) for parts in zip(*((m, np.full(len(m), k)) for k, m in enumerate(lists)), strict=True)
        )
        return by_image(index.astype(np.int64), torch.from_numpy(labels)[None], n)[0].numpy()

    labels = of_lists(g.given("images_lists"), 10)
    renumbered = compact(labels)
    pairs = sorted((int(renumbered[i]), int(i)) for i in np.flatnonzero(labels != UNSEEN))
    g.exact("imgs", [[f"p{i}", label] for label, i in pairs])
    ours = of_lists([[4, 0], [], [3, 1], [2]], 5)
    g.exact("arrange", ours.tolist())
    assert compact(ours).tolist() == [0, 1, 2, 1, 0]


def test_clusters_come_from_whitened_unit_features_and_none_is_empty():
    net = method()
    net.before_epoch(0, context(net))
    assert net.labels.shape == (1, 60) and set(net.labels[0].tolist()) == set(range(6))
    rows = reduce(net.features(IMAGES).detach(), 4)
    assert rows.shape == (60, 4) and torch.allclose(rows.norm(dim=1), torch.ones(60), atol=1e-5)
    assert torch.allclose(reduce(IMAGES, 0), torch.nn.functional.normalize(IMAGES, dim=1))


def test_no_cluster_stays_empty_where_plain_k_means_leaves_one():
    """Points of a circle and nearly as many clusters: in most draws Lloyd's iterations lose a cluster."""
    rows = torch.nn.functional.normalize(torch.randn(30, 2, generator=torch.Generator().manual_seed(28)) ** 3, dim=1)
    net = method(clusters=20, pca=0)
    found = [net.assign(rows, epoch, SimpleNamespace(n=30, seed=0)) for epoch in range(12)]
    assert [len(labels.unique()) for labels in found] == [20] * 12
    plain = [kmeans(rows, 20, iterations=20, generator=rng.generator(0, "kmeans", epoch)).labels for epoch in range(12)]
    assert min(len(labels.unique()) for labels in plain) < 20, "a case that would notice"


def test_the_head_starts_afresh_with_every_assignment():
    net = method()
    net.before_epoch(0, context(net))
    first, generation = net.head, net.generation
    net.before_epoch(1, context(net))
    assert net.head is not first and net.generation == generation + 1
    assert net.head.bias.eq(0).all() and net.head.weight.std().item() == pytest.approx(0.01, rel=0.4)
    assert net.param_groups()[1]["momentum"] == 0 and 0 <= net.health()["agreement"] <= 1


def test_power_iteration_clustering_chooses_the_number_of_clusters():
    net = method(clustering="pic")
    net.before_epoch(0, context(net))
    assert net.head.out_features == int(net.labels.max()) + 1 == net.health()["clusters"] > 1
    other = method(clustering="pic")
    other.load_extra_state(net.extra_state())
    assert other.head.weight.shape == net.head.weight.shape


def test_an_epoch_draws_as_many_images_as_told_and_trains_on_their_labels():
    net = method(reassign=0.5)
    net.before_epoch(0, context(net))
    order = net.sampler(60, 0, context(net))
    assert net.epoch_size(60) == len(order) == 30
    ids = torch.from_numpy(order[:8])
    loss, logs = net.loss(Batch(ids, [IMAGES[ids]]), 0)
    assert loss.item() == pytest.approx(np.log(6), rel=0.05) and 0 <= logs["accuracy"] <= 1


@pytest.mark.parametrize("settings, word", [({"clusters": 61}, "params.clusters=61"), ({"pca": 9}, "params.pca=9")])
def test_what_cannot_be_clustered_is_one_clear_error(settings, word):
    with pytest.raises(UserError, match=word):
        net = method(**settings)
        net.before_epoch(0, context(net))
