"""SimCLR and RotNet: losses against the authors' numbers and slow references."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from golden import load
from reproduce.methods.deepercluster import turned
from reproduce.methods.rotnet import RotNet, rotation_loss, rotations
from reproduce.methods.simclr import SimCLR, nt_xent


def slow_nt_xent(z: torch.Tensor, t: float) -> torch.Tensor:
    """Equation 1, pair by pair."""
    flat, b = [*z[0], *z[1]], z.shape[1]
    total = 0.0
    for i in range(2 * b):
        terms = [torch.exp(flat[i] @ flat[k] / t) for k in range(2 * b) if k != i]
        total = total - torch.log(torch.exp(flat[i] @ flat[(i + b) % (2 * b)] / t) / sum(terms))
    return total / (2 * b)


@pytest.mark.parametrize("size, temperature", [(2, 0.1), (5, 0.5)])
def test_simclr_loss_and_gradient_equal_a_double_loop(size, temperature):
    x = torch.randn(2, size, 4, dtype=torch.float64, requires_grad=True)
    fast = nt_xent(F.normalize(x, dim=2), F.normalize(x, dim=2), 0, temperature)
    slow = slow_nt_xent(F.normalize(x, dim=2), temperature)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-12)
    a, b = torch.autograd.grad(fast, x)[0], torch.autograd.grad(slow, x)[0]
    torch.testing.assert_close(a, b)


def small(**params) -> SimCLR:
    backbone = nn.Flatten()
    backbone.dim = 6
    return SimCLR(backbone, dim=4, hidden=8, **params)


def test_more_than_two_views_average_over_their_pairs():
    method = small()
    z = F.normalize(torch.randn(3, 5, 4), dim=2)
    pairs = [slow_nt_xent(z[[a, b]], 0.1) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(method.pair_loss(*z), torch.stack(pairs).mean())


def test_detached_gathering_halves_the_paths_of_the_gradient():
    """Same loss, other gradient: the one of the rows alone."""
    z = F.normalize(torch.randn(2, 5, 4), dim=2)
    losses, grads = [], []
    for gather in ("differentiable", "detached"):
        leaf = z.clone().requires_grad_()
        loss = small(gather=gather).pair_loss(*leaf)
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, leaf)[0])
    assert losses[0] == pytest.approx(losses[1]) and not torch.allclose(*grads)


def test_views_apart_are_normalised_by_their_own_statistics_and_together_by_common_ones():
    """PIC's release passes one view after the other; the original both at once."""
    views = [torch.randn(5, 6, 1, 1) + shift for shift in (0.0, 4.0)]
    for encode, parts in (("apart", views), ("together", [torch.cat(views)])):
        backbone = nn.Sequential(nn.BatchNorm2d(6), nn.Flatten())
        backbone.dim = 6
        method = SimCLR(backbone, dim=4, hidden=8, encode=encode)
        h = torch.cat([F.batch_norm(part, None, None, training=True) for part in parts]).flatten(1)
        torch.testing.assert_close(method.project(views).flatten(0, 1), F.normalize(method.head(h), dim=1))
        assert int(backbone[0].num_batches_tracked) == len(parts)


def test_the_recipes_of_pics_repository_encode_apart_and_the_laptops_together():
    for model, expected in {
        "simclr_pic_100ep": "apart",
        "simclr_pic_200ep": "apart",
        "simclr_digits": "together",
    }.items():
        assert zoo.resolve(model).params["encode"] == expected


def test_simclr_exports_pics_names():
    names = set(small().export())
    assert names == {f"module.encoder.{k}" for k in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}


def test_rotations_are_the_four_rotations_of_both_code_bases():
    g = load("deepercluster/rotations.npz")
    image = torch.from_numpy(g.given("img")).permute(2, 0, 1)  # 5 x 7; ours turn squares
    for first in (0, 2):
        square, back = image[None, :, :, first : first + 5], slice(2 - first, 7 - first)
        places = (np.s_[:, first : first + 5], np.s_[back], np.s_[:, back], np.s_[first : first + 5])
        ours = {"rotnet": rotations(square), "deepercluster": turned(square.repeat(4, 1, 1, 1), torch.arange(4))}
        for name, found in ours.items():
            for k, angle in enumerate((0, 90, 180, 270)):
                g.exact(f"{name}_{angle}", found[k].permute(1, 2, 0), part=places[k])
        assert torch.equal(rotations(square, 2), rotations(square)[::2])


def test_rotation_labels_follow_the_order_of_the_copies():
    logits = torch.full((12, 4), -20.0)
    for i in range(12):
        logits[i, i // 3] = 20.0
    assert float(rotation_loss(logits)) < 1e-6
    assert float(rotation_loss(torch.zeros(12, 4))) == pytest.approx(math.log(4))


def test_rotnet_learns_with_any_number_of_views_and_exports_its_head():
    backbone = nn.Flatten()
    backbone.dim = 25
    method = RotNet(backbone)
    from types import SimpleNamespace

    loss, _ = method.loss(SimpleNamespace(views=[torch.randn(3, 1, 5, 5)] * 2), 0)
    loss.backward()
    assert method.head.weight.grad.abs().sum() > 0 and set(method.export()) == {
        "module.head.weight",
        "module.head.bias",
    }
