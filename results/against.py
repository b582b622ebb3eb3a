"""``python -m results compare A B …``: methods against each other, on the numbers that tables show.

Two models are paired by pre-training seed: the same seed draws the same order of images and the same random numbers of views, folds and
label draws, and all are scored on the same test images. Student's paired t-test, two-sided, over the seeds that both have; all comparisons
that are printed are corrected together (S. Holm, Scandinavian Journal of Statistics 6, 1979), so that the probability of any false difference
among them stays below 5 %.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from zoo.errors import UserError

from .published import Catalogue
from .store import RecordStore, Summary
from .tables import load

LEVEL = 0.05  # probability of any false difference in one report


@dataclass(frozen=True)
class Duel:
    """Two models under one protocol and metric; ``p`` is corrected by Holm once all are known. ``reason``: why there is no test."""

    one: str
    two: str
    protocol: str
    metric: str
    differences: tuple[float, ...]  # one minus two, per common seed
    p: float | None
    corrected: float | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        if self.corrected is None:
            return f"no test: {self.reason}"
        if self.corrected >= LEVEL:
            return "not shown"
        return f"{self.one if statistics.fmean(self.differences) > 0 else self.two} is better"


def duels(models: Sequence[str], store: RecordStore, catalogue: Catalogue, pattern: str = "*") -> list[Duel]:
    """Every pair of models on every honest metric that a table shows of both. Raises UserError when there is none."""
    names = list(dict.fromkeys(catalogue.entry(model).id for model in models))
    found = []
    for protocol, version, metric in questions(pattern):
        summaries = {name: store.summary(name, protocol, version, metric) for name in names}
        for one, two in itertools.combinations(names, 2):
            a, b = summaries[one], summaries[two]
            if a and b:
                found.append(duel(a, b))
    if not found:
        raise UserError(
            f"{', '.join(names)}: no protocol matching {pattern!r} has records of two of them (python -m results show PATTERN)"
        )
    adjusted = iter(holm([d.p for d in found if d.p is not None]))
    return [d if d.p is None else replace(d, corrected=next(adjusted)) for d in found]


def questions(pattern: str) -> list[tuple[str, int, str]]:
    """(protocol, version, metric) of the measured columns of all tables, numbers chosen on the test split left out."""
    asked = [
        column.question
        for table in load()
        for column in table.columns
        if column.kind == "measured" and column.style == "honest" and not column.overrides
    ]
    return [q for q in dict.fromkeys(asked) if fnmatchcase(q[0], pattern)]


def duel(a: Summary, b: Summary) -> Duel:
    """The paired test of two summaries of the same protocol and metric."""
    values = [by_seed(summary) for summary in (a, b)]
    common = sorted(values[0].keys() & values[1].keys())
    differences = tuple(values[0][seed] - values[1][seed] for seed in common)
    names = (a.model, b.model, a.protocol, a.metric)
    if a.data != b.data:
        return Duel(*names, differences, None, reason="other test data")
    if len(common) < 2:
        return Duel(*names, differences, None, reason=f"{len(common)} pre-training seeds in common, 2 are needed")
    return Duel(*names, differences, paired(differences))


def by_seed(summary: Summary) -> dict[int, float]:
    """{pre-training seed: value}; released weights have none."""
    seeds = list(dict.fromkeys(s.record.pretrain_seed for s in summary.records))
    return (
        {s: v for s, v in zip(seeds, summary.values, strict=True) if s is not None}
        if len(seeds) == summary.seeds
        else {}
    )


def paired(differences: Sequence[float]) -> float:
    """Two-sided probability of Student's paired t-test."""
    from scipy.special import stdtr

    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(len(differences) - 1, -abs(mean) / error))


def holm(p: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number: the k-th smallest times (n - k + 1), never below the one before it."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, floor = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = floor
    return corrected


def report(found: Sequence[Duel]) -> str:
    """A table of all comparisons, and what they do and do not say."""
    from tabulate import tabulate

    lines = []
    for d in found:
        mean = f"{statistics.fmean(d.differences):+.2f}" if d.differences else ""
        spread = f" ± {statistics.stdev(d.differences):.2f}" if len(d.differences) > 1 else ""
        numbers = [f"{d.p:.2g}", f"{d.corrected:.2g}"] if d.p is not None else ["", ""]
        lines.append([d.protocol, d.metric, d.one, d.two, mean + spread, len(d.differences), *numbers, d.verdict])
    head = ["protocol", "metric", "one", "two", "one - two ± sd", "seeds", "p", "p (Holm)", "verdict"]
    tests = sum(d.p is not None for d in found)
    return (
        f"{tabulate(lines, head, disable_numparse=True)}\n\n"
        f"Paired by pre-training seed, Student's t, {tests} tests corrected together by Holm: a false difference among all of them has a "
        f"probability below {100 * LEVEL:g} %.\n"
        '"not shown" does not say that two models are equal: with three seeds only large differences can be shown. On these test images;\n'
        "for two sets of weights, image by image: python -m evaluations pair A B PROTOCOL"
    )
