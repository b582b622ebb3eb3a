"""Published against measured for one model: spread, verdict, and what may explain a difference."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.schema import Recipe
from zoo.settings import read_like

from . import cells
from .published import Catalogue, Fact, whose
from .record import interval
from .store import REPOSITORY, RecordStore, Stored, Summary, place, summarise

PROTOCOLS = REPOSITORY / "evaluations" / "protocols"
NO_SCORES = ("seconds_per_epoch", "millions")  # published about a model, and no evaluation measures them
ROUNDING = 0.05  # papers print one decimal
SETTINGS = frozenset(Recipe.model_fields) - {"seed"}  # first words of the paths that make another recipe


@dataclass(frozen=True)
class Comparison:
    """One published number, one measured one, or both. ``verdict``: agrees | above | below | not measured | not published."""

    protocol: str
    metric: str
    fact: Fact | None
    summary: Summary | None
    allowed: float | None
    spread_from: str
    verdict: str
    reasons: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        return self.summary.value - self.fact.published.value if self.summary and self.fact else None


def allowance(summary: Summary) -> tuple[float, str]:
    """How far a measured value may lie from a published one, and where that comes from.

    A published number is one draw from the same distribution, so its distance from a mean of n draws has the standard
    deviation s sqrt(1 + 1/n); twice that, and the rounding of the printed number, are allowed. Without several seeds s
    is the sampling error of the test split, which is too wide for the same weights on the same images.
    """
    if summary.seeds > 1:
        s = statistics.stdev(summary.values)
        return 2 * s * math.sqrt(1 + 1 / summary.seeds) + ROUNDING, f"{summary.seeds} pre-training seeds"
    if summary.sd is not None:
        return 2 * summary.sd * math.sqrt(1 + 1 / summary.inner) + ROUNDING, f"{summary.inner} evaluation seeds"
    metric = summary.records[0].record.metrics[summary.metric]
    bounds = metric.ci or (interval(metric.value, metric.n) if metric.n and 0 <= metric.value <= 100 else None)
    if bounds is None:
        return ROUNDING, "rounding alone (no seeds, no sample count)"
    return (bounds[1] - bounds[0]) / 2 + ROUNDING, f"95 % interval of {metric.n or 'the'} test samples (one run)"


def judge(fact: Fact, summary: Summary) -> tuple[str, float, str]:
    """(verdict, allowed difference, where the spread comes from)."""
    allowed, source = allowance(summary)
    difference = summary.value - fact.published.value
    return ("agrees" if abs(difference) <= allowed else "above" if difference > 0 else "below"), allowed, source


def compare(model: str, store: RecordStore, catalogue: Catalogue) -> list[Comparison]:
    """Every protocol and metric that somebody published or measured for ``model`` (an alias is resolved)."""
    model = catalogue.entry(model).id
    groups: dict[tuple[str, str], list[Stored]] = {}
    for stored in store.of(model):
        if not stored.record.overrides:
            for metric in stored.record.metrics:
                groups.setdefault((stored.record.protocol, metric), []).append(stored)
    found, done = [], set()
    for fact in catalogue.facts(model):
        if fact.published.metric in NO_SCORES:
            continue
        name = (fact.published.protocol, fact.published.metric)
        summary = summarise(groups[name], name[1]) if name in groups else None
        done.add(name)
        if summary is None:
            found.append(Comparison(*name, fact, None, None, "", "not measured", ()))
            continue
        verdict, allowed, source = judge(fact, summary)
        said = () if verdict == "agrees" else tuple(reasons(fact, summary, store))
        found.append(Comparison(*name, fact, summary, allowed, source, verdict, said))
    for name in sorted(set(groups) - done):
        found.append(Comparison(*name, None, summarise(groups[name], name[1]), None, "", "not published", ()))
    return found


def reasons(fact: Fact, summary: Summary, store: RecordStore) -> list[str]:
    """Known differences between what was published and what was run, the likeliest first."""
    record = summary.records[0].record
    found = []
    if fact.published.origin == "quoted":
        found.append(f"the published number is second hand ({fact.published.by or fact.published.source})")
    if fact.published.note:
        found.append(f"about the published number: {fact.published.note}")
    if record.form == "fast":
        found.append("fast form: features cached once, without the augmentation of the published probe")
    found += [f"pre-training was changed: {word}" for word in changes(record.pretrain_command)]
    if record.pretrain_command is not None:
        found.append("own pre-training, not the authors' weights")
    best = f"{summary.metric}_best_on_test"
    if summary.style == "honest" and best in record.metrics:
        value = summarise(summary.records, best).value
        found.append(
            f"papers often print the best epoch on test, which is {value:.2f} here; this number was not chosen on test"
        )
    protocol = _protocol(summary.protocol)
    if protocol.get("version") not in (None, summary.version):
        found.append(f"measured with @{summary.version}, the protocol is @{protocol['version']} now: measure again")
    differs = protocol.get("differs_from") or []
    found += [f"the protocol differs: {d}" for d in ([differs] if isinstance(differs, str) else _lines(differs))]
    seconds = sum(s.record.provenance.seconds for s in summary.records)
    found.append(
        f"hardware {_hardware(record.provenance.hardware)}, {seconds:.0f} s; precision and batch as in the record"
    )
    return found


def changes(command: str | None) -> list[str]:
    """The recipe settings that a pre-training command changes; its seed and how it was run (data=, out=, …) are none."""
    words = shlex.split(command or "")
    return [w for w in words if "=" in w and w.partition("=")[0].partition(".")[0] in SETTINGS]


def report(found: list[Comparison]) -> str:
    """A table and, below it, what may explain each difference."""
    from tabulate import tabulate

    lines = []
    for c in found:
        lines.append(
            [
                c.protocol,
                c.metric,
                f"{cells.published(c.fact.published.value)} ({whose(c.fact.published)})" if c.fact else "",
                cells.measured(c.summary) if c.summary else "",
                f"{c.difference:+.2f}" if c.difference is not None else "",
                f"±{c.allowed:.2f} from {c.spread_from}" if c.allowed is not None else "",
                c.verdict,
            ]
        )
    if not lines:
        return "nothing was published and nothing was measured for this model"
    head = ["protocol", "metric", "published", "measured", "difference", "allowed", "verdict"]
    parts = [tabulate(lines, head, disable_numparse=True)]
    for c in found:
        if c.reasons:
            parts.append(
                f"{c.protocol} {c.metric} is {c.verdict}; it may be because:\n"
                + "\n".join(f"  - {r}" for r in c.reasons)
            )
        if c.fact:
            parts.append(f"{c.protocol} {c.metric}: published in {c.fact.published.source}")
        if c.summary:
            parts.append(f"{c.protocol} {c.metric}: measured in {', '.join(place(s.path) for s in c.summary.records)}")
    return "\n\n".join([parts[0], "\n".join(parts[1:])])


def _protocol(name: str, folder: Path | None = None) -> Mapping[str, Any]:
    path = (folder or PROTOCOLS) / f"{name}.yaml"
    return read_like(path) if path.is_file() else {}


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}: {text}" for key, text in value.items()]
    return [str(item) for item in value]


def _hardware(hardware: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for _, value in sorted(hardware.items())) or "not recorded"
