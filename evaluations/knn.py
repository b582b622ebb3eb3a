"""Weighted k nearest neighbours on frozen features: no training, one search for every k and temperature.

Protocols  knn_*.yaml
Vote       each of the k nearest training images (cosine similarity s of unit features) adds exp(s / temperature) to its
           class (InstDisc, arXiv 1805.01978, section 3.4; SeLa's code has the same rule)
Metrics    top1                k and temperature chosen on training images, read once on the test split
           top1_best_on_test   the best k and temperature on the test split, as papers print it; never ranked
"""

from __future__ import annotations

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

from .features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from .models import Model
from .protocol import Protocol, head_of
from .result import Result, rate

BLOCK = 512


class Head(Strict):
    """queries: how many training images (drawn once) choose k and temperature; null: all of them."""

    queries: Annotated[int, Field(ge=1)] | None = None


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    splits = [protocol.splits.train, *([protocol.splits.val] if protocol.select.on == "val" else []), protocol.splits.test]
    return plan_requests(protocol, model, [s for s in splits if s])


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)
    train, test = protocol.splits.train, protocol.splits.test
    labels, classes = features.labels(train), features.classes(train)
    layer = layers_of(protocol, features.model)[0]
    cells = [{"k": int(k), "temperature": t} for k in protocol.grid["k"] for t in protocol.grid["temperature"]]
    most = max(c["k"] for c in cells)
    if most >= len(labels):
        raise UserError(f"grid.k: {most} neighbours of {len(labels)} training images; lower it")

    def rows(split: str) -> Tensor:
        x = features.get(FeatureRequest(split, layer, pool_of(protocol, layer)))
        return F.normalize(torch.as_tensor(np.asarray(x), device=features.compute.device), dim=1)

    bank, known = rows(train), torch.as_tensor(labels, device=features.compute.device)
    best, selection = 0, None
    if protocol.select.on != "none":
        if protocol.select.on == "val":
            queries, truth, near = rows(str(protocol.splits.val)), features.labels(str(protocol.splits.val)), None
        else:
            near = _drawn(len(labels), head.queries, seed)
            queries, truth = bank[torch.as_tensor(near)], labels[near]
        similarity, index = search(queries, bank, most, itself=near)
        scores = [100 * float((v == truth).mean()) for v in votes(similarity, known[index], cells, classes)]
        best = int(np.argmax(scores))
        on = str(protocol.splits.val) if near is None else f"{len(near)} images of {train}, each against all others"
        grid = [{**c, "score": round(s, 4)} for c, s in zip(cells, scores, strict=True)]
        selection = Selection(on=on, metric=protocol.select.metric, chosen=cells[best], score=scores[best], grid=grid)
    features.finish_selection(selection)

    truth = features.labels(test)
    similarity, index = search(rows(test), bank, most)
    guesses = votes(similarity, known[index], cells, classes)
    hits = [100 * float((g == truth).mean()) for g in guesses]
    metrics = {"top1": rate(hits[best], len(truth))}
    if len(cells) > 1:
        note = "best k and temperature on the test split"
        metrics["top1_best_on_test"] = rate(max(hits), len(truth), style="paper", note=note)
    return Result(metrics, guesses[best], (guesses[best] == truth).astype(np.int8))


def votes(similarity: Tensor, neighbours: Tensor, cells: list[dict[str, Any]], classes: int) -> list[np.ndarray]:
    """Predictions (N,) of every cell. similarity (N, K) falling, neighbours (N, K) their labels; each cell has k <= K.

    The largest similarity is taken off before exp: the same winner, and no temperature is too small.
    """
    guesses = []
    for cell in cells:
        s, n = similarity[:, : cell["k"]].double(), neighbours[:, : cell["k"]]
        weight = ((s - s[:, :1]) / cell["temperature"]).exp()
        total = torch.zeros(len(s), classes, dtype=torch.float64, device=s.device).scatter_add_(1, n, weight)
        guesses.append(total.argmax(1).cpu().numpy())
    return guesses


def search(queries: Tensor, bank: Tensor, k: int, itself: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """(n, k) largest dot products and their rows in ``bank``; row ``itself[i]`` is left out for query i."""
    values, indices = [], []
    for at in range(0, len(queries), BLOCK):
        product = queries[at : at + BLOCK] @ bank.T
        if itself is not None:
            own = torch.as_tensor(itself[at : at + BLOCK], device=product.device)
            product[torch.arange(len(product), device=product.device), own] = float("-inf")
        value, index = product.topk(k, dim=1)
        values.append(value)
        indices.append(index)
    return torch.cat(values), torch.cat(indices)


def _drawn(n: int, count: int | None, seed: int) -> np.ndarray:
    order = rng.permutation(seed, "knn queries", 0, n)
    return np.sort(order if count is None else order[:count])
