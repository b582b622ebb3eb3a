"""Finding records, and one number per (model, protocol, metric): the mean over pre-training seeds with its spread."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError, suggest

from .record import COMMITTED, Metric, Record, files, read

REPOSITORY = Path(__file__).resolve().parents[1]
ENOUGH_RANDOM = 5  # random seeds without which nothing is called better than random
LEVEL = 0.01  # of Welch's test behind a mark; a test simulates how often it is wrong (FALSE_ALARMS)
FALSE_ALARMS = (0.7, 2.3)  # percent of marks where nothing differs: 3 seeds against 5, spreads from 1:3 to 3:1


@dataclass(frozen=True)
class Stored:
    """A record and the file it came from."""

    path: Path
    record: Record


@dataclass(frozen=True)
class Summary:
    """One metric of one model under one protocol.

    ``values`` holds one number per pre-training seed (mean over its evaluation seeds); ``sd`` is their sample standard
    deviation, or, for a single set of weights, that over evaluation seeds (``inner`` of them); None when neither exists.
    ``images`` is half the width of the 95 % interval for other test images, the mean of the records' (they share their images, so
    that more seeds make it no smaller); None where a record has none.
    """

    model: str
    protocol: str
    version: int
    metric: str
    values: tuple[float, ...]
    value: float
    sd: float | None
    images: float | None
    inner: int
    style: str
    notes: tuple[str, ...]
    transductive: bool
    data: frozenset[str]
    records: tuple[Stored, ...]

    @property
    def seeds(self) -> int:
        return len(self.values)

    @property
    def name(self) -> str:
        return f"{self.model} {self.protocol}@{self.version} {self.metric}"


class RecordStore:
    """Every record below some roots, checked on reading. A later root takes the place of an earlier one for each
    (model, protocol) that it holds: a user's own records are never averaged with the committed ones."""

    def __init__(self, roots: Sequence[Path | str] = (COMMITTED,)) -> None:
        self.roots = tuple(Path(root) for root in roots)
        self._groups: dict[tuple[str, str], list[Stored]] = {}
        for root in self.roots:
            found: dict[tuple[str, str], list[Stored]] = defaultdict(list)
            for stored in load(root):
                found[stored.record.model, stored.record.protocol].append(stored)
            self._groups.update(found)

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def all(self) -> list[Stored]:
        return [stored for group in sorted(self._groups) for stored in self._groups[group]]

    def models(self) -> list[str]:
        return sorted({model for model, _ in self._groups})

    def of(self, model: str) -> list[Stored]:
        return [stored for stored in self.all() if stored.record.model == model]

    def summary(
        self, model: str, protocol: str, version: int, metric: str, overrides: Mapping[str, Any] | None = None
    ) -> Summary | None:
        """None when nothing was measured; UserError when the records contradict each other or the version asked for."""
        wanted = dict(overrides or {})
        group = [s for s in self._groups.get((model, protocol), []) if s.record.overrides == wanted]
        if not group:
            return None
        versions = sorted({s.record.version for s in group})
        if versions != [version]:
            other = next(s for s in group if s.record.version != version)
            raise UserError(
                f"{place(other.path)}: {protocol}@{other.record.version}, but @{version} is asked for; "
                f"measure again: {other.record.command}"
            )
        data = frozenset(s.record.data_fingerprint for s in group)
        if len(data) > 1:
            raise UserError(
                f"{model} {protocol}@{version}: records of different data ({', '.join(sorted(data))}): "
                f"{', '.join(place(s.path) for s in group)}; remove those that do not belong here"
            )
        return summarise(group, metric)


def load(root: Path | str) -> list[Stored]:
    """The records below a root, each in its model's folder under its own name, none answering the same question twice."""
    found = [Stored(path, read(path)) for path in files(root)]
    asked: dict[tuple[object, ...], Path] = {}
    for stored in found:
        expected = Path(root) / stored.record.filename
        if stored.path != expected:
            raise UserError(f"{place(stored.path)}: this record belongs in {place(expected)}; move it there")
        first = asked.setdefault(stored.record.identity, stored.path)
        if first != stored.path:
            raise UserError(
                f"{place(first)} and {place(stored.path)}: two records of the same model, seed, data, protocol and overrides; "
                "remove the older one"
            )
    return found


