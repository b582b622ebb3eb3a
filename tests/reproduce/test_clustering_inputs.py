"""What clustering methods hand to their solvers, by numbers known from elsewhere, and whose labels come back."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

from engine.batch import Batch
from engine.maths.rows import Rows
from reproduce.methods.deepcluster import DeepCluster
from reproduce.methods.deepclusterv2 import DeepClusterV2
from reproduce.methods.deepercluster import DeeperCluster
from reproduce.methods.pseudolabel import PseudoLabel
from reproduce.methods.sela import SeLa
from reproduce.methods.selav2 import SeLaV2

N = 48
G = torch.Generator().manual_seed(4)
# Two groups of images that no clustering takes for one, and directions of very different length.
GROUP = torch.arange(N) % 2
IMAGES = (
    torch.randn(N, 6, generator=G) * torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.2])
    + 30 * torch.stack([GROUP * 2.0 - 1] * 6, 1) / 6
)
ORDER = torch.randperm(N, generator=G)


def build(cls, **settings):
    torch.manual_seed(0)
    backbone = nn.Linear(6, 6)
    backbone.dim = 6
    with torch.no_grad():
        backbone.weight.copy_(torch.eye(6))
        backbone.bias.zero_()
    return cls(backbone, **settings)


def context(method, images=IMAGES, order=ORDER, asked=None):
    """Features of every view are others, and the rows of this process come in an order of their own."""

    def extract(view):
        if asked is not None:
            asked.append(view)
        shifted = images if view is None else images * (1 + 0.3 * torch.sin(torch.arange(6) + view))
        return order.numpy(), method.features(shifted[order]).detach()

    return SimpleNamespace(extract=extract, seed=3, n=len(images), batch=8, total_steps=20)


def given_to(method, name, act):
    """What the solver `name` in the method's file is called with while `act` runs."""
    module, calls = type(method).__module__, []
    plain = getattr(__import__(module, fromlist=[name]), name)

    def spied(*args, **options):
        calls.append((args, options))
        return plain(*args, **options)

    with mock.patch(f"{module}.{name}", spied):
        act()
    return calls


def whitened(dim):
    """(N, dim) by scikit-learn, in image order."""
    found = PCA(dim, whiten=True, svd_solver="full").fit_transform(IMAGES.double().numpy())
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def gram(rows):
    """Products of all rows in image order: the same whatever the signs and the order of directions."""
    everything = torch.empty(N, rows.shape[1])
    everything[ORDER] = torch.as_tensor(rows).float()
    return everything @ everything.T


@pytest.mark.parametrize("dim", [3, 5])
def test_deepcluster_clusters_whitened_unit_rows(dim):
    method = build(DeepCluster, clusters=4, pca=dim)
    (((data, clusters), options),) = given_to(method, "kmeans", lambda: method.before_epoch(0, context(method)))
    expected = torch.from_numpy(whitened(dim) @ whitened(dim).T).float()
    assert clusters == 4 and options["iterations"] == 20
    torch.testing.assert_close(gram(data), expected, atol=1e-4, rtol=1e-4)


def test_deepcluster_without_pca_clusters_unit_rows():
    method = build(DeepCluster, clusters=4, pca=0)
    (((data, _), _),) = given_to(method, "kmeans", lambda: method.before_epoch(0, context(method)))
    unit = F.normalize(IMAGES, dim=1)
    torch.testing.assert_close(gram(data), unit @ unit.T, atol=1e-5, rtol=1e-5)


def test_deepercluster_clusters_whitened_unit_rows():
    method = build(DeeperCluster, super_classes=8, clusters=8, pca=4)
    (((rows, *_), _),) = given_to(method, "hierarchy", lambda: method.before_epoch(0, context(method)))
    expected = torch.from_numpy(whitened(4) @ whitened(4).T).float()
    torch.testing.assert_close(gram(rows.read(0, N)), expected, atol=1e-4, rtol=1e-4)


