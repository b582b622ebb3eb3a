"""SwAV: the loss against the authors' numbers and a slow reference; queue, freezing and remedies."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import dist
from engine.maths.sinkhorn import sinkhorn
from golden import load
from reproduce.methods.swav import SwAV, swapped_prediction


def swav(dim: int, prototypes: int, **params) -> SwAV:
    backbone = nn.Flatten()
    backbone.dim = dim
    return SwAV(backbone, dim=dim, prototypes=prototypes, **params)


def batch(views: int, size: int, dim: int, epoch: int = 0, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(views=[torch.randn(size, dim, 1, 1, generator=g) for _ in range(views)], epoch=epoch)


@pytest.mark.parametrize("case", range(4))
def test_loss_gradients_and_queue_agree_with_the_authors_code(case):
    g = load("swav/swav_loss.npz")
    meta = g.meta[case]
    name, bs, crops = meta["name"], meta["bs"], sum(meta["nmb_crops"])
    method = swav(
        meta["D"],
        meta["K"],
        temperature=meta["T"],
        epsilon=meta["eps"],
        sinkhorn_iterations=meta["it"],
        assign_crops=meta["assign"],
        queue={"length": meta["queue"], "start_epoch": 0},
    )
    with torch.no_grad():
        method.prototypes.weight.copy_(torch.from_numpy(g.given(f"{name}.prototypes_raw")))
    losses, after, queues = [], [], []
    for step in range(meta["steps"]):
        method.before_step(step)
        if step == 0:
            g.agree(f"{name}.prototypes_normalized_before_step0", method.prototypes.weight)
        raw = torch.from_numpy(g.given(f"{name}.raw")[step]).requires_grad_()
        z = F.normalize(raw, dim=1)
        loss = method.swav_loss(z.view(crops, bs, -1), method.prototypes(z).view(crops, bs, -1), epoch=0)
        method.zero_grad()
        loss.backward()
        with torch.no_grad():
            method.prototypes.weight -= meta["lr"] * method.prototypes.weight.grad
        losses.append(loss.item())
        after.append(method.prototypes.weight.detach().clone())
        queues.append(method.queue)
    g.agree(f"{name}.loss", np.array(losses))
    g.agree(f"{name}.prototypes_after_step", torch.stack(after))
    g.agree(f"{name}.grad_raw_last", raw.grad)
    g.agree(f"{name}.grad_prototypes_last", method.prototypes.weight.grad)
    if meta["queue"]:
        g.agree(f"{name}.queue_after_step", torch.stack(queues))


@pytest.mark.parametrize("views, crops, temperature", [(2, [0, 1], 0.1), (5, [0, 1], 0.3), (3, [2], 1.0)])
def test_loss_equals_a_double_loop(views, crops, temperature):
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(views, 4, 6, generator=g, dtype=torch.float64, requires_grad=True)
    q = torch.rand(len(crops), 4, 6, generator=g, dtype=torch.float64)
    q = q / q.sum(-1, keepdim=True)
    total = 0.0
    for a, crop in enumerate(crops):
        others = [v for v in range(views) if v != crop]
        for v in others:
            for b in range(4):
                e = [math.exp(float(s) / temperature) for s in scores[v, b].detach()]
                total -= sum(float(q[a, b, k]) * math.log(e[k] / sum(e)) for k in range(6)) / (
                    len(crops) * len(others) * 4
                )
    assert swapped_prediction(scores, q, crops, temperature).item() == pytest.approx(total, rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: swapped_prediction(s, q, crops, temperature), scores)


def test_loss_is_ln_k_when_the_network_says_the_same_of_every_image():
    method = swav(8, 20)
    nn.init.zeros_(method.prototypes.weight)
    loss, _ = method.loss(batch(2, 6, 8), 0)
    assert loss.item() == pytest.approx(math.log(20)) == pytest.approx(method.collapsed_loss)


def test_a_batch_in_another_order_gives_the_same_loss():
    method, one = swav(8, 12, head_batchnorm=False), batch(3, 6, 8)
    method.before_step(0)
    other = SimpleNamespace(views=[v[[3, 1, 5, 0, 2, 4]] for v in one.views], epoch=0)
    torch.testing.assert_close(method.loss(one, 0)[0], method.loss(other, 0)[0])


def test_frozen_prototypes_have_no_gradient_at_all_then_they_do():
    method = swav(8, 12, freeze_prototypes_steps=2)
    for step, frozen in ((0, True), (1, True), (2, False)):
        method.zero_grad()
        method.loss(batch(2, 6, 8), step)[0].backward()
        method.after_backward(step)
        assert (method.prototypes.weight.grad is None) is frozen
        assert method.projection_head[0].weight.grad.abs().sum() > 0


def test_assignments_pass_no_gradient():
    """Only the predicted view gets a gradient when one view is assigned and it never predicts itself."""
    method = swav(8, 12, assign_crops=[0])
    z = F.normalize(torch.randn(2, 5, 8), dim=2).requires_grad_()
    method.swav_loss(z, method.prototypes(z), 0).backward()
    assert z.grad[0].abs().sum() == 0 and z.grad[1].abs().sum() > 0


def test_the_queue_waits_for_its_epoch_and_until_it_is_full():
    method = swav(6, 10, queue={"length": 13, "start_epoch": 2})  # rounded down to 12, three batches of 4
    for epoch, pushed, full in ((0, 0, False), (1, 0, False), (2, 1, False), (2, 2, False), (2, 3, True), (3, 4, True)):
        method.before_step(0)
        one = batch(2, 4, 6, epoch, seed=pushed)
        expected = None
        if method.queue_full:
            with torch.no_grad():
                _, scores = method.eval().scores(one.views)
                rows = torch.cat([method.queue[0] @ method.prototypes.weight.T, scores[0]])
                expected = sinkhorn(rows, method.epsilon, method.iterations)[-4:]
        method.eval().loss(one, 0)
        assert (method.pushed, method.queue_full) == (pushed, full)
        if expected is not None:
            torch.testing.assert_close(method._seen["targets"], expected)
    assert method.queue.shape == (2, 12, 6)


def test_a_queue_shorter_than_the_batch_says_so():
    method = swav(6, 10, queue={"length": 3, "start_epoch": 0})
    with pytest.raises(Exception, match=r"queue\.length=3 .* batch of 4.* 0 for no queue"):
        method.loss(batch(2, 4, 6), 0)


def test_the_queue_survives_a_round_trip_and_nothing_else_is_needed():
    method = swav(6, 10, queue={"length": 8, "start_epoch": 0})
    for i in range(3):
        method.loss(batch(2, 4, 6, seed=i), i)
    other = copy.deepcopy(method)
    other.queue = None
    other.load_extra_state(method.extra_state())
    a, b = (m.loss(batch(2, 4, 6, seed=9), 3)[0] for m in (method, other))
    assert torch.equal(a, b) and torch.equal(method.queue, other.queue)
    other.load_extra_state({})
    assert other.queue is None


def test_the_queue_of_a_checkpoint_is_in_the_order_of_the_global_batch(monkeypatch):
    """Two processes fill theirs from the halves of the batches that one process sees whole; any number takes the state up."""
    z = torch.randn(3, 2, 4, 6)  # steps, views, images, numbers

    def filled(rank, world):
        method, share = swav(6, 10, queue={"length": 12, "start_epoch": 0}), 4 // world
        monkeypatch.setattr(dist, "world_size", lambda: world)
        monkeypatch.setattr(dist, "rank", lambda: rank)
        for step in z[:, :, rank * share : (rank + 1) * share]:
            method._start_queue(step, 0)
            method._push(step)
        return method

    whole = filled(0, 1)
    state, parts = whole.extra_state(), [filled(rank, 2) for rank in (0, 1)]
    assert torch.equal(state["queue"], torch.cat([z[2], z[1], z[0]], dim=1))
    monkeypatch.setattr(dist, "all_gather", lambda mine: torch.cat([part.queue[None] for part in parts]))
    together = parts[0].extra_state()
    assert torch.equal(together["queue"], state["queue"]) and together["batch"] == state["batch"] == 4
    for rank, part in enumerate(parts):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        other = swav(6, 10, queue={"length": 12, "start_epoch": 0})
        other.load_extra_state(state)
        assert torch.equal(other.queue, part.queue) and other.queue_full


def test_hard_assignment_and_the_head_without_batchnorm_are_settings():
    method = swav(6, 10, assignment="hard", head_batchnorm=False, hidden=16)
    loss, _ = method.loss(batch(2, 5, 6), 0)
    assert set(method._seen["targets"].flatten().tolist()) == {0.0, 1.0} and loss.isfinite()
    assert not any(isinstance(m, nn.BatchNorm1d) for m in method.modules())
    assert {"projection_head.0.weight", "projection_head.2.bias"} < set(method.exported())


def test_export_has_the_names_of_the_released_files():
    names = set(swav(6, 10, hidden=16).export())
    assert names == {
        f"module.projection_head.{k}"
        for k in (
            "0.weight",
            "0.bias",
            "1.weight",
            "1.bias",
            "1.running_mean",
            "1.running_var",
            "1.num_batches_tracked",
            "3.weight",
            "3.bias",
        )
    } | {"module.prototypes.weight"}
