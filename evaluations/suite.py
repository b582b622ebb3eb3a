"""Every protocol that fits a model and the data at hand: planned first, done one by one, kept when interrupted.

A protocol fits when its data set can be opened here and the network has its layers and accepts its images. What is measured
is found again by its key, so the same command after an interruption continues where it stopped. Planning downloads nothing.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from engine import layout
from engine.progress import duration
from results import record as records
from zoo.data.locate import DataMissing
from zoo.errors import UserError

from .inputs.features import FeatureRequest, embedded, forward, layers_of, transform_of
from .inputs.views import Views, stacked
from .measure import Measurement, Settings, evaluate, summary
from .protocol import head_of, load, module_of, names

LOOKED = 16  # images whose size a plan looks at, where only the images say it


def choose(model: str, given: Mapping[str, Any], download: bool = False) -> list[str]:
    """Protocols that fit a model, or those of them that match ``only=PATTERN``, whose data are here.

    Without a pattern: those on the data set that the model was trained on, and those that bring images to the size of its
    own card. What is left out is told with its reason, a line each. download: sets that were asked for by a pattern, or
    that the model was trained on, may be fetched or composed; otherwise nothing is.
    """
    settings = Settings.of({k: v for k, v in given.items() if k != "only"})
    network = settings.model(model, fetch=False)
    pattern, home = str(given.get("only", "*")), getattr(network.recipe, "dataset", None)
    usable, left = [], []
    for name in names():
        wanted = load(name)
        near = pattern != "*" or wanted.dataset == home
        if not fnmatchcase(name, pattern) or not (near or wanted.transform.crop in {network.input["crop"]} - {None}):
            continue
        try:
            _permit(Measurement.of(name, model, settings.plain, fetch=download and near))
            usable.append(name)
        except UserError as error:
            left.append(f"left out: {name}: {' '.join(str(error).split())}")
    print("\n".join(left), end="\n" if left else "", file=sys.stderr, flush=True)
    if not usable:
        what = f"matches {pattern!r}" if pattern != "*" else f"is on {home}"
        why = "its data or layers are not here (see above)" if left else f"no protocol {what}"
        raise UserError(f"{model}: nothing to run: {why}; see python -m evaluations list, and only=PATTERN")
    return usable


def _permit(measurement: Measurement) -> None:
    """Raise UserError when the model lacks a layer, any split of the data cannot be opened, or a run would refuse."""
    layers_of(measurement.protocol, measurement.model)
    splits = measurement.protocol.splits
    for split in dict.fromkeys(s for s in (splits.train, splits.fit, splits.val, splits.test) if s):
        measurement.open(split)
    measurement.check()


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
    """What would run: passes over images, features on disk, time (from timed batches of this model on this machine; reading
    images is not in it). Raises UserError for whatever a run would refuse."""
    settings = Settings.of({k: v for k, v in given.items() if k != "only"})
    network = settings.model(model, fetch=False)
    fitting, absent = [], []
    for name in protocols:
        try:
            measurement = Measurement.of(name, model, settings if len(protocols) == 1 else settings.plain, fetch=False)
            measurement.check()
            fitting.append(measurement)
        except (
            DataMissing
        ) as error:  # data have to be brought here, as weights have to; a path that was given must exist
            if network.here or settings.options.data is not None or "dataset" in given:
                raise
            absent.append(f"  {name}: its data are not here: {error}")
    if not network.here:
        lines = [f"  {load(name).name:<34} {load(name).title}" for name in protocols] + absent
        how = (
            f"python -m zoo fetch {network.name}"
            if network.pretrain_seed is None
            else "a run makes them first, in seconds"
        )
        lines.append(f"its weights are not here, so passes and time are not known: {how}")
        return "\n".join([f"{model}: {len(protocols)} protocols", *lines])
    wanted: dict[tuple[str, str, str], tuple[Measurement, dict[str, FeatureRequest]]] = {}
    lines, before, training = [], 0, 0.0
    for measurement in fitting:
        done = measurement.measured(measurement.out / "measured") is not None
        before += done
        lines.append(f"  {measurement.protocol.name:<34} {'measured already' if done else measurement.protocol.title}")
        if done:
            continue
        for request in measurement.plan:
            key = measurement.key(request)
            if measurement.store.get(key) is None:
                place = (measurement.protocol.dataset, request.split, request.view)
                wanted.setdefault(place, (measurement, {}))[1][key] = request
        estimate = getattr(module_of(measurement.protocol.kind), "estimate", None)
        if estimate is not None:
            line, spent = estimate(measurement)
            training += spent
            lines.append(line)
        elif (
            not measurement.plan and measurement.protocol.kind != "clustering"
        ):  # labels that are already there are only counted
            learned, scored = views_of(measurement)
            forward_rate, both_rate = timed_training(measurement)
            spent = learned / both_rate + scored / forward_rate
            training += spent
            lines.append(
                f"    trains on {learned:,} views and scores {scored:,}, about {duration(spent)}; no features are kept of them"
            )
    images, disk, seconds = 0, 0, 0.0
    for (dataset, split, view), (measurement, requests) in wanted.items():
        n = len(measurement.open(split))
        rate, width = timed(measurement, list(requests.values()))
        images, disk, seconds = images + n, disk + 4 * n * width, seconds + n / rate
        lines.append(
            f"  pass over {dataset}/{split} ({view}): {n:,} images, {width:,} numbers each, {rate:,.0f} images/s"
        )
    total = f"{len(wanted)} passes, {images:,} images, {disk / 2**20:,.1f} MB of features, about {duration(seconds)} for the features"
    if training:
        total += f" and {duration(training)} for what trains on images"
    return "\n".join([f"{model}: {len(protocols)} protocols, {before} measured already", *lines, total])


def views_of(measurement: Measurement) -> tuple[int, int]:
    """Views that a protocol without kept features trains on, and those it only scores, trials of its grid included."""
    protocol, head, splits = measurement.protocol, head_of(measurement.protocol), measurement.protocol.splits
    source = {s: measurement.open(s) for s in dict.fromkeys((splits.train, splits.fit, splits.val, splits.test)) if s}
    count = {s: len(opened) for s, opened in source.items()}
    chooses = protocol.select.on == "val"
    trials = math.prod(len(values) for values in protocol.grid.values()) if chooses else 0
    fit, val, test = splits.fit or splits.train, count.get(str(splits.val), 0), count[splits.test]
    seeds = protocol.seeds
    if protocol.kind == "voc":
        return (seeds + trials) * head.iterations * head.batch, max(1, head.views) * (seeds * test + trials * val)
    if protocol.kind == "finetune":

        def labelled(split: str) -> int:
            if head.per_class is not None:
                return int(head.per_class) * len(source[split].classes)
            return count[split] if head.percent is None else max(1, round(count[split] * head.percent / 100))

        learned = head.epochs * (seeds * labelled(splits.train) + trials * labelled(fit))
        return learned, seeds * max(1, head.snapshots) * test + trials * val
    return head.epochs * (count[splits.train] + chooses * (fit != splits.train) * count[fit]), chooses * val + test


def timed_training(measurement: Measurement) -> tuple[float, float]:
    """Images per second of a forward pass, and of a step of training: with a backward pass unless the network is frozen."""
    images = blank(measurement, 16)
    compute = measurement.compute
    network = copy.deepcopy(measurement.model.backbone).to(compute.device).eval()
    deep = measurement.protocol.kind == "finetune" or getattr(head_of(measurement.protocol), "train", None) == "all"
    spent = {}
    for learns in (False, deep):
        with torch.set_grad_enabled(learns):
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                out = network(layout.arranged(images, network, compute.device))
                if learns:
                    out.sum().backward()
                spent[learns] = max(time.perf_counter() - started, 1e-6)
    return len(images) / spent[False], len(images) / spent[deep]


def timed(measurement: Measurement, requests: list[FeatureRequest]) -> tuple[float, int]:
    """(images per second, numbers per image) of one small batch of blank images of the right size."""
    images = blank(measurement, 32)
    compute = measurement.compute
    network = measurement.model.backbone.to(compute.device).eval()
    forward(network, images[:2], requests, compute)
    started = time.perf_counter()
    found = embedded(measurement.model, forward(network, images, requests, compute))
    sum(v.sum().item() for v in found.values())  # an accelerator works on its own: wait for it
    return 32 / max(time.perf_counter() - started, 1e-6), sum(v.shape[1] for v in found.values())


def blank(measurement: Measurement, count: int) -> torch.Tensor:
    """(count, C, H, W) zeros of the size that the protocol gives this network.

    Without a crop the images say it: some that the protocol learns from are read. Raises UserError, as a run would, where they have
    several sizes.
    """
    t = transform_of(measurement.model, measurement.protocol.transform)
    if side := t["crop"]:
        return torch.zeros(count, t["channels"], side, side)
    splits, views = measurement.protocol.splits, Views(t)
    source = measurement.open(str(splits.train or splits.test))
    looked = sorted({i * len(source) // LOOKED for i in range(LOOKED)})
    seen = stacked([views.pixels(source.image(i), i) for i in looked])
    return torch.zeros(count, t["channels"], *seen.shape[2:4])
