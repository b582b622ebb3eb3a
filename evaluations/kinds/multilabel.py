"""Linear classifiers with several labels per image (VOC07), on any layers, as DeeperCluster trains them.

Protocols  linear_voc07_deepercluster, linear_conv_scenes
Metrics    map, map11          mean average precision, step-wise and with eleven points; of each layer where there are several
           map_best_on_test    the best rate and epoch on the test split, as papers print it; never ranked

Random views, logistic losses of all classes summed, entries marked 255 (difficult objects) left out; one centre crop in the
end. Rates and decays are given, or chosen by training on ``splits.fit`` and scoring ``splits.val``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from results.record import Metric, Selection

from .. import checks
from ..inputs.features import FeatureRequest, Features
from ..inputs.models import Model
from ..probes import sgd
from ..protocol import Kind, NotNegative, Positive, Protocol, head_of
from ..result import Result, precision
from ..scores import mean_average_precision
from . import voc
from .linear import Head as LinearHead
from .linear import check_head, grid_of
from .voc import multilabel_loss

KIND = Kind(
    classifies=True,
    grid={"lr": Positive, "weight_decay": NotNegative},
    needed=("lr",),
    selects=("val", "none"),
    metric="map",
    forms=("faithful",),
    layers="several",
)


class Head(LinearHead):
    """As of a linear probe."""


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    return []  # reads images


def seeded(protocol: Protocol) -> bool:
    """Whether ``seeds`` repeats the measurement."""
    return False


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError unless every split has several labels per image, and some positive one."""
    check_head(protocol, model)
    voc.check(protocol, model, open)


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head, grid, test = head_of(protocol), grid_of(protocol, seed), protocol.splits.test
    chosen: dict[str, int] = {}
    selection = None
    if protocol.select.on == "val":
        fit, val = protocol.splits.fit or protocol.splits.train, str(protocol.splits.val)
        trial = _train(protocol, head, features, fit, grid, seed)
        cells = [(-1, cell, None) for cell in range(len(grid))]
        found = sgd.score(features, val, trial, "centre", cells)
        scores = {
            layer: [mean_average_precision(s, targets_of(protocol, features, val)) for s in f]
            for layer, f in found.items()
        }
        chosen = {layer: int(np.argmax(s)) for layer, s in scores.items()}
        selection = Selection(
            on=f"{val}, trained on {fit}",
            metric="map",
            chosen={layer: grid.cells[c] for layer, c in chosen.items()},
            grid={
                layer: [{**c, "score": round(v, 4)} for c, v in zip(grid.cells, s, strict=True)]
                for layer, s in scores.items()
            },
        )
    trained = _train(protocol, head, features, protocol.splits.train, grid, seed)
    features.finish_selection(selection)

    truth = targets_of(protocol, features, test)
    which = [(-1, cell, epoch) for epoch in (None, *trained.kept) for cell in range(len(grid))]
    metrics: dict[str, Metric] = {}
    for layer, each in sgd.score(features, test, trained, protocol.transform.test, which).items():
        suffix = f"_{layer}" if len(trained.heads) > 1 else ""
        mine = each[chosen.get(layer, 0)]
        metrics[f"map{suffix}"] = precision([mine], truth)
        metrics[f"map11{suffix}"] = precision([mine], truth, points=11)
        best = max(each, key=lambda s: mean_average_precision(s, truth))
        note = "best rate and epoch on the test split"
        metrics[f"map_best_on_test{suffix}"] = precision([best], truth, style="paper", note=note)
    return Result(metrics, mine)


def _train(protocol: Protocol, head: Any, features: Features, split: str, grid: Any, seed: int) -> sgd.Trained:
    """Heads of every layer and cell on one split; trials keep a checkpoint of their own."""
    targets = targets_of(protocol, features, split)
    here = protocol.model_copy(update={"splits": protocol.splits.model_copy(update={"train": split})})
    return sgd.train(here, head, features, targets, np.ones((1, len(targets)), np.float32), grid, seed, multilabel_loss)


def targets_of(protocol: Protocol, features: Features, split: str) -> np.ndarray:
    """(N, C) uint8 in {0, 1, 255}."""
    return checks.targets(protocol, split, features.source(split))
