"""Every protocol that fits a model and the data at hand: planned first, done one by one, kept when interrupted.

A protocol fits when its data set can be opened here and the network accepts its images. What is measured is found again
by its key, so the same command after an interruption continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.progress import duration
from results import record as records
from zoo import data
from zoo.errors import UserError

from . import models
from .features import FeatureRequest, Features, Store, transform_of
from .protocol import Protocol, complete, load, names
from .run import Settings, evaluate, measured, plan_of, summary


def choose(model: str, given: Mapping[str, Any]) -> list[str]:
    """Protocols on the data set that the model was trained on, or on the folder given as ``data``; ``only=PATTERN`` limits."""
    rest = {k: v for k, v in given.items() if k != "only"}
    settings = Settings.of(rest)
    judged = models.resolve(model, settings.pretrain_seed, settings.options.out)
    pattern = str(given.get("only", "*"))
    home = getattr(judged.recipe, "dataset", None)
    found = [n for n in names() if fnmatchcase(n, pattern) and (pattern != "*" or load(n).dataset == home)]
    usable = [n for n in found if _at_hand(load(n), settings)]
    if not usable:
        what = f"protocols that match {pattern!r}" if pattern != "*" else f"protocols on {home}"
        raise UserError(f"{model}: no {what} have their data here; see python -m evaluations list, and only=PATTERN")
    return usable


def _at_hand(protocol: Protocol, settings: Settings) -> bool:
    try:
        data.open_source(protocol.dataset, protocol.splits.train, root=settings.options.data)
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
    rest = {k: v for k, v in given.items() if k != "only"}
    settings = Settings.of(rest)
    judged = models.resolve(model, settings.pretrain_seed, settings.options.out)
    store = Store(f"{settings.options.out}/features")
    wanted: dict[tuple[str, str, str], dict[str, FeatureRequest]] = {}
    lines, before = [], 0
    for name in protocols:
        protocol = complete(load(name, settings.overrides if len(protocols) == 1 else {}))
        done = measured(protocol, judged, settings, Path(settings.options.out) / "measured") is not None
        before += done
        lines.append(f"  {protocol.name:<30} {'measured already' if done else protocol.title}")
        if not done:
            probe = _probe(judged, protocol, store, settings)
            for request in plan_of(protocol, judged):
                key = probe.key(request)
                if store.get(key) is None:
                    place = (protocol.dataset, request.split, request.view)
                    wanted.setdefault(place, {})[key] = request
    images = disk = 0
    seconds = 0.0
    for (dataset, split, view), requests in wanted.items():
        n = len(data.open_source(dataset, split, root=settings.options.data))
        rate, width = timed(judged, dataset, split, list(requests.values()), settings)
        images, disk, seconds = images + n, disk + 4 * n * width, seconds + n / rate
        lines.append(
            f"  pass over {dataset}/{split} ({view}): {n:,} images, {width:,} numbers each, {rate:,.0f} images/s"
        )
    total = f"{len(wanted)} passes, {images:,} images, {disk / 2**20:,.1f} MB of features, about {duration(seconds)} for the features"
    return "\n".join([f"{judged.name}: {len(protocols)} protocols, {before} measured already", *lines, total])


def timed(
    judged: models.Model, dataset: str, split: str, requests: list[FeatureRequest], settings: Settings
) -> tuple[float, int]:
    """(images per second, numbers per image) of one small batch; images are blank where the split is a test split."""
    import torch

    from .features import forward
    from .protocol import Transform

    compute = settings.compute
    t = transform_of(judged, Transform())
    spec = data.describe(dataset)
    side = t["crop"] or t["resize"]
    height, width = (side, side) if side else (n + 2 * t["pad"] for n in (spec.size or [224, 224]))
    images = torch.zeros(32, t["channels"], height, width)
    network = judged.backbone.to(compute.device).eval()
    forward(network, images[:2], requests, compute)
    started = time.perf_counter()
    found = forward(network, images, requests, compute)
    return 32 / max(time.perf_counter() - started, 1e-6), sum(v.shape[1] for v in found.values())


def _probe(judged: models.Model, protocol: Protocol, store: Store, settings: Settings) -> Features:
    return Features(
        judged,
        protocol,
        store,
        compute=settings.compute,
        open_split=lambda split: data.open_source(protocol.dataset, split, root=settings.options.data),
        release=lambda: None,
    )
