"""Which backbone for these images? Every model at hand on one folder, with ranks that ties share.

    python -m evaluations rank ~/flowers models='*_fashion_mnist'

With a folder for each class, models are ranked by nearest neighbours (knn_folder) on the images held out, and ridge regression
stands beside it; without classes the measures of quality_folder are listed, which rank nothing across widths. A model's rank
is one more than the number of models that are better on the same images by McNemar's exact test at 5 %, Holm's correction
over all pairs: what is not told apart shares a rank. Each measurement is kept: an interrupted command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from engine.progress import duration
from results import record as records
from zoo import data
from zoo.errors import UserError

from .inputs import models
from .measure import Settings, evaluate, say
from .scores import paired

SHOWN = ("rankme", "effective_rank", "alpha_req", "lidar", "uniformity", "alignment", "cluster_stability")
LEVEL = 0.05


@dataclass
class Row:
    """A model on the folder: its records by protocol, and for each image held out whether it was right (N,)."""

    place: str
    found: dict[str, records.Record]
    correct: np.ndarray
    rank: int = 0


def rank(folder: str, given: Mapping[str, Any]) -> str:
    """The table, best first, and the line that loads the first model. given: models=PATTERN, files=[…], out=, device=, …"""
    rest = dict(given)
    pattern, files = str(rest.pop("models", "*")), rest.pop("files", None) or []
    settings = Settings.of({**rest, "data": folder})
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder}: no such folder of images")
    source = data.open_source("folder", "train", root=folder, max_bad=settings.max_bad)
    labelled = source.labelled and int(source.shown.sum()) > 1
    protocols = ("knn_folder", "ridge_folder") if labelled else ("quality_folder",)
    places = at_hand(pattern, settings.options.out) + [
        str(file) for file in ([files] if isinstance(files, str) else files)
    ]
    if not places:
        raise UserError(
            f"models={pattern}: no model at hand; pre-train one (python -m reproduce METHOD data={folder}), fetch released "
            "weights (python -m zoo fetch ID), or name files=[FILE]"
        )
    rows, began = [], time.monotonic()
    for number, place in enumerate(places):
        left = (
            f", about {duration((time.monotonic() - began) / number * (len(places) - number))} left" if number else ""
        )
        say(f"{place}: model {number + 1} of {len(places)}{left}")
        found = {name: records.read(evaluate(name, place, {**rest, "data": folder}, quiet=True)) for name in protocols}
        kept = Path(settings.options.out) / "predictions" / f"{found[protocols[0]].predictions_sha256}.npz"
        rows.append(Row(place, found, np.load(kept)["correct"] if labelled else np.zeros(0)))
    return labelled_table(rows) if labelled else quality_table(rows)


def at_hand(pattern: str, out: str) -> list[str]:
    """Ids whose released weights are on this machine, and folders of finished runs below ``out``, by the pattern of their ids."""
    found = []
    for name in zoo.models(pattern):
        if zoo.entry(name).weights is not None and models.resolve(name, fetch=False).here:
            found.append(name)
    runs = sorted(p.parent for p in Path(out).glob("*/*/done.json") if (p.parent / "weights.pth").is_file())
    return found + [str(run) for run in runs if fnmatchcase(run.parent.name, pattern)]


def ranks(correct: list[np.ndarray]) -> list[int]:
    """A rank for each model from whether it was right about each image, (N,) of 0 and 1: 1 + how many are better beyond chance."""
    pairs = list(combinations(range(len(correct)), 2))
    tests = [paired(correct[a], correct[b]) for a, b in pairs]
    better = [0] * len(correct)
    for at, k in enumerate(np.argsort([t.p_value for t in tests], kind="stable")):
        if tests[k].p_value >= LEVEL / (len(pairs) - at):
            break  # Holm: what follows is not told apart either
        a, b = pairs[k]
        better[b if tests[k].difference > 0 else a] += 1
    return [1 + count for count in better]


def labelled_table(rows: list[Row]) -> str:
    for row, number in zip(rows, ranks([row.correct for row in rows]), strict=True):
        row.rank = number
    rows.sort(key=lambda row: (row.rank, -row.found["knn_folder"].metrics["top1"].value))
    lines = [f"{'rank':>4}  {'kNN':>6} {'95 % interval':>15}  {'ridge':>6}  {'seconds':>8}  model"]
    for row in rows:
        top1, ridge = (row.found[name].metrics["top1"] for name in ("knn_folder", "ridge_folder"))
        low, high = top1.ci or (top1.value, top1.value)
        seconds = sum(found.provenance.seconds for found in row.found.values())
        lines.append(
            f"{row.rank:>4}  {top1.value:6.1f} {low:7.1f} {high:7.1f}  {ridge.value:6.1f}  {seconds:8.1f}  {row.place}"
        )
    return "\n".join(
        [
            *lines,
            f"{len(rows[0].correct):,} images held out; models of one rank are not told apart on them",
            load_line(rows[0]),
        ]
    )


def quality_table(rows: list[Row]) -> str:
    lines = [
        "no classes: these measures compare models of one width, and rank none",
        "  ".join(f"{name:>17}" for name in SHOWN) + "  model",
    ]
    for row in rows:
        found = row.found["quality_folder"].metrics
        values = [f"{found[name].value:17.3f}" if name in found else f"{'-':>17}" for name in SHOWN]
        lines.append("  ".join(values) + f"  {row.place}")
    return "\n".join(lines)


def load_line(row: Row) -> str:
    return f"load it: import zoo; backbone, change = zoo.load({row.place!r}), zoo.transforms({row.place!r})"