def test_the_graph_has_squared_distances_to_the_nearest_others_and_the_settings():
    method = build(
        DeepCluster,
        clusters=4,
        pca=4,
        clustering="pic",
        graph={"neighbours": 3, "sigma": 0.7, "alpha": 0.2, "precision": "float32"},
    )
    (((near, distances, sigma, alpha), options),) = given_to(
        method, "pic", lambda: method.before_epoch(0, context(method))
    )
    rows = whitened(4)[ORDER.numpy()]
    theirs, places = NearestNeighbors(n_neighbors=4).fit(rows).kneighbors(rows)
    assert (sigma, alpha, options["dtype"]) == (0.7, 0.2, "float32") and np.array_equal(places[:, 0], np.arange(N))
    assert np.array_equal(near, places[:, 1:])
    np.testing.assert_allclose(distances, theirs[:, 1:] ** 2, atol=1e-4)


def test_deepclusterv2_clusters_unit_embeddings_of_both_views_from_images_of_their_own():
    method = build(DeepClusterV2, prototypes=(4, 4, 4), dim=5, hidden=0)
    calls = given_to(method, "kmeans", lambda: method.before_epoch(0, context(method)))
    starts = []
    for head, ((rows, start), options) in enumerate(calls):
        _, expected = context(method).extract(head % 2)
        torch.testing.assert_close(rows, expected)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(N))
        assert options["spherical"] and len(start.unique(dim=0)) == 4
        where = (start[:, None] == rows).all(2).nonzero()[:, 1]
        assert len(where) == 4
        starts.append(set(where.tolist()))
    again = given_to(
        method,
        "kmeans",
        lambda: (setattr(method, "bank", type(method.bank)()), method.before_epoch(1, context(method))),
    )
    assert starts[0] != starts[2] and not torch.allclose(again[0][0][1], calls[0][0][1])


def test_sela_solves_the_heads_own_logits():
    method = build(SeLa, clusters=5, heads=2, labelings=2)
    calls = given_to(method, "sela_labels", lambda: method.before_step(0, context(method)))
    assert len(calls) == 2
    with torch.no_grad():
        for head in method.heads:
            head.bias += torch.arange(5.0)
    calls = given_to(method, "sela_labels", lambda: method.renew(1, context(method)))
    for head, ((rows,), _) in zip(method.heads, calls, strict=True):
        expected = head(context(method).extract(0)[1])
        assert isinstance(rows, Rows)
        torch.testing.assert_close(rows.read(0, N), expected.detach())


def test_selav2_solves_cosines_of_the_heads_own_view():
    method = build(SeLaV2, prototypes=(4, 6), dim=5, hidden=0, epsilon=0.1)
    calls = given_to(method, "sela_labels", lambda: method.before_epoch(0, context(method)))
    for head, ((rows, lam), _) in enumerate(calls):
        weight = F.normalize(method.prototypes[f"prototypes{head}"].weight.detach(), dim=1)
        torch.testing.assert_close(rows.read(0, N), context(method).extract(head)[1] @ weight.T)
        assert lam == pytest.approx(10)


def test_labels_of_pixels_come_from_pixels():
    method = build(PseudoLabel, instances=N, labels="kmeans:3")
    with torch.no_grad():
        method.backbone.weight.fill_(7.0)  # features would be something else
    (((data, clusters), _),) = given_to(method, "kmeans", lambda: method.before_epoch(0, context(method)))
    assert clusters == 3 and torch.equal(data.read(0, N), IMAGES[ORDER])


MAKERS = {
    "deepcluster": lambda: build(DeepCluster, clusters=3, pca=4),
    "power iteration": lambda: build(DeepCluster, clusters=3, pca=0, clustering="pic"),
    "deepercluster": lambda: build(DeeperCluster, super_classes=2, rotations=False, clusters=4, pca=4),
    "deepclusterv2": lambda: build(DeepClusterV2, prototypes=(3, 3), dim=6, hidden=0),
    "selav2": lambda: build(SeLaV2, prototypes=(3, 3), dim=6, hidden=0),
    "sela": lambda: build(SeLa, clusters=3, heads=2, labelings=2),
    "pseudolabel": lambda: build(PseudoLabel, instances=N, labels="kmeans:3"),
}
VIEWS = {"deepclusterv2": [0, 1], "selav2": [0, 1], "sela": [0]}


