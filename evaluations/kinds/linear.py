"""Linear probe on frozen features: every rate, decay, fold, seed and layer in one run; chosen on folds; test read once.

Protocols  linear_*.yaml
Metrics    top1                the head chosen on folds, trained on the whole training split, read once on the test split
           top1_best_on_test   the best head at the best epoch on the test split, as many papers print it; never ranked
           with several layers each has its own: top1_conv1, top1_conv2, ...
Deviates   fast form: features of fixed centre crops, cached; the faithful forms draw fresh crops each epoch
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from results.record import Metric, Selection
from zoo.errors import UserError
from zoo.schema import Strict

from .. import checks
from ..inputs.features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from ..inputs.models import Model
from ..inputs.splits import deepercluster_folds, stratified_folds
from ..probes import batched
from ..protocol import Kind, NotNegative, Positive, Protocol, head_of
from ..result import Result, beside_top1, rate, rates

KIND = Kind(
    classifies=True,
    grid={"lr": Positive, "weight_decay": NotNegative, "penalty": NotNegative},
    selects=("folds", "val", "none"),
    forms=("fast", "faithful"),
    layers="several",
)


class ScheduleOptions(Strict):
    """See heads.Schedule."""

    name: Literal["cosine", "steps", "table", "bottou", "constant"] = "cosine"
    per_step: bool = False
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: list[int] = Field(default_factory=list)
    factor: float = 0.1
    rates: list[float] = Field(default_factory=list)

    @model_validator(mode="after")
    def _table(self) -> ScheduleOptions:
        if (self.name == "table") != bool(self.rates) or self.rates and len(self.rates) != len(self.milestones) + 1:
            raise ValueError("schedule.rates belongs to a table and has one number more than schedule.milestones")
        return self

    def build(self) -> batched.Schedule:
        given = self.model_dump(exclude={"rates"})
        return batched.Schedule(**{**given, "milestones": tuple(self.milestones), "values": tuple(self.rates)})


Classifier = Literal["linear", "mlp", "nin_block", "alexnet_conv4", "alexnet_conv5"]


class Head(Strict):
    """Settings under ``head`` of a linear protocol; rates and decays stand under ``grid``.

    norm    before the linear layer: none; batch, a BatchNorm without affine; batch_affine, with. The fast form
            standardises features with the training split's statistics instead of either
    nesterov    faithful form: Nesterov's momentum
    trunk   faithful form: the frozen backbone's batch norm in eval mode, or in train mode as PIC's and SeLa's code has it
    snapshots   evenly spaced epochs that are kept for "best on test"
    lr_of   faithful form: layers whose rate is not the grid's, where authors give each layer its own
    classifier  faithful form: linear, or one of nonlinear.py's, for every layer or layer by layer
    """

    solver: Literal["sgd", "ridge"] = "sgd"
    epochs: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: ScheduleOptions = ScheduleOptions()
    norm: Literal["none", "batch", "batch_affine"] = "batch"
    init: Literal["default", "normal", "xavier", "he_out"] = "normal"
    init_std: float = 0.01
    nesterov: bool = False
    trunk: Literal["eval", "train"] = "eval"
    drop_last: bool = False
    snapshots: Annotated[int, Field(ge=0)] = 10
    lr_of: dict[str, Positive] = Field(default_factory=dict)
    classifier: Classifier | dict[str, Classifier] = "linear"

    @model_validator(mode="after")
    def _warm(self) -> Head:
        if self.schedule.warmup >= self.epochs:
            raise ValueError(f"schedule.warmup={self.schedule.warmup}: below head.epochs={self.epochs}")
        return self

    def classifier_of(self, layer: str) -> Classifier:
        """The classifier's name for one layer. Raises UserError where layers are named and this one is not."""
        if not isinstance(self.classifier, dict):
            return self.classifier
        if layer not in self.classifier:
            raise UserError(f"head.classifier names none for layer {layer!r}; it has {', '.join(self.classifier)}")
        return self.classifier[layer]

    def settings(self, seed: int) -> batched.HeadTraining:
        """As the fast form has it."""
        return batched.HeadTraining(
            epochs=self.epochs,
            batch=self.batch,
            momentum=self.momentum,
            schedule=self.schedule.build(),
            standardise=self.norm != "none",
            init_std=self.init_std,
            snapshots=self.snapshots,
            seed=seed,
        )


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    """The training split with every layer; the validation split when selection needs it; the test split last."""
    if protocol.form == "faithful":
        return []  # reads images, not kept features
    splits = [
        protocol.splits.train,
        *([protocol.splits.val] if protocol.select.on == "val" else []),
        protocol.splits.test,
    ]
    return plan_requests(protocol, model, [s for s in splits if s])


