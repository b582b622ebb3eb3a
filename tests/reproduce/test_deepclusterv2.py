"""DeepCluster-v2 against the authors' numbers, and what holds for its bank and its labels."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import rng
from engine.batch import Batch
from golden import load
from reproduce.clustering import UNSEEN
from reproduce.methods.deepclusterv2 import DeepClusterV2, cluster_prediction
from zoo.errors import UserError


def method(dim=10, prototypes=(4, 5, 3), **settings):
    backbone = nn.Identity()
    backbone.dim = dim
    torch.manual_seed(0)
    return DeepClusterV2(backbone, dim=dim, hidden=0, prototypes=prototypes, **settings)


def context(method, images, views=2):
    """A stand-in for the engine's: features of all images, slightly different per view."""

    def extract(view):
        noise = 0.1 * torch.randn(images.shape, generator=torch.manual_seed(view or 0))
        return torch.arange(len(images)).numpy(), method.features(images + noise).detach()

    return SimpleNamespace(extract=extract, seed=3, n=len(images))


def test_an_epoch_agrees_with_the_authors():
    g = load("swav/deepclusterv2_epoch.npz")
    meta = g.meta
    net = method(meta["D"], meta["K"], temperature=meta["temperature"], kmeans_iterations=meta["kmeans_iters"])
    index, bank = torch.from_numpy(g.given("index")), torch.from_numpy(g.given("emb"))
    assert g.given("batch_ids").shape == (meta["steps"], meta["bs"])
    starts = [bank[h % 2][g.given(f"init_idx_{h}")] for h in range(len(meta["K"]))]
    net.labels = net.assign(index, bank, starts, int(index.max()) + 1)
    losses, raws = [], torch.from_numpy(g.given("raw"))
    for ids, raw in zip(torch.from_numpy(g.given("batch_ids")), raws, strict=True):
        raw.requires_grad_()
        loss = net.loss_of(F.normalize(raw, dim=1).unflatten(0, (sum(meta["nmb_crops"]), -1)), ids)
        loss.backward()
        losses.append(loss.item())
    g.agree("loss", torch.tensor(losses, dtype=torch.float64))
    g.agree("grad_raw_last", raws[-1].grad if raws[-1].grad is not None else raw.grad)
    g.exact("index_after", net.bank.rows()[0])
    g.agree("emb_after", net.bank.rows()[1])


def test_the_first_labels_come_from_a_pass_over_all_images_and_later_ones_from_the_bank():
    net, images = method(), torch.randn(40, 10, generator=torch.manual_seed(1))
    ctx = context(net, images)
    net.before_epoch(0, ctx)
    assert net.labels.shape == (3, 40) and (net.labels != UNSEEN).all()
    assert torch.allclose(net.prototypes["prototypes0"].weight.norm(dim=1), torch.ones(4), atol=1e-6)
    for ids in torch.arange(32).split(8):
        net.loss(Batch(ids, [images[ids], images[ids], images[ids]]), 0)
    ctx.extract = None  # must not be needed any more
    net.before_epoch(1, ctx)
    assert (net.labels[:, :32] != UNSEEN).all() and (net.labels[:, 32:] == UNSEEN).all()
    assert net.health()["unlabelled"] == pytest.approx(0.2) and 0 <= net.health()["agreement"] <= 1


def test_images_without_a_label_do_not_count():
    scores = [torch.randn(2, 6, 4, generator=torch.manual_seed(0))]
    labels = torch.tensor([[0, UNSEEN, 3, UNSEEN, 1, 1]])
    seen = labels[0] != UNSEEN
    expected = F.cross_entropy(scores[0][:, seen].flatten(0, 1) / 0.1, labels[0][seen].repeat(2))
    assert torch.allclose(cluster_prediction(scores, labels, 0.1), expected)
    assert cluster_prediction(scores, torch.full((1, 6), UNSEEN), 0.1) == 0


def test_prototypes_are_frozen_and_everything_else_learns():
    net, images = method(freeze_prototypes_steps=5), torch.randn(20, 10)
    net.before_epoch(0, context(net, images))
    for step, frozen in ((4, True), (5, False)):
        net.zero_grad()
        net.loss(Batch(torch.arange(8), [images[:8]] * 2), step)[0].backward()
        net.after_backward(step)
        assert all((p.grad is None) == frozen for p in net.prototypes.parameters())
        assert net.projection_head.weight.grad.abs().sum() > 0


def test_heads_alternate_between_the_banks_of_the_large_views():
    net = method()
    assert [net.view_of(h) for h in range(3)] == [0, 1, 0]


def test_start_rows_depend_on_images_not_on_the_order_in_which_they_were_seen():
    from reproduce.clustering import rows_of_images

    index, rows = torch.arange(30) * 3, torch.randn(30, 4)
    order = torch.randperm(30)
    a, b = (
        rows_of_images(i, r, 5, rng.generator(0, "x"), "k") for i, r in ((index, rows), (index[order], rows[order]))
    )
    assert torch.equal(a, b) and len(a.unique(dim=0)) == 5


def test_more_prototypes_than_images_is_one_clear_error():
    net = method(prototypes=(50,))
    with pytest.raises(UserError, match="params.prototypes.0=50"):
        net.before_epoch(0, context(net, torch.randn(20, 10)))
