"""The steps that all detection protocols share: choose hyper-parameters, train each seed, open the test split, score."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine import dist, rng
from engine.progress import duration
from results.record import Metric, around
from zoo.errors import UserError

from ..inputs.features import Features
from ..inputs.models import Model
from ..probes import finetuning
from ..protocol import Protocol, head_of
from ..result import Result
from . import train
from .average_precision import Score, with_errors
from .data import Group, Items, Stream, with_objects
from .train import Learner
from .views import IMAGENET


class Kind:
    """What differs between detectors; a kind's file derives from it. ``want``: boxes, masks or map; ``divisor``: of the
    sides of a padded group."""

    want = "boxes"
    divisor = 1

    def __init__(self, protocol: Protocol, features: Features) -> None:
        self.protocol, self.features, self.head = protocol, features, head_of(protocol)
        card = features.model.input
        self.channels = int(card["channels"])
        own = self.head.views.normalise == "model" or self.channels == 1
        self.normal = {name: card[name] if own else IMAGENET[name] for name in ("mean", "std")}

    def images(self, part: Group) -> Tensor:
        """(B, C, H, W) normalised."""
        return part.images(self.normal["mean"], self.normal["std"])

    def items(self, split: str, seed: int = 0) -> Items:
        """The images of a split as this kind sees them."""
        return Items(
            self.features.source(split),
            self.head.views,
            self.channels,
            seed=seed,
            want=self.want,
            difficult=getattr(self.head, "difficult", True),
            divisor=self.divisor,
        )

    def kept(self, source: Any) -> np.ndarray:
        """Positions of the images to train on."""
        if self.want == "map" or getattr(self.head, "empty", True):
            return np.arange(len(source))
        return with_objects(source, self.head.difficult)

    def build(self, classes: int) -> nn.Module:
        """The detector on a copy of the pre-trained network; new layers are drawn from torch's generator."""
        raise NotImplementedError

    def losses(self, network: nn.Module, part: Group) -> tuple[Tensor, Mapping[str, Any]]:
        raise NotImplementedError

    def parameter_groups(self, network: nn.Module, cell: Mapping[str, float]) -> list[dict[str, Any]]:
        raise NotImplementedError

    def recipe(self, cell: Mapping[str, float], steps_per_epoch: int) -> dict[str, Any]:
        """optimizer, schedule and sync_bn for the engine's loop."""
        raise NotImplementedError

    def measure(self, network: nn.Module, split: str) -> tuple[Score, Any]:
        """(scores of any subset of the split's images, the array that is kept beside the record for ``pair``)."""
        raise NotImplementedError

    def score_kept(self, source: Any, kept: np.ndarray) -> Score:
        """The scores of a kept array, as ``measure`` gives them (of boxes, where there are masks too)."""
        raise NotImplementedError

    def length(self) -> dict[str, int | None]:
        return {"epochs": getattr(self.head, "epochs", None), "total": getattr(self.head, "iterations", None)}

    @property
    def group(self) -> int:
        """Images that go through the network at once."""
        return int(self.head.group or self.head.batch // dist.world_size())


def run(protocol: Protocol, features: Features, seed: int, kind: Kind) -> Result:
    def trial(cell: dict[str, float], name: str) -> float:
        network = trained(kind, protocol.splits.fit or protocol.splits.train, cell, seed, name)
        val = str(protocol.splits.val)
        score, _ = kind.measure(network, val)
        return float(score(np.arange(len(features.source(val))))[protocol.select.metric])

    chosen, selection = finetuning.choose(protocol, cells_of(protocol), trial, features.workspace)
    seeds = [seed * 1000 + i for i in range(protocol.seeds)]
    for number in seeds:
        trained(kind, protocol.splits.train, chosen, number, f"seed{number}")
    features.finish_selection(selection)

    count = len(features.source(protocol.splits.test))
    found: list[dict[str, tuple[float, float]]] = []
    kept = None
    for number in seeds:
        network = trained(kind, protocol.splits.train, chosen, number, f"seed{number}")
        score, own = kind.measure(network, protocol.splits.test)
        kept = own if kept is None else kept
        found.append(dist.broadcast_object(with_errors(score, count) if dist.is_main() else {}))
    tidy(features.workspace)
    features.say(f"{protocol.id}: detector and log in {features.workspace / f'seed{seeds[0]}'}")
    return Result({name: metric_of([one[name] for one in found if name in one], count) for name in found[0]}, kept)


def metric_of(values: Sequence[tuple[float, float]], count: int) -> Metric:
    """Mean over seeds of (percent, standard error over the images), with the interval of the images."""
    numbers = [value for value, _ in values]
    error = float(np.mean([error for _, error in values]))
    ci = around(float(np.mean(numbers)), error)
    if len(numbers) == 1:
        return Metric(value=numbers[0], n=count, ci=ci)
    return Metric.over_seeds(numbers, n=count, ci=ci)


def trained(kind: Kind, split: str, cell: Mapping[str, float], seed: int, name: str) -> nn.Module:
    """The detector after its last step, in evaluation mode; found again in its folder when it was trained before."""
    features, head = kind.features, kind.head
    source = features.source(split)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "detector"))
        network = kind.build(len(source.classes)).to(features.compute.device)
        stream = Stream(
            kind.items(split, seed),
            kind.kept(source),
            head.batch,
            kind.group,
            workers=features.compute.workers,
            **kind.length(),
        )
        own = kind.recipe(cell, stream.steps_per_epoch)
        learner = Learner(
            network,
            lambda part: kind.losses(network, part),
            kind.parameter_groups(network, cell),
            seed,
            getattr(head, "clip", None),
            getattr(head, "precise_norm", 0),
            stream,
        )
        settings = {
            "protocol": kind.protocol.name,
            "split": split,
            "head": head.model_dump(mode="json"),
            "cell": dict(cell),
        }
        share = {"batch": head.batch, "group": kind.group, "processes": dist.world_size()}
        train.fit(
            learner, stream, {"seed": seed, **own, **share, **settings}, features.workspace / name, features.compute
        )
    return learner.network.eval()