def seeded(protocol: Protocol) -> bool:
    """Whether ``seeds`` repeats the measurement."""
    return protocol.head.get("solver") != "ridge"


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError for settings that do not go together, and for labels that cannot be folded."""
    check_head(protocol, model)
    labels = checks.labels(protocol, protocol.splits.train, open(protocol.splits.train))
    folds_of(protocol, labels, 0)
    if protocol.select.on == "val":
        checks.labels(protocol, str(protocol.splits.val), open(str(protocol.splits.val)))
    checks.labels(protocol, protocol.splits.test, open(protocol.splits.test))


def check_head(protocol: Protocol, model: Model) -> None:
    """Raises UserError for settings of ``head`` and ``grid`` that do not go together, or name a layer that is not read."""
    head, layers = head_of(protocol), layers_of(protocol, model)
    needed, other = ("penalty", "lr") if head.solver == "ridge" else ("lr", "penalty")
    if head.solver == "ridge" and protocol.form == "faithful":
        raise UserError(f"{protocol.id}: head.solver=ridge: only with form=fast")
    if needed not in protocol.grid or other in protocol.grid:
        raise UserError(f"{protocol.id}: head.solver={head.solver} needs grid.{needed}, and takes no grid.{other}")
    if protocol.form == "fast" and head.classifier != "linear":
        raise UserError(f"{protocol.id}: head.classifier={head.classifier}: only with form=faithful")
    for name, given in (("lr_of", head.lr_of), ("classifier", head.classifier)):
        for layer in given if isinstance(given, dict) else ():
            if layer not in layers:
                raise UserError(
                    f"{protocol.id}: head.{name} names layer {layer!r}, which is not among its layers ({', '.join(layers)})"
                )
    for layer in layers:
        head.classifier_of(layer)


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    return run_faithful(protocol, features, seed) if protocol.form == "faithful" else run_fast(protocol, features, seed)


def run_fast(protocol: Protocol, features: Features, seed: int) -> Result:
    """Kept features of one fixed view, all heads of a layer in one batched run."""
    head = head_of(protocol)
    train, test = protocol.splits.train, protocol.splits.test
    labels, classes = features.labels(train), features.classes(train)
    layers = layers_of(protocol, features.model)
    weights, held_out = folds_of(protocol, labels, seed)

    trained: dict[str, batched.Heads] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for layer in layers:
        x = features.get(FeatureRequest(train, layer, pool_of(protocol, layer)))
        trained[layer] = fit(x, labels, weights, protocol, head, classes, seed, features.compute.device)
        scores = validation_scores(protocol, features, layer, x, labels, held_out, trained[layer])
        chosen[layer] = choose(trained[layer].grid, scores)
    features.finish_selection(selection_of(protocol, chosen))

    truth = features.labels(test)
    metrics: dict[str, Metric] = {}
    for layer in layers:
        x = features.get(FeatureRequest(test, layer, pool_of(protocol, layer)))
        guesses, top5, others = test_guesses(x, truth, trained[layer], chosen[layer])
        suffix = f"_{layer}" if len(layers) > 1 else ""
        found = metrics_of(guesses, top5, others, truth, classes, chosen[layer])
        beside = beside_top1(guesses, truth, labels)
        found["mean_per_class"], metrics["majority"] = beside["mean_per_class"], beside["majority"]
        metrics.update({f"{name}{suffix}": metric for name, metric in found.items()})
    return Result(metrics, guesses[0], (guesses[0] == truth).astype(np.int8))


def run_faithful(protocol: Protocol, features: Features, seed: int) -> Result:
    """Fresh views every epoch, heads as the authors trained them (probes/sgd.py)."""
    from ..probes import sgd

    head = head_of(protocol)
    train, test = protocol.splits.train, protocol.splits.test
    labels, classes = features.labels(train), features.classes(train)
    weights, held_out = folds_of(protocol, labels, seed)
    grid = grid_of(protocol, seed)
    trained = sgd.train(protocol, head, features, labels, weights, grid, seed)
    cells = range(len(grid))
    layers = list(trained.heads)

    scores: dict[str, Any] = dict.fromkeys(layers)
    if protocol.select.on == "folds":
        held = [(fold, cell, None) for fold in range(len(held_out)) for cell in cells]
        guesses = sgd.predict(features, train, trained, "centre", held)
        for layer in layers:
            right = (guesses[layer] == labels).reshape(len(held_out), len(grid), -1) & held_out[:, None]
            scores[layer] = 100 * right.sum(2) / held_out.sum(1, keepdims=True)
    elif protocol.select.on == "val":
        val = str(protocol.splits.val)
        guesses = sgd.predict(features, val, trained, "centre", [(-1, cell, None) for cell in cells])
        scores = {layer: 100 * (guesses[layer] == features.labels(val)).mean(1)[None] for layer in layers}
    chosen = {layer: choose(grid, scores[layer]) for layer in layers}
    features.finish_selection(selection_of(protocol, chosen))

    truth, view = features.labels(test), protocol.transform.test
    which = [(-1, cell, epoch) for epoch in (None, *trained.kept) for cell in cells]
    best = sgd.five_best(features, test, trained, view, which)
    metrics = {}
    for layer in layers:
        guesses_here, mine = best[layer][:, :, 0], best[layer][chosen[layer]["cells"]]
        suffix = f"_{layer}" if len(layers) > 1 else ""
        top5 = (mine == truth[:, None]).any(2)
        found = metrics_of(mine[:, :, 0], top5, guesses_here, truth, classes, chosen[layer])
        beside = beside_top1(mine[:, :, 0], truth, labels)
        found["mean_per_class"], metrics["majority"] = beside["mean_per_class"], beside["majority"]
        metrics.update({f"{name}{suffix}": metric for name, metric in found.items()})
    return Result(metrics, mine[0, :, 0], (mine[0, :, 0] == truth).astype(np.int8))


def folds_of(protocol: Protocol, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample weights (F+1, N), the last row everything, and what each fold holds out (F, N); F = 0 without folds."""
    if protocol.select.on != "folds":
        return np.ones((1, len(labels)), np.float32), np.zeros((0, len(labels)), bool)
    folds = protocol.select.folds
    checks.folds(protocol, protocol.splits.train, labels)
    if protocol.select.rule == "deepercluster":
        pairs = [deepercluster_folds(labels, folds, i) for i in range(folds)]
        seen, held_out = (np.stack([np.isin(np.arange(len(labels)), p[k]) for p in pairs]) for k in (0, 1))
    else:
        held_out = stratified_folds(labels, folds, seed)[None] == np.arange(folds)[:, None]
        seen = ~held_out
    return np.concatenate([seen, np.ones((1, len(labels)), bool)]).astype(np.float32), held_out


