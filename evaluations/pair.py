"""Two models on the same test images: is the difference more than chance?

Predictions are kept beside the records, in files named by their hash; both records must be of the same protocol, version,
overrides and data. Accuracy is compared by McNemar's exact test and a 95 % interval of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from results import record as records
from zoo.errors import UserError

from .metrics import Paired, paired
from .run import evaluate, keep_predictions, say
from .task import Settings, Task


def compare(a: str, b: str, protocol: str, overrides: Mapping[str, Any]) -> str:
    """One paragraph: both scores, their difference with its interval, and the probability of so uneven a split.

    Models that have not been measured are measured first (features are kept, so this is quick the second time).
    """
    out = Path(Settings.of(overrides).options.out)
    paths = [evaluate(protocol, model, overrides, quiet=False) for model in (a, b)]
    one, two = (records.read(path) for path in paths)
    if one.data_fingerprint != two.data_fingerprint:
        raise UserError(f"{paths[0]} and {paths[1]} were measured on different data")
    each = zip((one, two), paths, (a, b), strict=True)
    correct = [_correct(out, record, path, protocol, model, overrides) for record, path, model in each]
    if all(set(np.unique(c)) <= {0, 1} for c in correct):
        return describe(one, two, paired(*correct))
    return describe_means(one, two, *correct)


def _correct(
    out: Path, record: records.Record, path: Path, protocol: str, model: str, overrides: Mapping[str, Any]
) -> np.ndarray:
    """Per-image scores of a record, computed again (from kept features, where they are) when its predictions are gone."""
    place = out / "predictions" / f"{record.predictions_sha256}.npz"
    if record.predictions_sha256 is not None and not place.is_file():
        say(f"{path}: its predictions are not in {place.parent}; computing them again")
        result, _ = Task.of(protocol, model, Settings.of(overrides)).measure(say)
        if keep_predictions(result, place.parent) != record.predictions_sha256:
            raise UserError(
                f"{path}: its predictions are not in {place.parent}, and computed again they are others (another machine, "
                f"or other versions); to measure afresh: rm {path} && {record.command}"
            )
    correct = np.zeros(0)
    if record.predictions_sha256 is not None:
        with np.load(place) as kept:
            correct = np.asarray(kept["correct"])
    if not len(correct):
        raise UserError(
            f"{record.protocol}: its score is not a mean over images, so two models cannot be compared image by image"
        )
    return correct


def describe(a: records.Record, b: records.Record, p: Paired) -> str:
    low, high = p.ci
    verdict = (
        "no difference beyond chance" if p.p_value >= 0.05 else f"{a.model if p.difference > 0 else b.model} is better"
    )
    return (
        f"{a.protocol} on {p.n:,} images\n"
        f"  {_named(a):<40} {p.a:6.2f}\n"
        f"  {_named(b):<40} {p.b:6.2f}\n"
        f"  difference {p.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}; "
        f"right only by the first {p.only_a}, only by the second {p.only_b}; p = {p.p_value:.2g}\n"
        f"  {verdict} on these images (another pre-training seed may differ by more)"
    )


def describe_means(a: records.Record, b: records.Record, one: np.ndarray, two: np.ndarray) -> str:
    """Scores per image that are not 0 or 1 (a mean over draws): a paired normal interval."""
    gap = 100 * (one.astype(np.float64) - two)
    mean, half = gap.mean(), 1.959964 * gap.std(ddof=1) / np.sqrt(len(gap))
    verdict = "no difference beyond chance" if abs(mean) <= half else f"{a.model if mean > 0 else b.model} is better"
    return (
        f"{a.protocol} on {len(gap):,} images, mean over draws\n"
        f"  {_named(a):<40} {100 * one.mean():6.2f}\n"
        f"  {_named(b):<40} {100 * two.mean():6.2f}\n"
        f"  difference {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}\n"
        f"  {verdict} on these images (another pre-training seed may differ by more)"
    )


def _named(record: records.Record) -> str:
    return record.model if record.pretrain_seed is None else f"{record.model} (seed {record.pretrain_seed})"
