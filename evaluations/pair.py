"""Two models on the same test images: is the difference more than chance?

Predictions are kept beside the records, in files named by their hash; both records must be of the same protocol, version,
overrides and data. Accuracy is compared by McNemar's exact test, other scores by a 95 % interval of their difference over
the images: of means over draws directly, of average precision by the bootstrap, of clusterings by the delta method, of detection and
segmentation by the jackknife.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.maths import contingency
from results import record as records
from zoo.errors import UserError

from .measure import Measurement, Settings, evaluate, keep_predictions, say
from .protocol import module_of
from .scores import Paired, bootstrap, jackknife, mean_average_precision, paired

DENSE = ("rcnn", "detr", "segmentation")  # their scores belong to the whole set of images: errors by the jackknife
CAUTION = "(on these images; another pre-training seed may differ by more)"


def compare(a: str, b: str, protocol: str, overrides: Mapping[str, Any]) -> str:
    """One paragraph: both scores, their difference with its interval, and the probability of so uneven a split.

    Models that have not been measured are measured first (features are kept, so this is quick the second time).
    """
    out = Path(Settings.of(overrides).options.out)
    paths = [evaluate(protocol, model, overrides, quiet=False) for model in (a, b)]
    one, two = (records.read(path) for path in paths)
    if one.data_fingerprint != two.data_fingerprint:
        raise UserError(f"{paths[0]} and {paths[1]} were measured on different data")
    found = [_predicted(out, *each, protocol, overrides) for each in ((one, paths[0], a), (two, paths[1], b))]
    (scores, correct), (other_scores, other_correct) = found
    if len(correct):
        if all(set(np.unique(c)) <= {0, 1} for c in (correct, other_correct)):
            return describe(one, two, paired(correct, other_correct))
        return describe_means(one, two, correct, other_correct)
    measurement = Measurement.of(protocol, a, Settings.of(overrides))
    if measurement.protocol.kind in DENSE:
        return describe_dense(one, two, measurement, scores, other_scores)
    if measurement.protocol.kind == "clustering":
        truth = np.asarray(measurement.open(measurement.scored).labels)
        return describe_clusterings(one, two, truth, scores, other_scores)
    targets = np.asarray(measurement.open(measurement.protocol.splits.test).targets)
    return describe_precision(one, two, targets, scores, other_scores)


def _predicted(
    out: Path, record: records.Record, path: Path, model: str, protocol: str, overrides: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a record, and scores of single images where it has them; computed again (from kept features, where
    they are) when the file is gone."""
    if record.predictions_sha256 is None:
        raise UserError(
            f"{record.protocol}: it keeps no predictions, so two models cannot be compared on the same images"
        )
    place = out / "predictions" / f"{record.predictions_sha256}.npz"
    if not place.is_file():
        say(f"{path}: its predictions are not in {place.parent}; computing them again")
        result = Measurement.of(protocol, model, Settings.of(overrides)).measure(say)
        if keep_predictions(result, place.parent) != record.predictions_sha256:
            raise UserError(
                f"{path}: its predictions are not in {place.parent}, and computed again they are others (another machine, "
                f"or other versions); to measure afresh: rm {path} && {record.command}"
            )
    with np.load(place) as kept:
        return np.asarray(kept["predictions"]), np.asarray(kept["correct"])


def describe(a: records.Record, b: records.Record, p: Paired) -> str:
    low, high = p.ci
    verdict = (
        "no difference beyond chance" if p.p_value >= 0.05 else f"{a.model if p.difference > 0 else b.model} is better"
    )
    return (
        f"{_title(a, p.n, p.a)}\n"
        f"  {_named(a):<40} {p.a:6.2f}\n"
        f"  {_named(b):<40} {p.b:6.2f}\n"
        f"  difference {p.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}; "
        f"right only by the first {p.only_a}, only by the second {p.only_b}; p = {p.p_value:.2g}\n"
        f"  {verdict} {CAUTION}"
    )


def describe_means(a: records.Record, b: records.Record, one: np.ndarray, two: np.ndarray) -> str:
    """Scores per image that are not 0 or 1 (a mean over draws): a paired normal interval."""
    gap = 100 * (one.astype(np.float64) - two)
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    row = _difference(a, b, "", [100 * float(one.mean()), 100 * float(two.mean())], error)
    return f"{_title(a, len(gap))}, mean over draws\n{row}\n  {CAUTION}"