def fit(
    x: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    protocol: Protocol,
    head: Head,
    classes: int,
    seed: int,
    device: torch.device,
) -> batched.Heads:
    if head.solver == "ridge":
        return batched.ridge(x, labels, weights, protocol.grid["penalty"], classes=classes)
    grid = grid_of(protocol, seed)
    return batched.train(x, labels, weights, grid, head.settings(seed), classes=classes, device=device)


def grid_of(protocol: Protocol, seed: int) -> batched.Grid:
    seeds = tuple(range(seed * 1000, seed * 1000 + protocol.seeds))
    return batched.Grid(tuple(protocol.grid["lr"]), tuple(protocol.grid.get("weight_decay", [0.0])), seeds)


def validation_scores(
    protocol: Protocol,
    features: Features,
    layer: str,
    x: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    trained: batched.Heads,
) -> np.ndarray | None:
    """(F, G) accuracies in percent on what selection may see; None when nothing is to be chosen."""
    if protocol.select.on == "folds":
        return 100 * batched.correct(x, labels, trained, held_out) / held_out.sum(1, keepdims=True)
    if protocol.select.on == "val":
        val = str(protocol.splits.val)
        rows = features.get(FeatureRequest(val, layer, pool_of(protocol, layer)))
        best = batched.all_scores(rows, trained).argmax(2).cpu().numpy()
        return 100 * (best == features.labels(val)[:, None]).mean(0)[None]
    return None


