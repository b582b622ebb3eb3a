"""Clustering: k-means on frozen features, or a method's own labels, scored against the classes.

Protocols  cluster_*.yaml
Metrics    nmi, anmi (adjusted mutual information), ari, hungarian (best one-to-one accuracy), purity, all in percent;
           mean and spread over seeds of k-means, or over the heads of a method's own labels (each head by itself)

k-means is fitted on the training split without labels; each test image goes to its nearest centroid, and the scores are
those of the test split. Nothing is chosen. With ``head.score: train`` the training images themselves are scored, as
papers that score pseudo-labels do. ``head.assignments: random`` is the row that says what chance gives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import zoo
from engine import rng
from engine.maths import contingency as table
from engine.maths.kmeans import KMeans, assign, kmeans
from engine.maths.rows import Rows
from results.record import Metric, around
from zoo import labels
from zoo.errors import UserError
from zoo.schema import Strict

from .. import checks
from ..inputs.features import FeatureRequest, Features, layers_of, plan_requests, pool_of
from ..inputs.models import Model
from ..probes.batched import statistics
from ..protocol import Kind, Protocol, head_of
from ..result import Result

KIND = Kind(classifies=False, grid={}, forms=("fast", "faithful"))
IN_MEMORY = 2**28  # numbers: a gigabyte
SCORES = ("nmi", "anmi", "ari", "hungarian", "purity")


class Head(Strict):
    """clusters: a number, or null for as many as classes. restarts: the run with the lowest objective is kept.

    assignments  kmeans, own (the method's labels: released ones, or those exported by `python -m reproduce labels`) or random
    labels       own: a file of labels or a run folder, when it is not labels.csv, .npz or .pth of the run, or the run itself
    """

    assignments: Literal["kmeans", "own", "random"] = "kmeans"
    labels: str | None = None
    clusters: Annotated[int, Field(ge=1)] | None = None
    iterations: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    init: Literal["random", "kmeans++"] = "kmeans++"
    preprocess: Literal["none", "unit", "standardise", "standardise_unit"] = "unit"
    score: Literal["test", "train"] = "test"


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    head = head_of(protocol)
    if head.assignments == "own":
        _own_place(model, head)
    elif head.labels:
        raise UserError(
            f"head.labels={head.labels} is not read with head.assignments={head.assignments}; say head.assignments=own to score it"
        )
    if head.assignments != "kmeans":
        return []
    splits = [protocol.splits.train] + ([protocol.splits.test] if head.score == "test" else [])
    return plan_requests(protocol, model, list(dict.fromkeys(splits)))


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError when there are fewer images than clusters, or no classes to score against."""
    head, train = head_of(protocol), protocol.splits.train
    source = open(train)
    clusters_of(head, len(source.classes), len(source))
    scored = protocol.splits.test if head.score == "test" and head.assignments != "own" else train
    checks.labels(protocol, scored, open(scored))


def clusters_of(head: Head, classes: int, images: int) -> int:
    """The number of clusters; k-means needs as many training images."""
    clusters = int(head.clusters or classes)
    if head.assignments == "kmeans" and clusters > images:
        raise UserError(f"head.clusters={clusters}: only {images} images to cluster")
    return clusters


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)
    if head.assignments == "own":
        return run_own(protocol, features, head)
    train, test = protocol.splits.train, protocol.splits.test
    if head.assignments == "random":
        clusters = clusters_of(head, features.classes(train), 0)
        split = test if head.score == "test" else train
        features.finish_selection(None)
        truth = features.labels(split)
        draws = [
            rng.uniforms(seed, "random labels", s, np.arange(len(truth)), 0, 1)[:, 0] for s in range(protocol.seeds)
        ]
        return Result(scored(truth, [(d * clusters).astype(np.int64) for d in draws]))
    layer = layers_of(protocol, features.model)[0]
    raw = features.get(FeatureRequest(train, layer, pool_of(protocol, layer)))
    clusters = clusters_of(head, features.classes(train), len(raw))
    prepare = preparation(raw, head.preprocess)
    fitted, device = prepare(raw), features.compute.device
    found = [fit(Rows(fitted, device=device), clusters, head, seed, s) for s in range(protocol.seeds)]
    features.finish_selection(None)

    if head.score == "test":
        rows = prepare(features.get(FeatureRequest(test, layer, pool_of(protocol, layer))))
        assigned = [assign(Rows(rows, device=device), f.centroids)[0].numpy() for f in found]
        truth = features.labels(test)
    else:
        assigned, truth = [f.labels.numpy() for f in found], features.labels(train)
    return Result(scored(truth, assigned), assigned[0])


