"""Training a detector by the engine's loop, and asking it for its detections; both shared by any number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine import backends, dist, loop, optim, provenance, rng
from engine.progress import counter
from zoo.errors import UserError

from ..inputs.features import Compute, Features
from .average_precision import Detections
from .data import Group, Items, Stream, shown_groups

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Learner(nn.Module):
    """A network and its loss, as the engine's loop trains them.

    losses   group -> (loss to be trained on, numbers for the log)
    groups   parameter groups of the optimiser
    clip     greatest norm of all gradients together
    precise  steps whose batch statistics replace the running ones of trained batch norms at the end
    Dropout and sampling of a group depend on (seed, step, number of the group), not on the process that computes it.
    """

    needs = SimpleNamespace(unused_parameters=False)
    generation = 0

    def __init__(
        self,
        network: nn.Module,
        losses: Callable[[Group], tuple[Tensor, Mapping[str, Any]]],
        groups: Sequence[Mapping[str, Any]],
        seed: int,
        clip: float | None = None,
        precise: int = 0,
        stream: Stream | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.losses, self.groups, self.seed, self.clip = losses, list(groups), seed, clip
        self.precise, self.stream = precise, stream

    def loss(self, part: Group, step: int) -> tuple[Tensor, dict[str, float]]:
        rng.seed_torch(part.pixels.device, self.seed, "detection step", step, part.number)
        total, found = self.losses(part)
        return total, {name: float(value) for name, value in found.items()}

    def param_groups(self) -> list[dict[str, Any]]:
        return [dict(group) for group in self.groups]

    def after_backward(self, step: int) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for p in self.parameters() if p.requires_grad], self.clip)

    def before_epoch(self, epoch: int, ctx: Any) -> None:
        pass

    def before_step(self, step: int, ctx: Any) -> None:
        pass

    def extra_state(self) -> dict[str, Any]:
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        pass

    def health(self) -> dict[str, float]:
        return {}

    def alarms(self, step: int, loss: float, logs: Mapping[str, float]) -> list[str]:
        return []

    def export(self) -> dict[str, Tensor]:
        if self.precise and self.stream is not None:
            precise_statistics(self, self.stream, self.precise)
        return {name: value.detach().cpu() for name, value in self.network.state_dict().items()}


@torch.no_grad()
def precise_statistics(learner: Learner, stream: Stream, steps: int) -> None:
    """Running statistics as the plain mean over ``steps`` batches of the training views, in place of moving averages."""
    norms = [m for m in learner.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    device = next(learner.parameters()).device
    learner.train()
    done, epoch = 0, 0
    while norms and done < steps:
        for step in stream.epoch(epoch):
            for part in step.parts:
                learner.loss(part.to(device), done)
            done += 1
            if done == steps:
                break
        epoch += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def fit(learner: Learner, stream: Stream, recipe: Mapping[str, Any], folder: Path, compute: Compute) -> None:
    """Train to the end, going on from the checkpoint in ``folder``; a finished run there is taken as it is.

    recipe   the settings that a checkpoint must share; read by the loop: seed, batch, optimizer, schedule, sync_bn
    """
    whole = {"precision": compute.precision, "channels_last": False, "sync_bn": False, "sync_bn_group": None, **recipe}
    world = dist.World(dist.rank(), dist.world_size(), device=compute.device)
    result = loop.fit(
        learner,
        stream,
        rates=optim.schedule(
            whole["schedule"], stream.steps_per_epoch, stream.total_steps, lr=whole["optimizer"]["lr"]
        ),
        recipe=whole,
        folder=folder,
        options=compute.options,
        world=world,
        provenance=_provenance(compute),
    )
    if not result.finished:
        raise UserError(
            f"stopped after {result.steps} of {stream.total_steps} steps; the same command without stop_after= goes on"
        )
    weights = torch.load(folder / "weights.pth", map_location="cpu", weights_only=True)
    learner.network.load_state_dict(weights)
    learner.network.to(compute.device)


def _provenance(compute: Compute) -> dict[str, Any]:
    told = backends.settings(compute.options, compute.device, compute.passes)
    return {**provenance.collect(), "device": {"type": compute.device.type, **told}}


def autocast(compute: Compute) -> AbstractContextManager[Any]:
    kind = PRECISIONS[compute.precision]
    return nullcontext() if kind is None else torch.autocast(compute.device.type, kind)


@torch.no_grad()
def detect(
    network: nn.Module,
    answer: Callable[[Group], Sequence[Mapping[str, Any]]],
    items: Items,
    group: int,
    features: Features,
) -> Detections:
    """Detections on a whole split, the same on every process.

    answer   group on the device -> by image: boxes (n, 4) xyxy in pixels of the file, scores (n,), labels (n,) from 0, and
             ``masks``, a list of run lengths, where there are any
    """
    network.eval()
    rows: list[np.ndarray] = [np.zeros((0, 7))]
    masks: list[Any] = []
    for part in shown(items, group, features):
        with autocast(features.compute):
            found = answer(part.to(features.compute.device))
        for position, one in zip(part.index, found, strict=True):
            table = torch.cat(
                [one["labels"][:, None].double(), one["scores"][:, None].double(), one["boxes"].double()], 1
            )
            table = table.cpu()
            rows.append(np.concatenate([np.full((len(table), 1), float(position)), table.numpy()], axis=1))
            masks += one.get("masks", [])
    gathered = dist.all_gather_rows(torch.from_numpy(np.concatenate(rows))).numpy()
    every = gathered_objects(masks) if any_process(bool(masks)) else None
    return Detections(
        gathered[:, 0].astype(np.int64),
        gathered[:, 1].astype(np.int64),
        gathered[:, 2].copy(),
        gathered[:, 3:].copy(),
        every,
    )


def shown(items: Items, group: int, features: Features) -> Iterator[Group]:
    """This process's groups of a split, with a line of progress."""
    total = len(np.array_split(np.arange(len(items.source)), dist.world_size())[dist.rank()])
    bar = counter(f"detections on {items.source.split}", total, quiet=not dist.is_main())
    for part in shown_groups(items, group, features.compute.workers):
        yield part
        bar.update(len(part.index))
    bar.close()


def any_process(here: bool) -> bool:
    return bool(dist.all_reduce_(torch.tensor(float(here)), "max"))


def gathered_objects(values: list[Any]) -> list[Any]:
    """Plain JSON values of every process, in the order of the processes."""
    text = torch.frombuffer(bytearray(json.dumps(values).encode() + b"\n"), dtype=torch.uint8)[:, None]
    lines = bytes(dist.all_gather_rows(text)[:, 0].numpy()).splitlines()
    return [value for line in lines for value in json.loads(line)]
