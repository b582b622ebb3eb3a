"""Scores of predictions: top-k, average precision both ways, and how much a difference between two models means.

All rates are in percent. Clustering scores come from one contingency table: see engine.maths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


def topk(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percent of samples whose label is among the k best scores. scores (N, C), labels (N,)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return 100.0 * (best == labels[:, None]).any(dim=1).double().mean().item()


def average_precision(scores: np.ndarray, targets: np.ndarray, *, points: int | None = None) -> float:
    """Average precision (0..1) of one class. scores (N,), targets (N,) in {0, 1, 255}; 255 (difficult) is left out.

    ``points=None``: the step-wise area of scikit-learn, as DeeperCluster reports it; equal scores are resolved against
    the positives (1e-5 is taken from each positive's score). ``points=11``: the VOC07 development kit's mean of the
    best precision at recall 0, 0.1, ..., 1, where equal scores stay one step. NaN when nothing is positive.
    """
    return float(_average_precisions(scores, targets, points, np.ones((1, len(targets)), dtype=np.int64))[0])


def _average_precisions(scores: np.ndarray, targets: np.ndarray, points: int | None, times: np.ndarray) -> np.ndarray:
    """(R,) average precisions; ``times`` (R, N) says how often each sample counts."""
    kept = targets != 255
    truth = targets[kept] == 1
    if not truth.any():
        return np.full(len(times), math.nan)
    score = scores[kept].astype(np.float64)
    if points is None:
        score = score - 1e-5 * truth
    order = np.argsort(-score, kind="stable")
    truth, score, times = truth[order], score[order], times[:, kept][:, order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # the end of each run of equal scores
    hits = np.cumsum(times * truth, axis=1)[:, last]
    with np.errstate(invalid="ignore"):  # nothing found yet: 0 / 0 counts as 0; no positive at all: NaN
        precision = np.nan_to_num(hits / np.cumsum(times, axis=1)[:, last])
        recall = hits / hits[:, -1:]
    if points is None:
        return np.sum(np.diff(recall, prepend=0.0, axis=1) * precision, axis=1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # best precision at this recall or above
    at = [(recall < level - 1e-12).sum(axis=1, keepdims=True) for level in np.linspace(0, 1, points)]
    found: np.ndarray = np.take_along_axis(best, np.concatenate(at, axis=1), axis=1).mean(axis=1)
    return np.where(hits[:, -1] > 0, found, math.nan)


def mean_average_precision(scores: np.ndarray, targets: np.ndarray, *, points: int | None = None) -> float:
    """Percent: the mean over classes that have a positive. scores, targets (N, C) as in ``average_precision``."""
    each = [average_precision(scores[:, c], targets[:, c], points=points) for c in range(targets.shape[1])]
    return 100.0 * float(np.nanmean(each))


def bootstrap(
    scores: Sequence[np.ndarray], targets: np.ndarray, *, points: int | None = None, draws: int = 200
) -> np.ndarray:
    """(draws,) percent: the average of ``mean_average_precision`` over several ``scores`` (N, C) of the same images, for samples of
    N images drawn with replacement: always the same samples, so that two models can be compared draw by draw. The images
    of a split are the sample; the trained classifiers stay as they are.
    """
    random = np.random.default_rng(0)
    times = random.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size=draws)
    means = []
    for each in scores:
        classes = [_average_precisions(each[:, c], targets[:, c], points, times) for c in range(targets.shape[1])]
        means.append(np.nanmean(classes, axis=0))
    return 100.0 * np.mean(means, axis=0)


def jackknife(score: Callable[[np.ndarray], dict[str, float]], images: int, groups: int = 20) -> dict[str, float]:
    """Standard error of each score over the images, for scores that are no means of single images: the spread of what
    remains when one of ``groups`` random groups of images is left out (good to about 16 % with 20 groups).

    score   positions of images, int64 (n,) -> scores by name; a score may be missing where it is not defined
    """
    order = np.random.default_rng(0).permutation(images)
    parts = [part for part in np.array_split(order, groups) if len(part)]
    without = [score(np.sort(np.setdiff1d(order, part))) for part in parts] if len(parts) > 1 else []
    errors = {}
    for name in score(np.arange(images)):
        values = np.array([found[name] for found in without if name in found])
        share = (len(values) - 1) / max(len(values), 1)
        errors[name] = math.sqrt(share * float(((values - values.mean()) ** 2).sum())) if len(values) else 0.0
    return errors


@dataclass(frozen=True)
class Paired:
    """Two models on the same samples. ``difference`` = accuracy of a - accuracy of b, in percentage points."""

    n: int
    a: float
    b: float
    difference: float
    ci: tuple[float, float]
    only_a: int
    only_b: int
    p_value: float


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Compare per-sample correctness (N,) of two models: McNemar's exact test and a 95 % interval of the difference."""
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired comparison needs two equally long rows of samples, not {a.shape} and {b.shape}")
    a, b = a.astype(bool), b.astype(bool)
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((~a & b).sum())
    difference = (only_a - only_b) / n
    spread = math.sqrt(max((only_a + only_b) / n - difference**2, 0.0) / n)
    half = 1.959964 * spread
    return Paired(
        n=n,
        a=100 * float(a.mean()),
        b=100 * float(b.mean()),
        difference=100 * difference,
        ci=(100 * (difference - half), 100 * (difference + half)),
        only_a=only_a,
        only_b=only_b,
        p_value=_sign_test(only_a, only_b),
    )


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided exact probability of so uneven a split of ``wins + losses`` fair coins."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
