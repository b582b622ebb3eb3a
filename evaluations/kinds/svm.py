"""Linear support vector machines on frozen features, one per class, all classes, costs and folds solved together.

Protocols  linear_voc07, linear_scenes
Metrics    map, map11   mean average precision (step-wise, and VOC07's eleven points), cost chosen per class on folds
           map_k        low-shot: only k positive images of each class are labelled; mean and spread over draws
Works on   several labels per image (VOC), or one label per image (then also top1)

Unit-length features, squared hinge, w'w / 2 + C sum: the problem of LIBLINEAR's and scikit-learn's LinearSVC with its
regularised bias. Low-shot sets are the union of k positive images of every class, with all of their labels; cost fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine import rng
from results.record import Selection
from zoo.errors import UserError
from zoo.schema import Strict

from .. import checks
from ..inputs.features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from ..inputs.models import Model
from ..inputs.splits import stratified_folds
from ..protocol import Kind, Positive, Protocol, head_of
from ..result import Result, beside_top1, precision, rates
from ..scores import average_precision

KIND = Kind(classifies=True, grid={"cost": Positive}, needed=("cost",), selects=("folds", "none"), metric="map")
NEVER = 255
SINGLE = 1e7  # condition up to which a Newton step in float32 is exact enough: its rounding is 6e-8


class Head(Strict):
    """shots: numbers of positive images for the low-shot curve; draws of each; low_shot_cost: their C.
    positive_weight: how much more a positive costs. tolerance: of the gradient, relative to the first."""

    shots: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    draws: Annotated[int, Field(ge=1)] = 5
    low_shot_cost: Annotated[float, Field(gt=0)] = 1.0
    positive_weight: Annotated[float, Field(gt=0)] = 2.0
    normalise: bool = True
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    iterations: Annotated[int, Field(ge=1)] = 100


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    return plan_requests(protocol, model, [protocol.splits.train, protocol.splits.test])


def seeded(protocol: Protocol) -> bool:
    """Whether ``seeds`` repeats the measurement."""
    return False


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError when no class has a positive image, or the images cannot be folded."""
    for split in (protocol.splits.train, protocol.splits.test):
        source = open(split)
        if source.targets is not None:
            targets = checks.positives(protocol, split, np.asarray(source.targets))
        else:
            targets = np.eye(len(source.classes), dtype=np.uint8)[checks.labels(protocol, split, source)]
        if split == protocol.splits.train:
            foldable(protocol, targets)


def foldable(protocol: Protocol, targets: np.ndarray) -> None:
    if protocol.select.on == "folds":
        checks.folds(protocol, protocol.splits.train, _kind(targets))


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)
    layer = layers_of(protocol, features.model)[0]

    def rows(split: str) -> Tensor:
        x = torch.as_tensor(np.asarray(features.get(FeatureRequest(split, layer, pool_of(protocol, layer)))))
        return F.normalize(x, dim=1) if head.normalise else x

    x, targets = rows(protocol.splits.train), targets_of(protocol, features, protocol.splits.train)
    classes = targets.shape[1]
    costs = list(protocol.grid["cost"])
    chosen, selection = np.zeros(classes, int), None
    note = None
    if protocol.select.on == "folds":
        foldable(protocol, targets)
        fold = stratified_folds(_kind(targets), protocol.select.folds, seed)
        scores = np.stack([_fold_scores(x, targets, fold == f, costs, head) for f in range(protocol.select.folds)])
        chosen, judged = choose(scores)
        if not judged.any():
            raise UserError(
                f"select.on=folds: no class of {protocol.dataset}/{protocol.splits.train} has a positive image on both sides of "
                "a fold, so that no cost can be chosen; give more images, or select.on=none with one value of grid.cost"
            )
        if not judged.all():
            names = _names(features.source(protocol.splits.train), ~judged)
            note = (
                f"cost of {names}: the best of the other classes, as no fold has a positive image of it on both sides"
            )
            features.say(f"{protocol.id}: {note}")
        seen = scores[:, :, judged]
        selection = Selection(
            on=f"{protocol.select.folds} folds of {protocol.splits.train}",
            metric="average precision of each class",
            chosen={"cost": [costs[c] for c in chosen]},
            score=100 * float(np.mean(np.nanmean(seen, 0).max(0))),
            grid=[{"cost": c, "score": round(100 * float(np.nanmean(seen[:, i])), 4)} for i, c in enumerate(costs)],
        )
    final = solve(x, targets, [costs[c] for c in chosen], head)
    shots = {k: [_low_shot(x, targets, k, seed, d, head) for d in range(head.draws)] for k in head.shots}
    features.finish_selection(selection)

    queries, truth = rows(protocol.splits.test), targets_of(protocol, features, protocol.splits.test)
    scores = decide(queries, final).numpy()
    metrics = {
        "map": precision([scores], truth, note=note),
        "map11": precision([scores], truth, points=11, note=note),
    }
    correct = None
    if features.source(protocol.splits.test).targets is None:
        guesses, classes_of = scores.argmax(1), truth.argmax(1)
        correct = (guesses == classes_of).astype(np.int8)
        metrics["top1"] = rates([100 * float(correct.mean())], len(truth))
        metrics |= beside_top1(guesses[None], classes_of, targets.argmax(1))
    for k, found in shots.items():
        drawn = [decide(queries, w).numpy() for w in found]
        metrics[f"map_{k}"] = precision(drawn, truth, note=f"{k} positive images of each class")
    return Result(metrics, scores, correct)


