"""Clustering: k-means on frozen features, or a method's own labels, scored against the classes.

Protocols  cluster_*.yaml
Metrics    nmi, anmi (adjusted mutual information), ari, hungarian (best one-to-one accuracy), purity, all in percent;
           mean and spread over seeds of k-means

k-means is fitted on the training split without labels; each test image goes to its nearest centroid, and the scores are
those of the test split. Nothing is chosen. With ``head.score: train`` the training images themselves are scored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine import rng
from engine.maths import contingency as table
from engine.maths.kmeans import assign, kmeans
from engine.maths.rows import Rows
from results.record import Metric
from zoo.errors import UserError
from zoo.schema import Strict

from .features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from .heads import statistics
from .models import Model
from .protocol import Protocol, head_of
from .result import Result

GRID: tuple[str, ...] = ()
IN_MEMORY = 2**28  # numbers: a gigabyte
SCORES = ("nmi", "anmi", "ari", "hungarian", "purity")


class Head(Strict):
    """clusters: a number, or null for as many as classes. restarts: the run with the lowest objective is kept."""

    clusters: Annotated[int, Field(ge=1)] | None = None
    iterations: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    init: Literal["random", "kmeans++"] = "kmeans++"
    preprocess: Literal["none", "unit", "standardise", "standardise_unit"] = "unit"
    score: Literal["test", "train"] = "test"


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    head = head_of(protocol)
    splits = [protocol.splits.train] + ([protocol.splits.test] if head.score == "test" else [])
    return plan_requests(protocol, model, splits)


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)
    train, test = protocol.splits.train, protocol.splits.test
    layer = layers_of(protocol, features.model)[0]
    raw = features.get(FeatureRequest(train, layer, pool_of(protocol, layer)))
    prepare = preparation(raw, head.preprocess)
    clusters = head.clusters or features.classes(train)
    if clusters > len(raw):
        raise UserError(f"head.clusters={clusters}: only {len(raw)} images to cluster")
    fitted = prepare(raw)
    found = [_kmeans(fitted, clusters, head, seed, s) for s in range(protocol.seeds)]
    features.finish_selection(None)

    if head.score == "test":
        rows = prepare(features.get(FeatureRequest(test, layer, pool_of(protocol, layer))))
        assigned = [assign(rows, f.centroids)[0].numpy() for f in found]
        truth = features.labels(test)
    else:
        assigned, truth = [f.labels.numpy() for f in found], features.labels(train)
    return Result(scored(truth, assigned), assigned[0])


def scored(truth: np.ndarray, assigned: list[np.ndarray]) -> dict[str, Metric]:
    """Every score in percent: one assignment per seed or head, mean and spread over them."""
    each = [table.scores(table.contingency(truth, a)) for a in assigned]
    return {name: Metric.over_seeds([100 * e[name] for e in each], n=len(truth)) for name in SCORES}


def preparation(x: np.ndarray, how: str) -> Any:
    """A function of rows (n, D) that applies ``how`` with statistics of ``x``; big matrices stay on disk, read in blocks."""
    mean, scale = statistics(x, np.ones((1, len(x)))) if how.startswith("standardise") else (None, None)

    def change(block: Tensor) -> Tensor:
        z = block.float() if mean is None or scale is None else (block.float() - mean) * scale
        return F.normalize(z, dim=1) if how.endswith("unit") else z

    def prepare(rows: np.ndarray) -> Any:
        if rows.size > IN_MEMORY:
            return Rows(rows, transform=change)
        return change(torch.as_tensor(np.asarray(rows)))

    return prepare


def _kmeans(rows: Any, clusters: int, head: Head, seed: int, index: int) -> Any:
    return kmeans(
        rows,
        clusters,
        iterations=head.iterations,
        restarts=head.restarts,
        init=head.init,
        empty="split",
        generator=rng.generator(seed, "evaluation k-means", index),
        world="local",
    )
