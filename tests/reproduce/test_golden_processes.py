"""MoCo and SimCLR against PIC's release, by one process and by two real ones that exchange keys and features."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.contract_pair import run
from torch import nn

from engine import dist
from golden import load
from reproduce.methods.moco import MoCoV1, moco_logits
from reproduce.methods.simclr import SimCLR, similarities

STEPS = 2


def flat(dim: int) -> nn.Module:
    backbone = nn.Flatten()
    backbone.dim = dim
    return backbone


def moco(given: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """This process's numbers of each step: the release's toy, one linear layer as encoder."""
    t = {name: torch.from_numpy(value) for name, value in given.items()}
    method = MoCoV1(flat(6), dim=5, queue=32, temperature=float(t["temperature"]), momentum=float(t["momentum"]))
    with torch.no_grad():
        for layer, w, b in ((method.head, "Wq", "bq"), (method.key_encoder[1], "Wk", "bk")):
            layer.weight.copy_(t[w])
            layer.bias.copy_(t[b])
        method.queue.copy_(t["queue_before"])
        method.queue_ptr[0] = int(t["ptr_before"])
    steps, mine = [], slice(4 * dist.rank(), 4 * dist.rank() + 4)
    for step in range(STEPS):
        query, key = (t[f"{name}{step}"][mine, :, None, None] for name in ("xq", "xk"))
        method.before_step(step, SimpleNamespace(seed=0))
        logits = moco_logits(method.queries(query), method.keys(key, step), method.queue, method.temperature)
        method.zero_grad()
        loss, _ = method.loss(SimpleNamespace(views=[query, key]), step)
        loss.backward()
        assert all(p.grad is None for p in method.key_encoder.parameters())
        found = {
            "logits": logits,
            "loss": loss.double(),
            "gw": method.head.weight.grad,
            "queue": method.queue,
            "ptr": method.queue_ptr[0],
            "kw": method.key_encoder[1].weight,
            "kb": method.key_encoder[1].bias,
        }
        steps.append({name: value.detach().clone().numpy() for name, value in found.items()})
    return steps


def simclr(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    x, temperature = torch.stack([torch.from_numpy(given[name]) for name in ("x1", "x2")]), float(given["temperature"])
    share = x.shape[1] // dist.world_size()
    mine = x[:, dist.rank() * share :][:, :share].clone().requires_grad_()
    method = SimCLR(flat(x.shape[2]), dim=4, hidden=0, temperature=temperature, gather="detached")
    z = F.normalize(mine, dim=2)
    every = dist.all_gather(z.detach().transpose(0, 1).contiguous()).transpose(0, 1)
    logits, labels = similarities(z, every, dist.rank() * share, temperature)
    loss = method.pair_loss(*z)
    loss.backward()
    found = {"logits": logits, "labels": labels, "loss": loss.double(), "g1": mine.grad[0], "g2": mine.grad[1]}
    return {name: value.detach().numpy() for name, value in found.items()}


def on_rank(rank, folder, of_moco, of_simclr):
    return moco(of_moco), simclr(of_simclr)


@cache
def answers(world: int):
    """What each process came to."""
    goldens = load(f"pic/moco_world{world}.npz"), load(f"pic/simclr_world{world}.npz")
    inputs = [[name for name in g.names if name[0] not in "tr" or name == "temperature"] for g in goldens]
    given = [{name: np.array(g.given(name)) for name in names} for g, names in zip(goldens, inputs, strict=True)]
    return run(on_rank, *given) if world == 2 else [on_rank(0, None, *given)]


@pytest.mark.parametrize("world", [1, 2])
def test_moco_agrees_with_the_release(world):
    g = load(f"pic/moco_world{world}.npz")
    for rank, (steps, _) in enumerate(answers(world)):
        for t, found in enumerate(steps):
            g.exact(f"t{t}_r{rank}_ptr", found.pop("ptr"))
            for name, value in found.items():
                g.agree(f"t{t}_r{rank}_{name}", value)


@pytest.mark.parametrize("world", [1, 2])
def test_simclr_agrees_with_the_release(world):
    """Own rows carry a gradient, gathered ones do not."""
    g = load(f"pic/simclr_world{world}.npz")
    for rank, (_, found) in enumerate(answers(world)):
        masked = g.checked(f"r{rank}_logits", "entries of a view with itself are -1e9 there and -inf here") < -1e8
        assert np.array_equal(np.isinf(found["logits"]), masked)
        g.agree(f"r{rank}_logits", found["logits"][~masked], part=~masked)
        g.exact(f"r{rank}_labels", found["labels"])
        for name in ("loss", "g1", "g2"):
            g.agree(f"r{rank}_{name}", found[name])
