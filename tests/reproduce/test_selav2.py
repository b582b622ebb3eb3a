"""SeLa-v2: balanced labels from a bank, hard and soft, and prototypes that learn."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.batch import Batch
from engine.maths.sela import plan
from reproduce.methods.selav2 import SeLaV2, soft_prediction


def method(**settings):
    backbone = nn.Identity()
    backbone.dim = 10
    torch.manual_seed(0)
    return SeLaV2(backbone, dim=10, hidden=0, **{"prototypes": (4, 5), **settings})


def context(net, images):
    return SimpleNamespace(
        extract=lambda view: (torch.arange(len(images)).numpy(), net.features(images).detach()), seed=0, n=len(images)
    )


IMAGES = torch.randn(60, 10, generator=torch.Generator().manual_seed(1))


def test_every_cluster_holds_equally_many_images():
    net = method()
    net.before_epoch(0, context(net, IMAGES))
    for head, k in enumerate((4, 5)):
        assert (torch.bincount(net.labels[head], minlength=k) - 60 / k).abs().max() <= 2
    assert net.health()["empty_clusters"] == 0 and net.health()["labelling_error"] <= 0.1


def test_labels_of_an_epoch_come_from_the_embeddings_of_the_epoch_before_alone():
    """The bank is emptied when it has been read: what the images looked like an epoch earlier changes nothing."""
    net, fresh = method(), method()
    net.before_epoch(0, context(net, IMAGES))
    fresh.before_epoch(0, context(fresh, torch.randn(60, 10, generator=torch.Generator().manual_seed(8))))
    later = IMAGES.flip(1) + torch.randn(60, 10, generator=torch.Generator().manual_seed(7))
    for one in (net, fresh):
        one.loss(Batch(torch.arange(60), [later] * 2), 0)
    assert len(net.bank) == len(fresh.bank) == 60
    for one in (net, fresh):
        one.before_epoch(1, context(one, IMAGES))
        assert len(one.bank) == 0
    assert torch.equal(net.labels, fresh.labels)


def test_soft_labels_are_rows_of_the_transport_plan_and_their_largest_entries_the_hard_labels():
    net = method(assignment="soft")
    net.before_epoch(0, context(net, IMAGES))
    z = net.features(IMAGES).detach()
    for head in range(2):
        soft = net.soft_labels(head, torch.arange(60))
        expected = (
            plan(z @ net.prototypes[f"prototypes{head}"].weight.T, net.plan[f"r{head}"], 1 / net.epsilon, 60) * 60
        )
        assert torch.allclose(soft.double(), expected, atol=1e-4)
        assert torch.equal(soft.argmax(1), net.labels[head])
        assert torch.allclose(soft.sum(0), torch.full((soft.shape[1],), 60 / soft.shape[1]), atol=0.5)


def test_one_hot_soft_labels_give_the_loss_of_hard_ones():
    net = method()
    net.before_epoch(0, context(net, IMAGES))
    scores = [torch.randn(3, 6, k, generator=torch.Generator().manual_seed(k)) for k in (4, 5)]
    labels = net.labels[:, :6]
    one_hot = [F.one_hot(y, k).float() for y, k in zip(labels, (4, 5), strict=True)]
    hard = net.prediction(scores, labels, torch.arange(6))
    assert torch.allclose(hard, soft_prediction(scores, one_hot, torch.ones(6, dtype=torch.bool), net.temperature))


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_prototypes_learn_and_keep_unit_length(assignment):
    net = method(assignment=assignment, freeze_prototypes_steps=1)
    net.before_epoch(0, context(net, IMAGES))
    net.before_step(1)
    net.loss(Batch(torch.arange(8), [IMAGES[:8]] * 2), 1)[0].backward()
    net.after_backward(1)
    assert all(p.grad.abs().sum() > 0 for p in net.prototypes.parameters())
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    net.before_step(2)
    assert torch.allclose(net.prototypes["prototypes1"].weight.norm(dim=1), torch.ones(5), atol=1e-6)


def test_soft_labels_survive_a_checkpoint():
    net, other = method(assignment="soft"), method(assignment="soft")
    net.before_epoch(0, context(net, IMAGES))
    other.load_extra_state(net.extra_state())
    assert torch.equal(net.soft_labels(1, torch.arange(9)), other.soft_labels(1, torch.arange(9)))
