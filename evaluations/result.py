"""The result of an evaluation; ``evaluations.measure`` turns it into a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from results.record import Metric, around, interval

from .scores import bootstrap, mean_average_precision


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


def beside_top1(guesses: np.ndarray, truth: np.ndarray, known: np.ndarray) -> dict[str, Metric]:
    """What top1 hides where classes have unequal numbers of images: both in percent, equal to top1's chance if balanced.

    mean_per_class  accuracy of each class of the test split, mean over classes; guesses (S, N), one row per seed or draw
    majority        top1 of saying the most frequent class of the training labels ``known`` (M,) of every image
    """
    classes, index, sizes = np.unique(truth, return_inverse=True, return_counts=True)
    each = np.stack([np.bincount(index, weights=row == truth, minlength=len(classes)) / sizes for row in guesses])
    values = [100 * float(row.mean()) for row in each]
    mean = np.asarray(each.mean(0))
    # The intervals of independent rates joined to that of their mean (Zou and Donner 2008): it has a width at 100 % too.
    bounds = np.array([interval(100 * float(p), int(n)) for p, n in zip(mean, sizes, strict=True)]) / 100
    low, high = np.sqrt((np.square(bounds - mean[:, None])).sum(0)) / len(classes)
    value = float(mean.mean())
    ci = (100 * max(value - low, 0.0), 100 * min(value + high, 1.0))
    often = np.bincount(known).argmax()
    return {
        "mean_per_class": Metric.over_seeds(values, n=len(truth), ci=ci),
        "majority": rate(
            100 * float((truth == often).mean()), len(truth), note="the training split's most frequent class"
        ),
    }


def rates(values: list[float], n: int, **fields: Any) -> Metric:
    """The mean of one accuracy per evaluation seed or draw, with their spread and the interval of the samples."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return rate(mean, n, per_seed=tuple(values), **fields)
    return Metric.over_seeds(values, n=n, ci=interval(mean, n), **fields)
