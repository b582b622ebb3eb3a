"""Which backbone for these images? Every model at hand on one folder, with ranks that ties share.

    python -m evaluations rank ~/flowers --models '*_fashion_mnist'
    python -m evaluations rank ~/flowers files=[dino.pth,moco.pth] by=ridge

With a folder for each class, models are ranked by nearest neighbours (knn_folder) on the images held out, or by=ridge by ridge
regression whose penalty is chosen on folds (ridge_folder); k-means against the classes (cluster_folder) stands beside them. Without
classes the measures of quality_folder are listed, which rank nothing across widths. A model's rank is one more than the number of
models that are better on the same images by McNemar's exact test at 5 %, Holm's correction over all pairs: what is not told apart
shares a rank. A model that takes images as they are (those of digits and Fashion-MNIST) is given images of another size resized and
cropped to that of its own data set. The cost is that of the network on one image of its own input size, on this machine.

Each measurement is kept: an interrupted command goes on. A model that cannot be measured is named with the reason, and the others
are ranked. The page and its numbers (index.html, rank.json) lie below ``out``/rank.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import zoo
from engine import checkpoint, layout
from engine.progress import duration
from results import record as records
from zoo import data
from zoo.errors import UserError

from .inputs import models
from .inputs.views import Views
from .measure import Settings, evaluate, say
from .scores import paired

QUALITY = ("rankme", "effective_rank", "alpha_req", "lidar", "uniformity", "alignment", "cluster_stability")
LABELLED = {"knn": "knn_folder", "ridge": "ridge_folder", "clusters": "cluster_folder"}
LEVEL = 0.05
LOOKED = 32  # images whose sizes are looked at
TIMED = 8  # images of a batch whose forward pass is timed


@dataclass(frozen=True)
class Cost:
    """What a model costs: milliseconds of the network for one image on this device, parameters, numbers of its output."""

    milliseconds: float
    parameters: int
    width: int


@dataclass
class Row:
    """A model on the folder: its records by protocol, and for each image held out whether it was right (N,)."""

    place: str
    found: dict[str, records.Record]
    correct: np.ndarray
    cost: Cost
    resized: dict[str, int] = field(default_factory=dict)  # changes to the model's preprocessing for this folder
    rank: int = 0

    def metric(self, protocol: str, name: str) -> records.Metric | None:
        return self.found[protocol].metrics.get(name) if protocol in self.found else None


@dataclass
class Ranking:
    """Everything that the table and the page show. by: the protocol that ranks; "" where there are no classes."""

    folder: str
    by: str
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # place -> why it could not be measured

    @property
    def labelled(self) -> bool:
        return bool(self.by)

    @property
    def load_line(self) -> str:
        place = self.rows[0].place
        return f"import zoo; backbone, change = zoo.load({place!r}), zoo.transforms({place!r})"


def rank(folder: str, given: Mapping[str, Any]) -> str:
    """The table, best first, the line that loads the first model, and where the page is.

    given: models=PATTERN, files=[…], by=knn|ridge, out=, device=, workers=, …
    """
    from . import rank_page

    rest = dict(given)
    pattern, files, by = str(rest.pop("models", "*")), rest.pop("files", None) or [], str(rest.pop("by", "knn"))
    if by not in ("knn", "ridge"):
        raise UserError(f"by={by}: knn or ridge")
    settings = Settings.of({**rest, "data": folder})
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder}: no such folder of images")
    source = data.open_source("folder", "train", root=folder, max_bad=settings.max_bad)
    labelled = source.labelled and int(source.shown.sum()) > 1
    protocols = tuple(LABELLED.values()) if labelled else ("quality_folder",)
    named = [str(file) for file in ([files] if isinstance(files, str) else files)]
    places = list(dict.fromkeys(at_hand(pattern, settings.options.out) + named))
    if not places:
        raise UserError(
            f"models={pattern}: no model at hand; pre-train one (python -m reproduce METHOD data={folder}), fetch released "
            "weights (python -m zoo fetch ID), or name files=[FILE]"
        )
    page = (
        Path(settings.options.out)
        / "rank"
        / f"{records.slug(Path(folder).expanduser().resolve().name)}-{key(source, places, by)}"
    )
    ranking = Ranking(folder, LABELLED[by] if labelled else "")
    measure(ranking, places, protocols, {**rest, "data": folder}, Costs(page / "costs.json", settings, some(source)))
    finish(ranking)
    lines = [labelled_table(ranking) if labelled else quality_table(ranking), *resizes(ranking), *refusals(ranking)]
    lines.append(f"page: {rank_page.write(ranking, page, settings)}")
    return "\n".join(lines + ([f"load it: {ranking.load_line}"] if labelled else []))


def key(source: Any, places: Sequence[str], by: str) -> str:
    """Ten digits for the images, the models and what ranks them."""
    return hashlib.sha256("\n".join([source.fingerprint, by, *places]).encode("utf-8", "surrogateescape")).hexdigest()[
        :10
    ]


def at_hand(pattern: str, out: str) -> list[str]:
    """Ids whose released weights are on this machine, and folders of finished runs below ``out``, by the pattern of their ids, or
    several with commas between them."""
    patterns, found = pattern.split(","), []
    for name in dict.fromkeys(name for one in patterns for name in zoo.models(one)):
        if zoo.entry(name).weights is not None and models.resolve(name, fetch=False).here:
            found.append(name)
    runs = sorted(p.parent for p in Path(out).glob("*/*/done.json") if (p.parent / "weights.pth").is_file())
    return found + [str(run) for run in runs if any(fnmatchcase(run.parent.name, p) for p in patterns)]


def measure(
    ranking: Ranking, places: Sequence[str], protocols: Sequence[str], given: Mapping[str, Any], costs: Costs
) -> None:
    """Fill rows and refusals; UserError when no model can be measured at all."""
    began = time.monotonic()
    for number, place in enumerate(places):
        spent = time.monotonic() - began
        left = f", about {duration(spent / number * (len(places) - number))} left" if number else ""
        say(f"{place}: model {number + 1} of {len(places)}{left}")
        try:
            resized = costs.resized(place)
            asked = {**resized, **given}
            found = {name: records.read(evaluate(name, place, asked, quiet=True, also=protocols)) for name in protocols}
            cost = costs.of(place)
        except UserError as error:
            say(f"{place}: left out: {error}")
            ranking.refused[place] = str(error)
            continue
        correct = np.zeros(0)
        if ranking.labelled:
            kept = Path(costs.out) / "predictions" / f"{found[ranking.by].predictions_sha256}.npz"
            correct = np.load(kept)["correct"]
        ranking.rows.append(Row(place, found, correct, cost, resized))
    if not ranking.rows:
        first, reason = next(iter(ranking.refused.items()))
        raise UserError(f"no model could be measured; {first}: {reason}")


def some(source: Any) -> list[Image.Image]:
    """The first image and LOOKED - 1 others, evenly spread."""
    return [source.image(int(i)) for i in np.unique(np.linspace(0, len(source) - 1, LOOKED).astype(int))]


class Costs:
    """Costs of models, kept by weights and device in a file, so that the same command prints the same numbers.

    images: some of the folder's, the first of which gives the size at which models are timed
    """

    def __init__(self, path: Path, settings: Settings, images: Sequence[Image.Image]) -> None:
        self.path, self.settings, self.out, self.images = path, settings, settings.options.out, images
        self.known = checkpoint.read_json(path) if path.is_file() else {}

    def resized(self, place: str) -> dict[str, int]:
        """Settings that bring these images to the size of a model's own data set; none where it has a crop, or they have that size."""
        model = models.resolve(place, None, self.out, form=self.settings.form)
        name = getattr(model.recipe, "dataset", None)
        size = data.describe(name).size if name in data.names() else None
        if model.input["crop"] or not size or all(image.size == (size[1], size[0]) for image in self.images):
            return {}
        side = min(size) + 2 * int(model.input["pad"])
        return {"transform.pad": 0, "transform.resize": side, "transform.crop": side}

    def of(self, place: str) -> Cost:
        model = models.resolve(place, None, self.out, form=self.settings.form)
        device = self.settings.compute.device
        network = hashlib.sha256(json.dumps([model.description, model.input], sort_keys=True).encode()).hexdigest()[:8]
        name = f"{model.weights_sha256} {network} {device.type}"
        if name not in self.known:
            parameters = sum(p.numel() for p in model.backbone.parameters())
            self.known[name] = [milliseconds(model, device, self.shape(place, model)), parameters, model.dim]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(self.path, json.dumps(self.known, indent=1) + "\n")
        return Cost(*self.known[name])

    def shape(self, place: str, model: models.Model) -> tuple[int, int]:
        """(height, width) of the first image after the model's preprocessing."""
        changes = {name.partition(".")[2]: value for name, value in self.resized(place).items()}
        height, width = Views({**model.input, **changes}).pixels(self.images[0], 0).shape[1:3]
        return height, width