def tidy(folder: Path) -> None:
    """Optimiser states go; detectors and logs stay."""
    dist.barrier()
    if dist.is_main():
        for file in folder.glob("*/checkpoint.pt"):
            file.unlink(missing_ok=True)


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError unless every split that the run reads is here."""
    splits = protocol.splits
    trials = (splits.fit, splits.val) if protocol.select.on == "val" else ()
    for split in dict.fromkeys(s for s in (splits.train, *trials, splits.test) if s):
        open(split)


def cells_of(protocol: Protocol) -> list[dict[str, float]]:
    """Every combination of the grid."""
    cells: list[dict[str, float]] = [{}]
    for name, values in protocol.grid.items():
        cells = [{**cell, name: value} for cell in cells for value in values]
    return cells


def freeze_of(setting: str | Mapping[str, str] | None, model: Model) -> str | None:
    """The last frozen layer of this network: a layer, "last", or one by the name of the network."""
    name = model.description["name"]
    if isinstance(setting, Mapping):
        if name not in setting:
            raise UserError(
                f"head.freeze says nothing of {name} (it has {', '.join(setting)}); head.freeze.{name}=LAYER, or null"
            )
        setting = setting[name]
    return "all" if setting == "last" else setting


def sgd_by_iterations(head: Any, cell: Mapping[str, float], steps_per_epoch: int) -> dict[str, Any]:
    """SGD whose rate warms up and falls at iterations, written in the epochs that the engine's schedules count in."""
    return {
        "optimizer": {
            "name": "sgd",
            "lr": cell["lr"],
            "momentum": head.momentum,
            "weight_decay": cell["weight_decay"],
        },
        "schedule": {
            "name": "step",
            "milestones": [m / steps_per_epoch for m in head.milestones],
            "factor": head.factor,
            "warmup_epochs": head.warmup / steps_per_epoch,
            "warmup_multiplier": 1 / head.warmup_start,
        },
        "sync_bn": head.norm != "batch",
    }


def estimate(measurement: Any, make: Callable[[Protocol, Features], Kind]) -> tuple[str, float]:
    """(what will be trained and scored, seconds on this process) for a plan, from one timed image."""
    protocol = measurement.protocol
    kind, head, splits = make(protocol, measurement), head_of(protocol), protocol.splits
    trials = math.prod(len(v) for v in protocol.grid.values()) if protocol.select.on == "val" else 0
    size = {split: len(measurement.open(split)) for split in {splits.train, splits.fit or splits.train, splits.test}}
    per_epoch = {split: max(n // head.batch, 1) for split, n in size.items()}
    length = kind.length()
    steps = {
        s: length["total"] if length["total"] is not None else int(length["epochs"] or 1) * n
        for s, n in per_epoch.items()
    }
    learned = head.batch * (protocol.seeds * steps[splits.train] + trials * steps[splits.fit or splits.train])
    scored = protocol.seeds * size[splits.test] + (trials * len(measurement.open(splits.val)) if trials else 0)
    backward, forward = timed(kind, len(measurement.open(splits.train).classes))
    seconds = learned * backward + scored * forward
    groups = head.batch // kind.group
    line = (
        f"    {steps[splits.train]:,} steps of {head.batch} images in {groups} groups of {kind.group}, computed one after the "
        f"other or shared by up to {groups} processes; scores {scored:,} images; about {duration(seconds)} on one process here"
    )
    return line, seconds


def timed(kind: Kind, classes: int) -> tuple[float, float]:
    """Seconds per image of a step of training and of scoring, from one smaller blank image and the ratio of the areas."""
    views = kind.head.views
    short = min(views.test_short, 256)
    share = (short / views.test_short) ** 2
    pixels = torch.zeros(1, kind.channels, short, short, dtype=torch.uint8)
    target = {
        "boxes": torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * short,
        "labels": torch.zeros(1, dtype=torch.int64),
        "masks": torch.ones(1, short, short, dtype=torch.uint8),
        "map": torch.zeros(short, short, dtype=torch.uint8),
        "proposals": torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * short,
    }
    part = Group([0], pixels, [(short, short)], [(short, short)], [target]).to(kind.features.compute.device)
    with torch.random.fork_rng(devices=[]):
        network = kind.build(classes).to(kind.features.compute.device).train()
        spent = []
        for learns in (True, False):
            started = time.perf_counter()
            with torch.set_grad_enabled(learns), train.autocast(kind.features.compute):
                loss, _ = kind.losses(network, replace(part, targets=[dict(target)]))
                if learns:
                    loss.backward()
            spent.append((time.perf_counter() - started) / share)
    return spent[0], spent[1]
