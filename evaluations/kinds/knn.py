"""Weighted k nearest neighbours on frozen features: no training, one search for every k and temperature.

Protocols  knn_*.yaml
Vote       each of the k nearest training images (cosine similarity s of unit features) adds exp(s / temperature) to its
           class (InstDisc, arXiv 1805.01978, section 3.4; SeLa's code has the same rule)
Metrics    top1                k and temperature chosen on training images, read once on the test split
           top1_best_on_test   the best k and temperature on the test split, as papers print it; never ranked
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine import rng
from engine.maths.knn import search, vote
from engine.maths.rows import Rows
from results.record import Selection
from zoo.errors import UserError
from zoo.schema import Strict

from .. import checks
from ..inputs.features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from ..inputs.models import Model
from ..protocol import Kind, Positive, Protocol, Whole, head_of
from ..result import Result, beside_top1, rate

KIND = Kind(
    classifies=False,
    grid={"k": Whole, "temperature": Positive},
    needed=("k", "temperature"),
    selects=("leave_one_out", "val", "none"),
)


class Head(Strict):
    """queries: how many training images (drawn once) choose k and temperature; null: all of them."""

    queries: Annotated[int, Field(ge=1)] | None = None
    backend: Literal["torch", "faiss"] = "torch"


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    splits = [
        protocol.splits.train,
        *([protocol.splits.val] if protocol.select.on == "val" else []),
        protocol.splits.test,
    ]
    return plan_requests(protocol, model, [s for s in splits if s])


def seeded(protocol: Protocol) -> bool:
    """Whether ``seeds`` repeats the measurement."""
    return False


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError when the bank has too few images for ``grid.k``, or for choosing it."""
    enough(protocol, checks.labels(protocol, protocol.splits.train, open(protocol.splits.train)))
    for split in ([str(protocol.splits.val)] if protocol.select.on == "val" else []) + [protocol.splits.test]:
        checks.labels(protocol, split, open(split))


def enough(protocol: Protocol, labels: np.ndarray) -> int:
    """The largest number of neighbours asked for, which training images with these labels (N,) must have to offer."""
    most = int(max(protocol.grid["k"]))
    if most >= len(labels):
        raise UserError(f"grid.k: {most} neighbours of {len(labels)} training images; lower it")
    if protocol.select.on == "leave_one_out":
        checks.several(protocol, protocol.splits.train, labels)
    return most


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)
    train, test = protocol.splits.train, protocol.splits.test
    labels, classes = features.labels(train), features.classes(train)
    layer = layers_of(protocol, features.model)[0]
    cells: list[dict[str, Any]] = [
        {"k": int(k), "temperature": t} for k in protocol.grid["k"] for t in protocol.grid["temperature"]
    ]
    most = enough(protocol, labels)

    def rows(split: str) -> Rows:
        x = features.get(FeatureRequest(split, layer, pool_of(protocol, layer)))
        return Rows(x, device=features.compute.device)

    bank, known = rows(train), torch.as_tensor(labels)
    best, selection = 0, None
    if protocol.select.on != "none":
        if protocol.select.on == "val":
            near, truth = None, features.labels(str(protocol.splits.val))
            similarity, index = search(bank, rows(str(protocol.splits.val)), most, backend=head.backend)
        else:
            near = _drawn(len(labels), head.queries, seed)
            truth = labels[near]
            similarity, index = _without_itself(*search(bank, bank.take(near), most + 1, backend=head.backend), near)
        scores = [100 * float((v == truth).mean()) for v in votes(similarity, known[index], cells, classes)]
        best = int(np.argmax(scores))
        on = str(protocol.splits.val) if near is None else f"{len(near)} images of {train}, each against all others"
        grid = [{**c, "score": round(s, 4)} for c, s in zip(cells, scores, strict=True)]
        selection = Selection(on=on, metric=protocol.select.metric, chosen=cells[best], score=scores[best], grid=grid)
    features.finish_selection(selection)

    truth = features.labels(test)
    similarity, index = search(bank, rows(test), most, backend=head.backend)
    guesses = votes(similarity, known[index], cells, classes)
    hits = [100 * float((g == truth).mean()) for g in guesses]
    metrics = {"top1": rate(hits[best], len(truth)), **beside_top1(guesses[best][None], truth, labels)}
    if len(cells) > 1:
        note = "best k and temperature on the test split"
        metrics["top1_best_on_test"] = rate(max(hits), len(truth), style="paper", note=note)
    return Result(metrics, guesses[best], (guesses[best] == truth).astype(np.int8))


def votes(similarity: Tensor, neighbours: Tensor, cells: list[dict[str, Any]], classes: int) -> list[np.ndarray]:
    """Predictions (N,) of every cell, from one search. similarity (N, K) falling, neighbours (N, K) their classes."""
    return [vote(similarity, neighbours, classes, c["k"], c["temperature"]).argmax(1).numpy() for c in cells]


def _without_itself(similarity: Tensor, index: Tensor, own: np.ndarray) -> tuple[Tensor, Tensor]:
    """Drop each query's own row; where equal rows have crowded it out, the last neighbour."""
    mine = index == torch.as_tensor(own)[:, None]
    mine[~mine.any(1), -1] = True
    return similarity[~mine].view(len(own), -1), index[~mine].view(len(own), -1)


def _drawn(n: int, count: int | None, seed: int) -> np.ndarray:
    order = rng.permutation(seed, "knn queries", 0, n)
    return np.sort(order if count is None else order[:count])
