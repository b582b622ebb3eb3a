"""Few labels: a linear classifier on frozen features of k images per class, or of some percent of each class.

Protocols  fewlabel_*.yaml
Metric     top1: mean and spread over independent draws of the labelled images, all read on the test split once
Deviates   fine-tuning of the whole network with few labels is another evaluation (finetune.py)

All draws are trained side by side: a draw is a row of sample weights over the union of the drawn images. The settings are
fixed in the protocol, because a handful of labels leaves nothing to choose on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from zoo.errors import UserError

from .. import checks
from ..inputs.features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from ..inputs.models import Model
from ..inputs.splits import per_class, percent
from ..probes import batched
from ..protocol import Kind, NotNegative, Positive, Protocol, head_of
from ..result import Result, beside_top1, rates
from .linear import Head as LinearHead

KIND = Kind(classifies=True, grid={"lr": Positive, "weight_decay": NotNegative}, needed=("lr",))


class Head(LinearHead):
    """A linear head, the number of labelled images (exactly one of the two ways), and the number of draws."""

    per_class: Annotated[int, Field(ge=1)] | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    draws: Annotated[int, Field(ge=1)] = 10
    snapshots: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_amount(self) -> Head:
        if (self.per_class is None) == (self.percent is None):
            raise ValueError("give exactly one of head.per_class and head.percent (set the other to null)")
        return self


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    return plan_requests(protocol, model, [protocol.splits.train, protocol.splits.test])


def seeded(protocol: Protocol) -> bool:
    """Whether ``seeds`` repeats the measurement."""
    return False


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError when a class has too few images, and for settings of a linear probe that few labels do not take."""
    head = head_of(protocol)
    if head.solver != "sgd" or head.classifier != "linear":
        raise UserError(
            f"{protocol.id}: head.solver={head.solver}, head.classifier={head.classifier}: few labels take sgd and linear"
        )
    draw(checks.labels(protocol, protocol.splits.train, open(protocol.splits.train)), head, 0)
    checks.labels(protocol, protocol.splits.test, open(protocol.splits.test))


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)
    train, test = protocol.splits.train, protocol.splits.test
    labels, classes = features.labels(train), features.classes(train)
    layers = layers_of(protocol, features.model)
    draws = draw(labels, head, seed)
    rows = np.unique(np.concatenate(draws))  # only these labels are looked at
    weights = np.stack([np.isin(rows, d) for d in draws]).astype(np.float32)

    x = features.get(FeatureRequest(train, layers[0], pool_of(protocol, layers[0])))[rows]
    settings = head.settings(seed)
    settings.batch = max(settings.batch, len(rows))  # every step sees every labelled image of every draw
    grid = batched.Grid((protocol.grid["lr"][0],), (protocol.grid.get("weight_decay", [0.0])[0],))
    trained = batched.train(x, labels[rows], weights, grid, settings, classes=classes, device=features.compute.device)
    features.finish_selection(None)

    truth = features.labels(test)
    x = features.get(FeatureRequest(test, layers[0], pool_of(protocol, layers[0])))
    guesses = [batched.all_scores(x, trained, fold=f)[:, 0].argmax(1).cpu().numpy() for f in range(len(draws))]
    hits = np.stack([g == truth for g in guesses])
    top1 = rates(
        [100 * float(h.mean()) for h in hits], len(truth), note=f"{len(draws)} draws of {len(draws[0])} labels"
    )
    return Result({"top1": top1, **beside_top1(np.stack(guesses), truth, labels)}, guesses[0], hits.mean(0))


def draw(labels: np.ndarray, head: Head, seed: int) -> list[np.ndarray]:
    """Sorted indices of the labelled images, one array per draw."""
    try:
        if head.per_class is not None:
            return [per_class(labels, head.per_class, seed, d) for d in range(head.draws)]
        assert head.percent is not None
        return [percent(labels, head.percent, seed, d) for d in range(head.draws)]
    except ValueError as error:
        raise UserError(str(error)) from None