def describe_precision(
    a: records.Record, b: records.Record, targets: np.ndarray, one: np.ndarray, two: np.ndarray
) -> str:
    """Scores (N, C) of several labels: the bootstrap over images, the same draws for both models."""
    rows = []
    for name, points in (("map", None), ("map11", 11)):
        values = [mean_average_precision(s, targets, points=points) for s in (one, two)]
        gaps = bootstrap([one], targets, points=points) - bootstrap([two], targets, points=points)
        rows.append(_difference(a, b, _metric_of(a, values[0]) or name, values, float(gaps.std(ddof=1))))
    return "\n".join([f"{_title(a, len(targets))}{_first(a)}", *rows, f"  {CAUTION}"])


def describe_clusterings(
    a: records.Record, b: records.Record, truth: np.ndarray, one: np.ndarray, two: np.ndarray
) -> str:
    """Cluster numbers (N,), -1 where an image has none: what each image adds to the scores of both."""
    kept = (one >= 0) & (two >= 0)
    truth, assigned = truth[kept], (one[kept], two[kept])
    tables = [contingency.contingency(truth, each) for each in assigned]
    scores = [contingency.scores(t) for t in tables]
    adds = [contingency.influences(t, s) for t, s in zip(tables, scores, strict=True)]
    cells = [contingency.cells(t, truth, each) for t, each in zip(tables, assigned, strict=True)]
    rows = []
    for name in adds[0]:
        gap = 100 * (adds[0][name][cells[0]] - adds[1][name][cells[1]])
        error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        rows.append(_difference(a, b, name, [100 * s[name] for s in scores], error))
    return "\n".join([f"{_title(a, len(truth))}{_first(a)}", *rows, f"  {CAUTION}"])


def describe_dense(
    a: records.Record, b: records.Record, measurement: Measurement, one: np.ndarray, two: np.ndarray
) -> str:
    """Kept detections or confusions: the jackknife over groups of images, the same groups for both models."""
    kind = module_of(measurement.protocol.kind).Kind(measurement.protocol, measurement)
    source = measurement.open(measurement.protocol.splits.test)
    both = [kind.score_kept(source, kept) for kept in (one, two)]
    whole = [score(np.arange(len(source))) for score in both]

    def gaps(images: np.ndarray) -> dict[str, float]:
        first, second = (score(images) for score in both)
        return {name: first[name] - second[name] for name in first if name in second}

    errors = jackknife(gaps, len(source))
    rows = [
        _difference(a, b, name, [values[name] for values in whole], errors[name])
        for name in measurement.protocol.metrics
        if name in errors
    ]
    return "\n".join([f"{_title(a, len(source))}{_first(a)}", *rows, f"  {CAUTION}"])


def _difference(a: records.Record, b: records.Record, metric: str, both: Sequence[float], error: float) -> str:
    one, two = both
    low, high = (one - two + side * 1.959964 * error for side in (-1, 1))
    better = a.model if one > two else b.model
    verdict = "no difference beyond chance" if low <= 0 <= high else f"{better} is better"
    metric = f"  {metric}\n" if metric else ""
    return (
        f"{metric}  {_named(a):<40} {one:6.2f}\n"
        f"  {_named(b):<40} {two:6.2f}\n"
        f"  difference {one - two:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}: {verdict}"
    )


def _title(record: records.Record, images: int, value: float | None = None) -> str:
    metric = None if value is None else _metric_of(record, value)
    return f"{record.protocol} on {images:,} images" + (f", {metric}" if metric else "")


def _metric_of(record: records.Record, value: float) -> str | None:
    """The metric that the kept predictions give: of several layers, the last one's."""
    of = {
        name: (m.per_seed or (m.value,))[0]
        for name, m in record.metrics.items()
        if m.style == "honest" and not name.startswith(("mean_per_class", "majority"))
    }
    return next((name for name, found in of.items() if abs(found - value) < 1e-6), None)


def _first(record: records.Record) -> str:
    """Predictions are kept of one seed only."""
    several = any(m.per_seed and len(m.per_seed) > 1 for m in record.metrics.values())
    return ", the first seed of the evaluation" if several else ""


def _named(record: records.Record) -> str:
    return record.model if record.pretrain_seed is None else f"{record.model} (seed {record.pretrain_seed})"
