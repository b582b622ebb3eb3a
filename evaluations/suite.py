"""Every protocol that fits a model and the data at hand: planned first, done one by one, kept when interrupted.

A protocol fits when its data set can be opened here and the network has its layers and accepts its images. What is measured
is found again by its key, so the same command after an interruption continues where it stopped. Planning downloads nothing.
"""

from __future__ import annotations

import sys
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
from .features import FeatureRequest, embedded, forward, layers_of, transform_of
from .protocol import load, names
from .run import evaluate, summary
from .task import Settings, Task


def choose(model: str, given: Mapping[str, Any], download: bool = False) -> list[str]:
    """Protocols that fit a model, or those of them that match ``only=PATTERN``, whose data are here.

    Without a pattern: those on the data set that the model was trained on, and those that bring images to the size of its
    own card. What is left out is told with its reason, a line each. download: sets that were asked for by a pattern, or
    that the model was trained on, may be fetched or composed; otherwise nothing is.
    """
    settings = Settings.of({k: v for k, v in given.items() if k != "only"})
    judged = models.resolve(model, settings.pretrain_seed, settings.options.out, fetch=False)
    pattern, home = str(given.get("only", "*")), getattr(judged.recipe, "dataset", None)
    usable, left = [], []
    for name in names():
        wanted = load(name)
        near = pattern != "*" or wanted.dataset == home
        if not fnmatchcase(name, pattern) or not (near or wanted.transform.crop in {judged.input["crop"]} - {None}):
            continue
        try:
            _permit(Task.of(name, model, settings.plain, fetch=download and near))
            usable.append(name)
        except UserError as error:
            left.append(f"left out: {name}: {' '.join(str(error).split())}")
    print("\n".join(left), end="\n" if left else "", file=sys.stderr, flush=True)
    if not usable:
        what = f"matches {pattern!r}" if pattern != "*" else f"is on {home}"
        why = "its data or layers are not here (see above)" if left else f"no protocol {what}"
        raise UserError(f"{model}: nothing to run: {why}; see python -m evaluations list, and only=PATTERN")
    return usable


def _permit(task: Task) -> None:
    """Raise UserError when the model lacks a layer, or any split of the data cannot be opened."""
    layers_of(task.protocol, task.judged)
    _ = task.plan  # some kinds ask more of a model
    splits = task.protocol.splits
    for split in dict.fromkeys(s for s in (splits.train, splits.fit, splits.val, splits.test) if s):
        task.open(split)


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
    judged = models.resolve(model, settings.pretrain_seed, settings.options.out, fetch=False)
    if not judged.here:
        lines = [f"  {load(name).name:<34} {load(name).title}" for name in protocols]
        lines.append(f"its weights are not here, so passes and time are not known: python -m zoo fetch {judged.name}")
        return "\n".join([f"{model}: {len(protocols)} protocols", *lines])
    wanted: dict[tuple[str, str, str], tuple[Task, dict[str, FeatureRequest]]] = {}
    lines, before, trained = [], 0, 0
    for name in protocols:
        task = Task.of(name, model, settings if len(protocols) == 1 else settings.plain, fetch=False)
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
    found = embedded(task.judged, forward(network, images, requests, compute))
    return 32 / max(time.perf_counter() - started, 1e-6), sum(v.shape[1] for v in found.values())