def targets_of(protocol: Protocol, features: Features, split: str) -> np.ndarray:
    """(N, classes) uint8: 1 present, 0 absent, 255 leave out."""
    source = features.source(split)
    if source.targets is not None:
        return checks.positives(protocol, split, np.asarray(source.targets))
    return np.eye(features.classes(split), dtype=np.uint8)[features.labels(split)]


def solve(x: Tensor, targets: np.ndarray, costs: list[float], head: Head) -> Tensor:
    """(D + 1, P) weights with the bias last: one problem per column of ``targets`` (N, P) and cost, by Newton's method.

    A Newton step solves H d = -g with H = I + 2 X' C A X, A the rows inside the margin. It need not be exact, and is found in
    float32 where the bound of H's condition permits; gradient, objective and end are float64's. All problems share the products
    with X; finished ones are dropped.
    """
    rows = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    sign = torch.as_tensor(np.where(targets == 1, 1.0, -1.0))
    cost = torch.as_tensor(np.where(targets == NEVER, 0.0, np.where(targets == 1, head.positive_weight, 1.0)))
    cost = cost * torch.tensor(costs, dtype=torch.float64)
    condition = float(2 * cost.max() * rows.square().sum())
    steps = _NewtonSteps(rows.float() if condition < SINGLE else rows)
    w = torch.zeros(rows.shape[1], targets.shape[1], dtype=torch.float64)
    left = torch.arange(targets.shape[1])
    v, at = w.clone(), torch.zeros_like(sign)
    goal: Tensor | None = None
    for _ in range(head.iterations):
        slack = (1 - at).clamp_min(0)
        gradient = v - 2 * rows.T @ (cost * sign * slack)
        size = gradient.norm(dim=0)
        goal = head.tolerance * size if goal is None else goal
        going = size > goal
        if not going.any():
            break
        if not going.all():
            w[:, left] = v
            left, goal = left[going], goal[going]
            v, sign, cost, at, slack, gradient = (a[:, going] for a in (v, sign, cost, at, slack, gradient))
        step = steps(2 * cost * (slack > 0), -gradient)
        along = sign * (rows @ step)
        t = _line_search(v, at, along, cost, step, gradient)
        v, at = v + t * step, at + t * along
    w[:, left] = v
    return w.float()


class _NewtonSteps:
    """d with (I + X' diag(active) X) d = b for each column of active (N, P) and b (D + 1, P), for rows X (N, D + 1).

    Few active rows: exactly, by Woodbury's identity with the products of those rows among themselves, as in Chapelle,
    Training a Support Vector Machine in the Primal (2007). Many: by conjugate gradients.
    """

    FEW = 1500  # a Cholesky factor of so many rows costs about what a few products with all of X do
    MOST = 8192  # rows of which all products among themselves are kept: 256 MB

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.products: Tensor | None = None

    def __call__(self, active: Tensor, b: Tensor) -> Tensor:
        """(D + 1, P) float64."""
        active, b = active.to(self.rows), b.to(self.rows)
        d = torch.empty_like(b)
        few = (active > 0).sum(0) <= self.FEW
        if not few.all():
            d[:, ~few] = _conjugate_gradients(self.rows, active[:, ~few], b[:, ~few])
        if few.any():
            d[:, few] = self._directly(active[:, few], b[:, few])
        return d.double()

    def _directly(self, active: Tensor, b: Tensor) -> Tensor:
        """b - X' u with (1 / active + X X') u = X b on the active rows."""
        u = self.rows @ b
        for column in range(active.shape[1]):
            inside = active[:, column].nonzero()[:, 0]
            system = self._among(inside)
            system.diagonal().add_(1 / active[inside, column])
            found = torch.cholesky_solve(u[inside, column, None], torch.linalg.cholesky(system))
            u[:, column] = 0
            u[inside, column] = found[:, 0]
        return b - self.rows.T @ u

    def _among(self, chosen: Tensor) -> Tensor:
        if len(self.rows) > self.MOST:
            return self.rows[chosen] @ self.rows[chosen].T
        if self.products is None:
            self.products = self.rows @ self.rows.T
        return self.products[chosen[:, None], chosen]