@torch.no_grad()
def milliseconds(model: models.Model, device: torch.device, shape: tuple[int, int]) -> float:
    """Of the network, for one image (height, width) of a batch of TIMED: the median of three passes, one before them left out."""
    backbone = model.backbone.to(device).eval()
    images = layout.arranged(torch.zeros(TIMED, int(model.input["channels"]), *shape), backbone, device)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        backbone(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - began) / TIMED)
    return statistics.median(times[1:])


# -- ranks -------------------------------------------------------------------------------------------------------------------
def ranks(correct: Sequence[np.ndarray]) -> list[int]:
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


def finish(ranking: Ranking) -> None:
    """Ranks, and rows in their order: best first; without classes as they were found."""
    if not ranking.labelled:
        return
    for row, number in zip(ranking.rows, ranks([row.correct for row in ranking.rows]), strict=True):
        row.rank = number
    ranking.rows.sort(key=lambda row: (row.rank, -row.found[ranking.by].metrics["top1"].value, row.cost.milliseconds))


# -- the table ---------------------------------------------------------------------------------------------------------------
def labelled_table(ranking: Ranking) -> str:
    head = f"{'rank':>4}  {'kNN':>6} {'95 % interval':>15}  {'ridge':>6} {'95 % interval':>15}  {'ANMI':>6}  {'ms/image':>9}  model"
    lines = [head]
    for row in ranking.rows:
        each = []
        for protocol in (LABELLED["knn"], LABELLED["ridge"]):
            top1 = row.found[protocol].metrics["top1"]
            low, high = top1.ci or (top1.value, top1.value)
            each.append(f"{top1.value:6.1f} {low:7.1f} {high:7.1f}")
        anmi = row.metric(LABELLED["clusters"], "anmi")
        shown = "-" if anmi is None else f"{anmi.value:.1f}"
        lines.append(f"{row.rank:>4}  {each[0]}  {each[1]}  {shown:>6}  {row.cost.milliseconds:9.2f}  {row.place}")
    lines.append(
        f"{len(ranking.rows[0].correct):,} images held out; models of one rank are not told apart on them by "
        f"{'nearest neighbours' if ranking.by == LABELLED['knn'] else 'ridge regression'}"
    )
    return "\n".join(lines)


def quality_table(ranking: Ranking) -> str:
    lines = [
        "no classes: these measures compare models of one width, and rank none",
        "  ".join(f"{name:>17}" for name in QUALITY) + f"  {'width':>6}  {'ms/image':>9}  model",
    ]
    for row in ranking.rows:
        metrics = [row.metric("quality_folder", name) for name in QUALITY]
        values = [f"{'-':>17}" if m is None else f"{m.value:17.3f}" for m in metrics]
        lines.append("  ".join(values) + f"  {row.cost.width:6d}  {row.cost.milliseconds:9.2f}  {row.place}")
    return "\n".join(lines)


def refusals(ranking: Ranking) -> list[str]:
    return [f"left out: {place}: {reason}" for place, reason in ranking.refused.items()]


def resizes(ranking: Ranking) -> list[str]:
    """A line for each size to which images were brought, with the number of models."""
    sides = [row.resized["transform.crop"] for row in ranking.rows if row.resized]
    return [
        f"images resized to {side} x {side} pixels, the size of its own data set, for {sides.count(side)} of {len(ranking.rows)} models"
        for side in sorted(set(sides))
    ]