def run_own(protocol: Protocol, features: Features, head: Head) -> Result:
    """The method's own labels of the training images, one assignment per head; images without a label are left out."""
    source, truth = features.source(protocol.splits.train), features.labels(protocol.splits.train)
    features.finish_selection(None)
    own = own_labels(features.model, head, source, lambda: features.source(protocol.splits.test))  # (heads, N)
    kept = (own >= 0).all(0)
    if not kept.any():
        raise UserError(f"{features.model.name}: no image of {protocol.dataset}/{protocol.splits.train} has a label")
    return Result(scored(truth[kept], list(own[:, kept])), own[0])


def own_labels(model: Model, head: Head, source: Any, held_out: Callable[[], Any] | None = None) -> np.ndarray:
    """(heads, N) int64 in the source's order, -1 where an image has none; files are joined with the images by name.

    held_out  opens the images that are held out: a file may have rows of them too, as one of a whole folder has
    """
    place = _own_place(model, head)
    found = zoo.pseudolabels(model.place) if place is None else labels.read(place)
    names = [source.name(i) for i in range(len(source))]
    if held_out is not None and found.images is not None and len(found.images) > len(names):
        others = held_out()
        found = labels.without(found, [others.name(i) for i in range(len(others))])
    return labels.by_name(found, names, str(place or model.name), getattr(source, "fingerprint", None)).numpy()


def _own_place(model: Model, head: Head) -> Path | None:
    """The file or run folder with the method's own labels; None where they were released. UserError where there are none."""
    if head.labels:
        if not Path(head.labels).exists():
            raise UserError(
                f"head.labels={head.labels}: no such file or run folder; make it: python -m reproduce labels RUN --to {head.labels}"
            )
        return Path(head.labels)
    folder = Path(model.place)
    written = next(
        (folder / f"labels{end}" for end in (".csv", ".npz", ".pth") if (folder / f"labels{end}").is_file()), None
    )
    if written is not None:
        return written
    if (folder / "checkpoint.pt").is_file():
        return folder
    if model.place in zoo.models():
        if zoo.entry(model.place).pseudolabels is None:
            raise UserError(f"{model.name}: no labels of its own were released; head.labels=FILE names others")
        return None
    place = folder / "labels.csv"
    raise UserError(f"{model.name}: no {place}; make it: python -m reproduce labels {folder} --to {place}")


def scored(truth: np.ndarray, assigned: list[np.ndarray]) -> dict[str, Metric]:
    """Every score in percent: one assignment per seed or head, mean and spread over them.

    The interval is of the mean when other images are drawn; its error is the mean one of the assignments, which share
    the images.
    """
    tables = [table.contingency(truth, a) for a in assigned]
    each = [table.scores(t) for t in tables]
    errors = [table.errors(t, e) for t, e in zip(tables, each, strict=True)]
    metrics = {}
    for name in SCORES:
        values = [100 * e[name] for e in each]
        ci = around(float(np.mean(values)), 100 * float(np.mean([e[name] for e in errors])))
        metrics[name] = Metric.over_seeds(values, n=len(truth), ci=ci)
    return metrics


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


def fit(rows: Any, clusters: int, head: Head, seed: int, index: int) -> KMeans:
    """One k-means of rows (n, D), on their device."""
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
