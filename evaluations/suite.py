"""Every protocol that fits a model and the data at hand: planned first, done one by one, kept when interrupted.

A protocol fits when its data set can be opened here and the network accepts its images. What is measured is found again
by its key, so the same command after an interruption continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from engine.progress import duration
from results import record as records
from zoo import data
from zoo.errors import UserError

from . import models
from .features import FeatureRequest, forward, transform_of
from .protocol import load, names
from .run import evaluate, summary
from .task import Settings, Task


def choose(model: str, given: Mapping[str, Any]) -> list[str]:
    """Protocols on the data set that the model was trained on, or those that match ``only=PATTERN``; their data must be here."""
    settings = Settings.of({k: v for k, v in given.items() if k != "only"})
    judged = models.resolve(model, settings.pretrain_seed, settings.options.out)
    pattern = str(given.get("only", "*"))
    home = getattr(judged.recipe, "dataset", None)
    found = [n for n in names() if fnmatchcase(n, pattern) and (pattern != "*" or load(n).dataset == home)]
    usable = [n for n in found if _at_hand(n, model, settings)]
    if not usable:
        what = f"protocols that match {pattern!r}" if pattern != "*" else f"protocols on {home}"
        raise UserError(f"{model}: no {what} have their data here; see python -m evaluations list, and only=PATTERN")
    return usable


def _at_hand(name: str, model: str, settings: Settings) -> bool:
    try:
        task = Task.of(name, model, settings.plain)
        task.open(task.protocol.splits.train)
    except UserError:
        return False
    return True


def run(protocols: Sequence[str], model: str, given: Mapping[str, Any], record: bool = False) -> int:
    """Measure all; one line each at the end. A protocol that cannot run is reported and the others go on."""
    rest = {k: v for k, v in given.items() if k != "only"}
    print(plan(protocols, model, given))
    lines, failed = [], 0
    for name in protocols:
        try:
            path = evaluate(name, model, rest, record=record, also=protocols)
            lines.append(f"  {name:<28} {summary(records.read(path).metrics)}\n  {'':<28} {path}")
        except UserError as error:
            failed += 1
            lines.append(f"  {name:<28} error: {error}")
    print("\n".join([model, *lines]))
    print("next: python -m results tables")
    return 2 if failed else 0


def plan(protocols: Sequence[str], model: str, given: Mapping[str, Any]) -> str:
    """What would run: passes over images, features on disk, time (from a timed batch of this model on this machine)."""
    settings = Settings.of({k: v for k, v in given.items() if k != "only"})
    wanted: dict[tuple[str, str, str], tuple[Task, dict[str, FeatureRequest]]] = {}
    lines, before, trained = [], 0, 0
    for name in protocols:
        task = Task.of(name, model, settings if len(protocols) == 1 else settings.plain)
        done = task.measured(task.out / "measured") is not None
        before += done
        lines.append(f"  {task.protocol.name:<34} {'measured already' if done else task.protocol.title}")
        if done:
            continue
        features = task.features(lambda: None, lambda line: None, ())
        for request in task.plan:
            key = features.key(request)
            if features.store.get(key) is None:
                place = (task.protocol.dataset, request.split, request.view)
                wanted.setdefault(place, (task, {}))[1][key] = request
        if not task.plan:
            images = images_of(task)
            trained += images
            lines.append(f"    reads {images:,} views of images one by one; nothing is kept of them")
    images, disk, seconds = 0, 0, 0.0
    for (dataset, split, view), (task, requests) in wanted.items():
        n = len(task.open(split))
        rate, width = timed(task, list(requests.values()))
        images, disk, seconds = images + n, disk + 4 * n * width, seconds + n / rate
        lines.append(
            f"  pass over {dataset}/{split} ({view}): {n:,} images, {width:,} numbers each, {rate:,.0f} images/s"
        )
    total = f"{len(wanted)} passes, {images:,} images, {disk / 2**20:,.1f} MB of features, about {duration(seconds)} for the features"
    if trained:
        total += f"; {trained:,} views in training"
    return "\n".join([f"{model}: {len(protocols)} protocols, {before} measured already", *lines, total])


def images_of(task: Task) -> int:
    """Views that a protocol trains on, as far as its settings say."""
    head = task.protocol.head
    n = len(task.open(task.protocol.splits.train))
    if "iterations" in head:
        return int(head["iterations"]) * int(head["batch"]) * task.protocol.seeds
    if head.get("percent") is not None:
        n = max(1, round(n * head["percent"] / 100))
    return int(head.get("epochs", 1)) * n * (task.protocol.seeds if task.protocol.kind == "finetune" else 1)


def timed(task: Task, requests: list[FeatureRequest]) -> tuple[float, int]:
    """(images per second, numbers per image) of one small batch of blank images of the right size."""
    t = transform_of(task.judged, task.protocol.transform)
    side = t["crop"] or t["resize"]
    size = data.describe(task.protocol.dataset).size if task.protocol.dataset in data.names() else None
    height, width = (side, side) if side else (n + 2 * t["pad"] for n in (size or [224, 224]))
    images = torch.zeros(32, t["channels"], height, width)
    compute = task.settings.compute
    network = task.judged.backbone.to(compute.device).eval()
    forward(network, images[:2], requests, compute)
    started = time.perf_counter()
    found = forward(network, images, requests, compute)
    return 32 / max(time.perf_counter() - started, 1e-6), sum(v.shape[1] for v in found.values())
