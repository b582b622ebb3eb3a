"""`monitor={knn: 5}`: the quality of the features during a run, measured with labels that the training does not see.

At intervals process 0 passes a fixed part of the data through the backbone as an evaluation would, without views, and logs

    monitor_knn      % of the queries whose `knn` nearest images (cosine) vote for their class
    monitor_probe    % of the queries that ridge regression on the standardised features of the other images gets right
    monitor_rankme   RankMe of the features (engine/maths/quality.py); alone, where there are no labels
    monitor_seconds, monitor_share   what the look took, and the share of all looks in this session's time

to log.jsonl and TensorBoard. Nothing that is trained is touched: the bits of a run are those of a run without a monitor, and a
resumed run looks again at the steps that it repeats. The images are of the split that is trained on, or of another one that is no
test split: those stay sealed. Of a folder without a test part the images that evaluations hold out are left out.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor

import zoo
from engine import layout, rng
from engine.errors import Degenerate
from engine.maths import quality
from engine.maths.knn import search, vote
from engine.options import RunOptions
from zoo import data
from zoo.data.source import OWN, held_out
from zoo.errors import UserError, suggest
from zoo.precision import of_features
from zoo.schema import Strict

LOOKS = 10  # of a run, unless `every` says otherwise
QUERIES = 5  # one image of so many is a query, the others are the bank
PENALTY = 0.1  # of the probe, times the number of images
BLOCK = 256  # images passed at once


class MonitorSettings(Strict):
    """knn: neighbours that vote. images: how many are looked at, a fifth of them queries. every: epochs between looks (fractions
    too); null: ten looks in a run. split: of the data set; null: the one that is trained on."""

    knn: Annotated[int, Field(ge=1)] = 5
    images: Annotated[int, Field(ge=20)] = 2000
    every: Annotated[float, Field(gt=0)] | None = None
    split: str | None = None


@dataclass(frozen=True)
class Watched:
    """What is looked at: a source, the positions of its images (n,), the queries last, and how many of them are queries."""

    source: Any
    chosen: np.ndarray
    queries: int
    name: str

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(n,) int64 from 0 on; None where they are missing or all the same."""
        found = self.source.labels
        if found is None or (found[self.chosen] < 0).any():
            return None
        classes, numbers = np.unique(found[self.chosen], return_inverse=True)
        return numbers.astype(np.int64) if len(classes) > 1 else None


