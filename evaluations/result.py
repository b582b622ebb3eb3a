"""What an evaluation hands back; ``evaluations.run`` turns it into a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from results.record import Metric, around, interval

from .metrics import bootstrap, mean_average_precision


@dataclass
class Result:
    """metrics by name; predictions (N,) classes, or (N, C) scores, of the headline metric on the test split.

    ``correct`` (N,) 0/1 or a per-sample score is what ``pair`` compares; None where samples have no score of their own.
    """

    metrics: dict[str, Metric]
    predictions: np.ndarray | None = None
    correct: np.ndarray | None = None
    files: dict[str, Any] | None = None


def rate(percent: float, n: int, **fields: Any) -> Metric:
    """An accuracy in percent of n samples, with its 95 % interval."""
    return Metric(value=float(percent), n=n, ci=interval(min(max(float(percent), 0.0), 100.0), n), **fields)


def precision(scores: Sequence[np.ndarray], targets: np.ndarray, *, points: int | None = None, **fields: Any) -> Metric:
    """Mean average precision in percent, averaged over one (N, C) of scores per evaluation seed, draw or just one model, with
    an interval of 1.96 bootstrap errors over the images (each good to about 5 %)."""
    values = [mean_average_precision(s, targets, points=points) for s in scores]
    error = float(bootstrap(scores, targets, points=points).std(ddof=1))
    ci = around(float(np.mean(values)), error)
    if len(values) == 1:
        return Metric(value=values[0], n=len(targets), ci=ci, **fields)
    return Metric.over_seeds(values, n=len(targets), ci=ci, **fields)


def rates(values: list[float], n: int, **fields: Any) -> Metric:
    """The mean of one accuracy per evaluation seed or draw, with their spread and the interval of the samples."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return rate(mean, n, per_seed=tuple(values), **fields)
    return Metric.over_seeds(values, n=n, ci=interval(mean, n), **fields)
