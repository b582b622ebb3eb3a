"""Quality of features without labels: how many directions they use, how they spread, how views agree, how stable clusters are.

Protocols  quality_*.yaml
Metrics    rankme, effective_rank, participation_ratio, stable_rank   directions that the features use; higher is better
           alpha_req           decay of the variances; near 1 is better (absent where fewer than three ranks can be fitted)
           lidar               effective rank of what tells images apart, relative to what tells views of one apart; higher
           uniformity, alignment, self_clustering                     on the unit sphere; lower is better
           cluster_stability   mean adjusted Rand index, in percent, between k-means of the same images from several seeds
                               (von Luxburg, arXiv 1007.1075, section 2.1, without resampling); higher
Sources    with each function of engine/maths/quality.py

No label is opened: a source without them is what this file is given. All measures are of ``head.images`` images, drawn
once, because ranks grow with their number; they compare networks of one width. Intervals are of a delete-a-group
jackknife over the images. Views are random resized crops and flips (``transform.scale``, ``transform.ratio``). LiDAR
adds an absolute constant to the variance within images, so the features are first divided by their root mean square.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from engine import rng
from engine.errors import Degenerate
from engine.maths import contingency
from engine.maths import quality as maths
from results.record import Metric
from zoo.errors import UserError
from zoo.schema import Strict

from ..inputs.features import FeatureRequest, Features, embedded, forward, layers_of, plan_requests, pool_of
from ..inputs.models import Model
from ..inputs.views import stream
from ..protocol import Kind, Protocol, head_of
from ..result import Result
from . import clustering

KIND = Kind(classifies=False, labelled=False, grid={})
FEWEST = 8  # images


class Head(Strict):
    """images: how many are measured, drawn once. viewed, views: how many of them are seen in how many random views, for LiDAR
    and alignment. groups: of the jackknife; 0: no intervals. clusters: of the stability; null: about the square root of half
    the images. first, last: ranks of alpha-ReQ's window, zero-based, the last one excluded.
    """

    images: Annotated[int, Field(ge=FEWEST)] = 2048
    viewed: Annotated[int, Field(ge=2)] = 256
    views: Annotated[int, Field(ge=2)] = 8
    groups: Annotated[int, Field(ge=0, le=100)] = 10
    clusters: Annotated[int, Field(ge=2)] | None = None
    iterations: Annotated[int, Field(ge=1)] = 50
    first: Annotated[int, Field(ge=0)] = 3
    last: Annotated[int, Field(ge=4)] = 100


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    return plan_requests(protocol, model, [protocol.splits.train])


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError when there are too few images to measure anything on."""
    head, n = head_of(protocol), len(open(protocol.splits.train))
    if n < FEWEST:
        raise UserError(
            f"{protocol.dataset}/{protocol.splits.train}: {n} images; {protocol.id} needs {FEWEST} at least"
        )
    if head.clusters is not None and head.clusters > min(n, head.images):
        raise UserError(f"head.clusters={head.clusters}: only {min(n, head.images)} images to cluster")
    if head.last - head.first < 3:
        raise UserError(
            f"head.last={head.last}: alpha is fitted on three ranks at least; set head.last={head.first + 3} or more"
        )


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head, split = head_of(protocol), protocol.splits.train
    layer = layers_of(protocol, features.model)[0]
    request = FeatureRequest(split, layer, pool_of(protocol, layer))
    every = features.get(request)
    features.finish_selection(None)
    chosen = np.sort(rng.permutation(seed, "quality images", 0, len(every))[: head.images])
    z = torch.as_tensor(np.asarray(every[chosen], dtype=np.float64))
    try:
        metrics = measures(z, head)
    except Degenerate as error:
        raise UserError(f"{features.model.name}: layer {layer}: {str(error).removeprefix('quality: ')}") from None
    views = of_views(features, request, chosen[: head.viewed], head, seed)
    rows = views / z.square().mean().sqrt()
    each = {
        "lidar": maths.lidar,
        "alignment": lambda v: float(np.mean([maths.alignment(v[:, a], v[:, b]) for a, b in pairs(v.shape[1])])),
    }
    metrics |= {
        name: found for name, measure in each.items() if (found := interval(measure, rows, head.groups)) is not None
    }
    metrics["cluster_stability"] = stability(z, head, protocol.seeds, seed)
    return Result({name: metrics[name] for name in protocol.metrics if name in metrics})


def measures(z: Tensor, head: Head) -> dict[str, Metric]:
    """Every measure of rows (n, D) that needs one view of each image. Degenerate: all rows equal."""
    maths.variances(z)
    each: dict[str, Callable[[Tensor], float]] = {
        "rankme": maths.rankme,
        "effective_rank": maths.effective_rank,
        "participation_ratio": maths.participation_ratio,
        "stable_rank": maths.stable_rank,
        "alpha_req": lambda rows: maths.alpha_req(rows, head.first, head.last)[0],
        "uniformity": maths.uniformity,
        "self_clustering": maths.self_clustering,
    }
    return {name: found for name, measure in each.items() if (found := interval(measure, z, head.groups)) is not None}


def interval(measure: Callable[[Tensor], float], rows: Tensor, groups: int) -> Metric | None:
    """A measure of rows (n, ...) with the 95 % interval of a delete-a-group jackknife (Student's t, groups - 1 degrees of
    freedom); None where the measure has no value."""
    try:
        value = measure(rows)
        groups = min(groups, len(rows) // 2)
        if groups < 2:
            return Metric(value=value, n=len(rows))
        number = torch.arange(len(rows)) % groups
        without = np.array([measure(rows[number != g]) for g in range(groups)])
    except Degenerate:
        return None
    error = float(np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum()))
    half = float(student.ppf(0.975, groups - 1)) * error
    return Metric(value=value, n=len(rows), ci=(value - half, value + half))


def of_views(features: Features, request: FeatureRequest, chosen: np.ndarray, head: Head, seed: int) -> Tensor:
    """(n, views, D) float64 features of random views of the images ``chosen`` (n,); not kept on disk."""
    source, compute, found = features.source(request.split), features.compute, []
    network = features.model.backbone.to(compute.device).eval()
    order = np.array_split(chosen, max(1, -(-len(chosen) // compute.batch)))
    for number in range(head.views):
        views = features.views(f"random_resized_crop:{number}", seed)
        blocks = []
        for rows, images in stream(source, views, order, compute.workers):
            value = embedded(features.model, forward(network, images[:, 0], [request], compute))[request]
            features.refuse_nan(request, rows, value)
            blocks.append(value.double().cpu())
        found.append(torch.cat(blocks))
    return torch.stack(found, 1)


def stability(z: Tensor, head: Head, seeds: int, seed: int) -> Metric:
    """Adjusted Rand index, in percent, of every pair of ``seeds`` k-means runs on unit rows (n, D): mean and spread."""
    clusters = head.clusters or max(2, round((len(z) / 2) ** 0.5))
    settings = clustering.Head(clusters=clusters, iterations=head.iterations)
    unit = F.normalize(z.float(), dim=1)
    labels = [clustering.fit(unit, clusters, settings, seed, number).labels.numpy() for number in range(seeds)]
    values = [100 * contingency.scores(contingency.contingency(labels[a], labels[b]))["ari"] for a, b in pairs(seeds)]
    note = f"{clusters} clusters, {seeds} seeds of k-means; one value for each pair of them"
    return Metric.over_seeds(values, n=len(z), note=note)


def pairs(count: int) -> list[tuple[int, int]]:
    return list(combinations(range(count), 2))