def settings_of(given: dict[str, Any]) -> MonitorSettings:
    """Raises UserError that names the word and what may stand there."""
    try:
        return MonitorSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"monitor.{name}: unknown{suggest(name, MonitorSettings.model_fields) or ';'} there are {', '.join(MonitorSettings.model_fields)}"
            ) from None
        raise UserError(f"monitor.{name}={first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    except TypeError:
        raise UserError(f"monitor={given}: names and values, for example monitor={{knn: 5}}") from None


def watched(settings: MonitorSettings, recipe: Any, options: RunOptions) -> Watched:
    """The images to look at, drawn by a fixed rule from the split.

    Raises UserError for a test split, or too few images.
    """
    spec = data.describe(recipe.dataset)
    split = settings.split or recipe.split
    judged = ["test", *(name for name, rule in spec.splits.items() if rule.read and name.startswith("val"))]
    try:
        with data.sealed(*judged, dataset=spec.name):
            source = data.open_source(recipe.dataset, split, root=options.data, max_bad=recipe.max_bad)
    except data.SealedError:
        raise UserError(
            f"monitor.split={split}: its images are those of a test split ({', '.join(judged)}), which evaluations open once; choose a part of the "
            "training images, for example monitor.split=train"
        ) from None
    allowed = np.arange(len(source))
    if spec.name in OWN and source.labelled:
        allowed = np.flatnonzero(~held_out(source))
    chosen = allowed[rng.permutation(0, "monitor", 0, len(allowed))[: settings.images]]
    queries = len(chosen) // QUERIES
    if len(chosen) - queries <= settings.knn or not queries:
        raise UserError(
            f"monitor.knn={settings.knn}: {len(chosen)} images to look at, a fifth of them queries, are too few; lower it"
        )
    return Watched(source, chosen, queries, f"{recipe.dataset}/{split}")


def of(
    recipe: Any, options: RunOptions, method: Any, stream: Any, device: torch.device | str = "cpu"
) -> Monitor | None:
    """The monitor that ``options`` ask for, or None. UserError for wrong settings, before anything is computed."""
    if options.monitor is None:
        return None
    settings = settings_of(options.monitor)
    half = of_features(str(device), options.half_features) == "bfloat16"
    return Monitor(settings, watched(settings, recipe, options), recipe, method, stream, torch.device(device), half)


class Monitor:
    """Called by the loop's main process after steps that are `due`, with the step; gives the numbers for the log."""

    def __init__(
        self,
        settings: MonitorSettings,
        seen: Watched,
        recipe: Any,
        method: Any,
        stream: Any,
        device: torch.device,
        half: bool = False,
    ) -> None:
        self.half = half
        self.settings, self.seen, self.input, self.method, self.device = settings, seen, recipe.input, method, device
        self.total = stream.total_steps
        epochs = (
            settings.every
            if settings.every is not None
            else stream.total_steps / LOOKS / max(stream.steps_per_epoch, 1)
        )
        self.every = max(1, round(epochs * stream.steps_per_epoch))
        self.began, self.spent = time.perf_counter(), 0.0

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.total

    @property
    def text(self) -> str:
        """What will be looked at, and what it costs in passes: counted, not timed."""
        n, looks = len(self.seen.chosen), -(-self.total // self.every)
        what = (
            f"{self.settings.knn} nearest neighbours and a ridge probe on {self.seen.queries:,} queries"
            if self.seen.labels is not None
            else "no labels"
        )
        return f"monitor: {looks} looks at {n:,} images of {self.seen.name} ({what}, RankMe), every {self.every:,} steps: {looks * n:,} forward passes in all"

    def __call__(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        found = measures(self.features(), self.seen.labels, self.seen.queries, self.settings.knn)
        now = time.perf_counter()
        self.spent += now - began
        numbers = {**found, "seconds": now - began, "share": self.spent / max(now - self.began, 1e-9)}
        return {f"monitor_{name}": value for name, value in numbers.items()}

    @cached_property
    def pixels(self) -> Tensor:
        """(n, C, S, S) uint8: the images as an evaluation sees them, before they are normalised."""
        from torchvision import transforms as T

        steps = [*zoo.transforms(self.input).transforms[:-2], T.PILToTensor()]  # type: ignore[attr-defined]
        prepare = T.Compose(steps)
        images = [prepare(self.seen.source.image(int(i))) for i in self.seen.chosen]
        if len({image.shape for image in images}) > 1:
            raise UserError(
                "monitor: images have several sizes, and the recipe's input says none; set input.resize and input.crop"
            )
        return torch.stack(images)

    @torch.no_grad()
    def features(self) -> Tensor:
        """(n, D) float32 on the CPU, of the backbone in evaluation mode, which is left as it was."""
        backbone = self.method.backbone
        mean, std = (
            torch.tensor(list(v), device=self.device).view(-1, 1, 1) for v in (self.input.mean, self.input.std)
        )
        training = backbone.training
        backbone.eval()
        try:
            found = []
            for block in self.pixels.split(BLOCK):
                images = (block.to(self.device).float() / 255 - mean) / std
                images = layout.arranged(images, backbone, self.device)
                with torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext():
                    found.append(backbone(images).float().cpu())
        finally:
            backbone.train(training)
        return torch.cat(found)


# -- maths -------------------------------------------------------------------------------------------------------------------
def measures(z: Tensor, labels: np.ndarray | None, queries: int, k: int) -> dict[str, float]:
    """knn and probe in percent where there are labels (n,), and rankme, of features z (n, D) whose last rows are the queries; NaN for
    features that are not finite or all zero."""
    names = (["knn", "probe"] if labels is not None else []) + ["rankme"]
    if not z.isfinite().all():
        return dict.fromkeys(names, math.nan)
    found: dict[str, float] = {}
    if labels is not None:
        bank, asked = z[:-queries], z[-queries:]
        known, truth = (torch.as_tensor(part) for part in (labels[:-queries], labels[-queries:]))
        classes = int(labels.max()) + 1
        similarity, index = search(bank, asked, k)
        guesses = vote(similarity, known[index], classes, k, None).argmax(1)
        found["knn"] = 100 * float((guesses == truth).double().mean())
        found["probe"] = 100 * float((ridge(bank, known, asked, classes).argmax(1) == truth).double().mean())
    try:
        found["rankme"] = quality.rankme(z)
    except Degenerate:
        found["rankme"] = math.nan
    return found


def ridge(bank: Tensor, labels: Tensor, asked: Tensor, classes: int) -> Tensor:
    """(Q, classes) float64 scores: least squares on one-hot targets with an L2 penalty, on features standardised by the bank (N, D)."""
    bank, asked = bank.double(), asked.double()
    mean, sd = bank.mean(0), bank.std(0, correction=0)
    sd = (sd.square() + 1e-5 * sd.square().mean() + 1e-30).sqrt()
    x, q = (bank - mean) / sd, (asked - mean) / sd
    targets = F.one_hot(labels, classes).double()
    gram = x.T @ x + PENALTY * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    return q @ torch.linalg.solve(gram, x.T @ (targets - targets.mean(0))) + targets.mean(0)