def summarise(group: Sequence[Stored], metric: str) -> Summary:
    """Mean over evaluation seeds within each set of weights, then over pre-training seeds."""
    by_weights: dict[tuple[int, str], list[Stored]] = defaultdict(list)
    for stored in group:
        seed = stored.record.pretrain_seed
        by_weights[-1 if seed is None else seed, stored.record.unnamed_weights].append(stored)
    ordered = [by_weights[one] for one in sorted(by_weights)]
    inner = [[value for stored in runs for value in _evaluations(_metric(stored, metric))] for runs in ordered]
    values = tuple(statistics.fmean(_metric(stored, metric).value for stored in runs) for runs in ordered)
    first, metrics = group[0].record, [_metric(stored, metric) for stored in group]
    styles = sorted({m.style for m in metrics})
    if len(styles) > 1:
        raise UserError(f"{first.model} {first.protocol} {metric}: honest and paper-style records cannot be averaged")
    if len(values) > 1:
        sd: float | None = statistics.stdev(values)
    elif len(inner[0]) > 1:
        sd = statistics.stdev(inner[0])
    else:
        sd = metrics[0].sd if metrics[0].per_seed else None
    return Summary(
        model=first.model,
        protocol=first.protocol,
        version=first.version,
        metric=metric,
        values=values,
        value=statistics.fmean(values),
        sd=sd,
        images=_half_width(metrics),
        inner=min(len(runs) for runs in inner),
        style=styles[0],
        notes=tuple(sorted({m.note for m in metrics if m.note})),
        transductive=any(s.record.transductive for s in group),
        data=frozenset(s.record.data_fingerprint for s in group),
        records=tuple(stored for runs in ordered for stored in runs),
    )


@dataclass(frozen=True)
class Verdict:
    """``mark`` is better | worse | not shown | unknown; ``said`` is the sentence with the numbers."""

    mark: str
    said: str


def welch(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """(difference of the means in standard errors, probability of one as large where nothing differs): Welch's t-test, two-sided,
    for at least two values each (B. L. Welch, Biometrika 34, 1947)."""
    from scipy.special import stdtr

    a, b = (statistics.variance(values) / len(values) for values in (one, two))
    difference, error = statistics.fmean(one) - statistics.fmean(two), math.sqrt(a + b)
    if error == 0:
        return (math.copysign(math.inf, difference), 0.0) if difference else (0.0, 1.0)
    freedom = (a + b) ** 2 / (a * a / (len(one) - 1) + b * b / (len(two) - 1))
    return difference / error, float(2 * stdtr(freedom, -abs(difference) / error))


def better_than_random(row: Summary, random: Summary) -> Verdict:
    """The rule: at least five random seeds, and Welch's t-test of the means over pre-training seeds below LEVEL; same protocol and data.

    It is about these test images. The caller answers for the same backbone. ``unknown`` when the rule cannot be applied.
    """
    if (row.protocol, row.version, row.metric, row.data) != (
        random.protocol,
        random.version,
        random.metric,
        random.data,
    ):
        raise UserError(f"{row.name} and {random.name} cannot be compared: other protocol, metric or data")
    if random.seeds < ENOUGH_RANDOM:
        return Verdict("unknown", f"{random.model} has {random.seeds} seeds, {ENOUGH_RANDOM} are needed")
    if row.seeds < 2:
        return Verdict("unknown", "one pre-training seed, its spread is not known")
    errors, p = welch(row.values, random.values)
    mark = "not shown" if p >= LEVEL else "better" if errors > 0 else "worse"
    return Verdict(
        mark, f"{row.value - random.value:+.2f} to {random.model}, {abs(errors):.1f} standard errors, p = {p:.2g}"
    )


def place(path: Path) -> str:
    """A path as a reader of the repository types it."""
    path = path.resolve()
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def _metric(stored: Stored, name: str) -> Metric:
    found = stored.record.metrics.get(name)
    if found is None:
        known = sorted(stored.record.metrics)
        raise UserError(f"{place(stored.path)}: no metric {name!r}{suggest(name, known)} (it has {', '.join(known)})")
    return found


def _half_width(metrics: Sequence[Metric]) -> float | None:
    widths = [m.ci[1] - m.ci[0] for m in metrics if m.ci]
    return statistics.fmean(widths) / 2 if len(widths) == len(metrics) else None


def _evaluations(metric: Metric) -> Iterable[float]:
    return metric.per_seed or (metric.value,)
