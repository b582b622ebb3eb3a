"""A small method that uses everything the loop offers, and a stream that needs no data set."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from engine import batchnorm, dist, optim, rng
from engine.batch import Batch
from engine.dist import World
from engine.loop import fit
from engine.options import RunOptions

RECIPE = {
    "seed": 3,
    "batch": 8,
    "optimizer": {"name": "larc", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.01},
    "schedule": {"name": "warmup_cosine", "epochs": 4, "warmup_epochs": 1, "start_lr": 0.1},
    "precision": "float32",
    "channels_last": False,
    "sync_bn": False,
    "sync_bn_group": None,
}
QUIET = RunOptions(log_interval=2, checkpoint_interval=3, tensorboard=False)


class Stream:
    """Images of noise, a function of their index; steps_per_epoch global batches an epoch."""

    def __init__(self, steps_per_epoch=5, epochs=4, batch=8, rank=0, world=1, total=None):
        self.steps_per_epoch, self.batch, self.rank, self.world = steps_per_epoch, batch, rank, world
        self.total_steps = steps_per_epoch * epochs if total is None else total

    def context(self, method, epoch):
        def extract():
            batchnorm.broadcast_batchnorm_(method)  # as every stream does before it extracts
            return self._views(np.arange(20), 0)[0]

        return SimpleNamespace(epoch=epoch, seed=0, extract=extract)

    def epoch(self, epoch, start=0):
        order = rng.permutation(0, "order", epoch, self.steps_per_epoch * self.batch)
        for part in order.reshape(self.steps_per_epoch, self.world, -1)[start:, self.rank]:
            yield Batch(torch.from_numpy(part), self._views(part, epoch), None, epoch)

    def _views(self, part, epoch):
        draws = [rng.normals(0, "pixels", epoch, part, v, 3 * 6 * 6).reshape(-1, 3, 6, 6) for v in range(2)]
        return [torch.from_numpy(d).float() for d in draws]


@dataclass(frozen=True)
class Needs:
    unused_parameters: bool = False


class Toy(nn.Module):
    """Two views agree; with batch norm, dropout, a queue, new heads every second epoch, and state outside the parameters."""

    def __init__(self, dropout=0.2, reset_every=2):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 6)
        )
        self.needs, self.generation, self.reset_every = Needs(), 0, reset_every
        self.head, self.centre, self.queue = nn.Linear(6, 4), torch.zeros(6), []
        self.calls: list = []

    def before_epoch(self, epoch, ctx):
        self.calls.append(("epoch", epoch))
        if self.reset_every and epoch % self.reset_every == self.reset_every - 1:
            self.head = nn.Linear(6, 4)  # draws from torch's generator, which the loop seeds
            self.generation += 1
        with torch.no_grad():
            self.eval()
            self.centre = self.net(ctx.extract()).mean(0)
            self.train()

    def before_step(self, step, ctx):
        self.calls.append(("step", step, ctx.epoch))

    def loss(self, batch, step):
        a, b = (nn.functional.normalize(self.head(self.net(view) - self.centre)) for view in batch.views)
        self.queue = [*self.queue[-2:], float(a.detach().mean())]
        loss = (1 - (a * b).sum(1)).mean() + 0.01 * self.head.weight.square().sum() + 0.001 * sum(self.queue)
        return loss, {"cosine": float((a * b).sum(1).detach().mean())}

    def after_backward(self, step):
        if step < 2:
            self.head.weight.grad = None

    def param_groups(self):
        return [{"params": list(self.net.parameters())}, {"params": list(self.head.parameters()), "lr_scale": 0.5}]

    def extra_state(self):
        return {"generation": self.generation, "centre": self.centre, "queue": list(self.queue)}

    def load_extra_state(self, state):
        self.generation, self.centre, self.queue = state["generation"], state["centre"], state["queue"]

    def health(self):
        return {"spread": float(self.centre.std())}

    def alarms(self, step, loss, logs):
        return ["the queue is long"] if step >= 10 else []

    def export(self):
        return {f"module.{name}": value for name, value in self.net.state_dict().items()}


def run(folder, method=None, stream=None, options=QUIET, recipe=RECIPE, world=None, **changes):
    world = world or World(dist.rank(), dist.world_size())
    stream = stream or Stream(rank=world.rank, world=world.size, batch=recipe["batch"])
    method = method or Toy()
    recipe = {**recipe, **changes}
    rates = optim.schedule(recipe["schedule"], stream.steps_per_epoch, stream.total_steps, lr=recipe["optimizer"]["lr"])
    result = fit(
        method,
        stream,
        rates=rates,
        recipe=recipe,
        folder=folder,
        options=options,
        world=world,
        provenance={"versions": {}},
    )
    return result, method


def bits(folder):
    """Everything a finished run leaves that must not depend on interruptions."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state.pop("seconds")
    return (folder / "weights.pth").read_bytes(), _plain(state)


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return (
        (value.dtype, value.shape, value.contiguous().numpy().tobytes()) if isinstance(value, torch.Tensor) else value
    )