def choose(grid: batched.Grid, scores: np.ndarray | None) -> dict[str, Any]:
    """The best setting by mean score over folds and seeds (the first among equals), and its cells, one per seed."""
    settings = list(dict.fromkeys((c["lr"], c["weight_decay"]) for c in grid.cells))
    cells = {s: [i for i, c in enumerate(grid.cells) if (c["lr"], c["weight_decay"]) == s] for s in settings}
    if scores is None:
        return {"setting": settings[0], "cells": cells[settings[0]], "grid": None, "per_fold": None, "score": None}
    means = {s: float(scores[:, cells[s]].mean()) for s in settings}
    best = max(settings, key=lambda s: means[s])
    return {
        "setting": best,
        "cells": cells[best],
        "score": means[best],
        "grid": [{"lr": s[0], "weight_decay": s[1], "score": round(means[s], 4)} for s in settings],
        "per_fold": tuple(float(v) for v in scores[:, cells[best]].mean(1)),
    }


def selection_of(protocol: Protocol, chosen: dict[str, dict[str, Any]]) -> Selection | None:
    """The record of what was chosen, on what, among what."""
    if protocol.select.on == "none":
        return None
    on = (
        f"{protocol.select.folds} folds of {protocol.splits.train}"
        if protocol.select.on == "folds"
        else str(protocol.splits.val)
    )
    ridge = protocol.head.get("solver") == "ridge"
    named = {
        layer: {"penalty": c["setting"][0]} if ridge else {"lr": c["setting"][0], "weight_decay": c["setting"][1]}
        for layer, c in chosen.items()
    }
    one = len(chosen) == 1
    first = next(iter(chosen.values()))
    return Selection(
        on=on,
        metric=protocol.select.metric,
        chosen=next(iter(named.values())) if one else named,
        score=first["score"] if one else None,
        grid=first["grid"] if one else {layer: c["grid"] for layer, c in chosen.items()},
    )


def test_guesses(
    x: np.ndarray, truth: np.ndarray, trained: batched.Heads, chosen: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions (seeds, N) and top-5 hits of the chosen heads, and (others, N) of every head at every kept epoch."""
    scores = batched.all_scores(x, trained).cpu()
    best = scores[:, chosen["cells"]].topk(min(5, scores.shape[2]), dim=2).indices
    top5 = (best == torch.as_tensor(truth)[:, None, None]).any(2).T.numpy()
    guesses = scores.argmax(2).T.numpy()
    kept = [batched.all_scores(x, trained, epoch=e).argmax(2).T.cpu().numpy() for e, _, _ in trained.history]
    return guesses[chosen["cells"]], top5, np.concatenate([guesses, *kept])


def metrics_of(
    guesses: np.ndarray,
    top5: np.ndarray,
    others: np.ndarray,
    truth: np.ndarray,
    classes: int,
    chosen: dict[str, Any],
) -> dict[str, Metric]:
    """top1 (honest, one value per seed), top5 beyond ten classes, top1_best_on_test over all heads and kept epochs."""
    n = len(truth)
    found = {"top1": rates([float(v) for v in 100 * (guesses == truth).mean(1)], n, per_fold=chosen["per_fold"])}
    if classes > 10:
        found["top5"] = rates([float(v) for v in 100 * top5.mean(1)], n)
    highest = 100 * float((others == truth).mean(1).max())
    found["top1_best_on_test"] = rate(highest, n, style="paper", note="best head and epoch on the test split")
    return found