def _conjugate_gradients(rows: Tensor, active: Tensor, b: Tensor, most: int = 200) -> Tensor:
    """d with (I + X' diag(active) X) d = b for each column, to a tenth: Newton's next step takes up what is left."""
    d, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), r.square().sum(0)
    goal = 1e-2 * rr
    for _ in range(most):
        if (rr <= goal).all():
            break
        hp = p + rows.T @ (active * (rows @ p))
        alpha = torch.where(rr > goal, rr / (p * hp).sum(0).clamp_min(1e-38), 0.0)
        d += alpha * p
        r -= alpha * hp
        new = r.square().sum(0)
        p = r + torch.where(rr > goal, new / rr.clamp_min(1e-38), 0.0) * p
        rr = new
    return d


def _line_search(w: Tensor, at: Tensor, along: Tensor, c: Tensor, step: Tensor, gradient: Tensor) -> Tensor:
    """Per column the first of 1, 1/2, 1/4, ... that lowers the objective enough (Armijo).

    at, along (N, P): signed distances of the rows under ``w``, and what a whole step adds to them.
    """

    def objective(t: Tensor) -> Tensor:
        return (w + t * step).square().sum(0) / 2 + (c * (1 - at - t * along).clamp_min(0).square()).sum(0)

    t = torch.ones(w.shape[1], dtype=w.dtype)
    base, slope = objective(torch.zeros_like(t)), (gradient * step).sum(0)
    for _ in range(30):
        worse = objective(t) > base + 1e-4 * t * slope
        if not worse.any():
            break
        t = torch.where(worse, t / 2, t)
    return t


def decide(x: Tensor, w: Tensor) -> Tensor:
    """(N, P) signed distances (up to scale) of rows x."""
    return x @ w[:-1] + w[-1]


def _fold_scores(x: Tensor, targets: np.ndarray, held_out: np.ndarray, costs: list[float], head: Head) -> np.ndarray:
    """(costs, classes) average precision on the held-out rows; NaN for a class without a positive on either side."""
    kept = ~held_out
    every = np.concatenate([targets[kept]] * len(costs), axis=1)
    classes = targets.shape[1]
    w = solve(x[torch.as_tensor(kept)], every, [c for c in costs for _ in range(classes)], head)
    scores = decide(x[torch.as_tensor(held_out)], w).numpy()
    each = [average_precision(scores[:, i], targets[held_out, i % classes]) for i in range(scores.shape[1])]
    found = np.array(each).reshape(len(costs), classes)
    found[:, ~(targets[kept] == 1).any(0)] = np.nan
    return found


def choose(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best cost of each class, and which classes could choose their own; both (classes,).

    scores (folds, costs, classes): average precision, NaN where a fold says nothing about a class. A class takes the mean
    over the folds that say something; one without such a fold takes the cost that is best for the mean of the others.
    """
    judged = ~np.isnan(scores).all((0, 1))
    means = np.full(scores.shape[1:], np.nan)
    means[:, judged] = np.nanmean(scores[:, :, judged], axis=0)
    together = int(means[:, judged].mean(1).argmax()) if judged.any() else 0
    return np.where(judged, np.nan_to_num(means).argmax(0), together), judged


def _names(source: Any, chosen: np.ndarray, most: int = 5) -> str:
    found = [str(source.classes[c]) for c in np.flatnonzero(chosen)]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _low_shot(x: Tensor, targets: np.ndarray, k: int, seed: int, draw: int, head: Head) -> Tensor:
    order = rng.permutation(seed, "low shot", draw, len(targets))
    rows = np.unique(np.concatenate([order[targets[order, c] == 1][:k] for c in range(targets.shape[1])]))
    return solve(x[torch.as_tensor(rows)], targets[rows], [head.low_shot_cost] * targets.shape[1], head)


def _kind(targets: np.ndarray) -> np.ndarray:
    """One number per row of targets, to stratify on: the first class that is present."""
    return (targets == 1).argmax(1)