def assign(method, ctx):
    method.before_step(0, ctx) if isinstance(method, SeLa) else method.before_epoch(0, ctx)


@pytest.mark.parametrize("name", MAKERS)
def test_labels_follow_the_images_and_not_the_order_of_their_rows(name):
    """A process may hold its images in any order: equal images have equal labels, images of far groups have not."""
    asked, equal = [], torch.arange(N) % 8
    images = IMAGES if name == "power iteration" else IMAGES[equal]
    method = MAKERS[name]()
    assign(method, context(method, images=images, asked=asked))
    assert asked == VIEWS.get(name, [None])
    for labels in method.labels:
        assert len(labels.unique()) > 1
        if name == "power iteration":
            assert not set(labels[GROUP == 0].tolist()) & set(labels[GROUP == 1].tolist())
        else:
            assert all(len(labels[equal == k].unique()) == 1 for k in range(8))


@pytest.mark.parametrize("name", ["deepcluster", "deepercluster", "pseudolabel"])
def test_no_cluster_is_empty_when_most_images_are_the_same(name):
    """Rows drawn as first centres are equal then, and nothing is nearest to the second of them."""
    few = IMAGES[torch.arange(N) % 3 * (torch.arange(N) > N // 2)] + 1e-4 * IMAGES
    makers = {
        "deepcluster": lambda: build(DeepCluster, clusters=12, pca=3),
        "pseudolabel": lambda: build(PseudoLabel, instances=N, labels="kmeans:12"),
        "deepercluster": lambda: build(DeeperCluster, super_classes=2, rotations=False, clusters=12, pca=3),
    }
    for seed in range(5):
        method = makers[name]()
        ctx = context(method, images=few)
        ctx.seed = seed
        assign(method, ctx)
        assert len(method.labels[-1].unique()) == 12


def test_heads_of_clusters_start_afresh_and_that_of_rotations_is_kept():
    for classes, kept in ((4, True), (8, False)):
        method = build(DeeperCluster, super_classes=classes, clusters=8, pca=4, reassignment=1)
        method.before_epoch(0, context(method))
        head, sub = method.super_head, method.sub_weight["0"]
        method.before_epoch(1, context(method))
        assert (method.super_head is head) is kept and method.sub_weight["0"] is not sub
        assert not torch.allclose(method.sub_weight["0"], sub)


def test_deepclusters_head_sees_features_after_their_relu_and_every_view():
    method = build(DeepCluster, clusters=4, pca=4)
    method.before_epoch(0, context(method))
    ids, views = torch.arange(6), [IMAGES[:6], -IMAGES[:6]]
    with torch.no_grad():
        method.head.weight.normal_()
    loss, _ = method.loss(Batch(ids, views), 0)
    expected = F.cross_entropy(method.head(torch.cat(views).clamp(min=0)), method.labels[0, ids].repeat(2))
    torch.testing.assert_close(loss, expected)


def test_epochs_draw_other_images():
    method = build(DeepCluster, clusters=4, pca=4)
    method.before_epoch(0, context(method))
    assert not np.array_equal(*(method.sampler(N, epoch, context(method)) for epoch in (0, 1)))
    deeper = build(DeeperCluster, super_classes=8, clusters=8, pca=4, epoch_divisor=1)
    deeper.before_epoch(0, context(deeper))
    first, second = (deeper.sampler(N, epoch, context(deeper)).reshape(-1, 8) for epoch in (0, 1))
    assert not np.array_equal(first, second) and not np.array_equal(
        first[:, 0], first[:, 1]
    )  # two turns of one super-cluster
