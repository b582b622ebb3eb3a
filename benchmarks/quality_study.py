"""How well measures of quality without labels predict the linear probe: rank correlations over the laptop models, with intervals.

    python -m benchmarks.quality_study [--dataset digits] [--out runs] [--report FILE]

Every finished run below ``--out`` of a model of the data set is measured by quality_<dataset> (no label is opened) and by
linear_<dataset> (measured records are used again). A method counts once: the means over its runs. Correlations are Spearman's,
of each measure in the direction in which it is said to be better, with percentile intervals of 95 % from a bootstrap over the
methods: these answer for other methods, not for other data or networks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import provenance
from evaluations.measure import evaluate
from results import record as records
from zoo.errors import UserError, guard

# Direction in which each measure is better; alpha-ReQ is best at 1.
BETTER = {
    "rankme": 1,
    "effective_rank": 1,
    "participation_ratio": 1,
    "stable_rank": 1,
    "alpha_req": -1,
    "lidar": 1,
    "uniformity": -1,
    "alignment": -1,
    "self_clustering": -1,
    "cluster_stability": 1,
}
REFERENCES = ("pixels", "random", "supervised")
DRAWS = 10_000


@dataclass(frozen=True)
class Model:
    """A method: runs measured, the probe's top1 in percent, and its measures, means over the runs."""

    name: str
    runs: int
    probe: float
    measures: Mapping[str, float]


def goodness(name: str, value: float) -> float:
    """A measure turned so that more is said to be better."""
    return -abs(value - 1) if name == "alpha_req" else BETTER[name] * value


def ranked(values: np.ndarray) -> np.ndarray:
    """Ranks (..., n) of values along the last axis; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of (..., n) with (..., n); NaN where one of them does not vary."""
    x, y = (r - r.mean(-1, keepdims=True) for r in (ranked(a), ranked(b)))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))


def correlation(a: np.ndarray, b: np.ndarray, draws: int = DRAWS) -> tuple[float, float, float]:
    """(value, low, high): Spearman's correlation of (n,) with (n,), and its bootstrap interval of 95 % over the n."""
    chosen = np.random.default_rng(0).integers(0, len(a), (draws, len(a)))
    found = spearman(a[chosen], b[chosen])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(spearman(a, b)), float(low), float(high)


def measured(dataset: str, out: Path) -> list[Model]:
    """Every method with a finished run below ``out``. UserError when there are fewer than four."""
    found: dict[str, list[tuple[float, dict[str, float]]]] = defaultdict(list)
    runs = sorted(p.parent for p in out.glob(f"*_{dataset}/*/done.json"))
    for number, run in enumerate(runs, 1):
        print(f"{run} ({number} of {len(runs)})", file=sys.stderr, flush=True)
        given = {"out": str(out)}
        each = [
            records.read(evaluate(f"{kind}_{dataset}", str(run), given, quiet=True)) for kind in ("linear", "quality")
        ]
        values = {name: metric.value for name, metric in each[1].metrics.items()}
        found[run.parent.name.removesuffix(f"_{dataset}")].append((each[0].metrics["top1"].value, values))
    if len(found) < 4:
        raise UserError(
            f"{out}: {len(found)} methods with finished runs on {dataset}; a correlation needs some more: make bench"
        )
    return [
        Model(
            name,
            len(each),
            statistics.fmean(probe for probe, _ in each),
            {
                m: statistics.fmean(values[m] for _, values in each)
                for m in BETTER
                if all(m in values for _, values in each)
            },
        )
        for name, each in found.items()
    ]


def study(models: Sequence[Model]) -> dict[str, tuple[int, tuple[float, float, float]]]:
    """Measure -> (methods that have it, correlation with the probe), best first."""
    found = {}
    for name in BETTER:
        having = [m for m in models if name in m.measures]
        if len(having) > 3:
            values = np.array([goodness(name, m.measures[name]) for m in having])
            found[name] = len(having), correlation(values, np.array([m.probe for m in having]))
    return dict(sorted(found.items(), key=lambda item: -item[1][1][0]))


def report(models: Sequence[Model], dataset: str, command: str) -> str:
    models = sorted(models, key=lambda m: -m.probe)
    trained = [m for m in models if m.name not in REFERENCES]
    lines = [
        "# Quality without labels, and the linear probe",
        "",
        f"`{command}`",
        "",
        f"{len(models)} methods on {dataset}, {sum(m.runs for m in models)} runs; {provenance.collect()['hardware']['cpu']}. Spearman's rank "
        "correlation of each measure, in the direction in which it is said to be better, with the top1 of the linear probe; in brackets "
        "the interval of 95 % from a bootstrap over the methods. Pixels have another width than the networks.",
        "",
        f"| measure | all {len(models)} | without {', '.join(REFERENCES)} ({len(trained)}) |",
        "|:--|--:|--:|",
    ]
    every, only = study(models), study(trained)
    cell = lambda found: "–" if found is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found[1])
    lines += [f"| {name} | {cell(every[name])} | {cell(only.get(name))} |" for name in every]
    names = [name for name in BETTER if any(name in m.measures for m in models)]
    lines += ["", *verdict(every, only), "", f"| method | runs | linear probe, % | {' | '.join(names)} |"]
    lines.append(f"|:--|--:|--:|{'--:|' * len(names)}")
    shown = lambda m, name: f"{m.measures[name]:.3g}" if name in m.measures else "–"
    lines += [
        f"| {m.name} | {m.runs} | {m.probe:.1f} | {' | '.join(shown(m, name) for name in names)} |" for m in models
    ]
    return "\n".join(lines) + "\n"


def verdict(
    every: Mapping[str, tuple[int, tuple[float, float, float]]],
    only: Mapping[str, tuple[int, tuple[float, float, float]]],
) -> list[str]:
    """Which measures have an interval on one side of zero, in both groups."""
    lines = []
    for title, found in (("Over all methods", every), ("Among the label-free methods", only)):
        up = [name for name, (_, (_, low, _)) in found.items() if low > 0]
        down = [name for name, (_, (_, _, high)) in found.items() if high < 0]
        lines.append(
            f"- {title}, intervals above zero: {', '.join(up) or 'none'}; below zero (the opposite of what is said): {', '.join(down) or 'none'}."
        )
    return [*lines, f"- {len(every)} measures were looked at, so that one interval of twenty may miss by chance."]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--dataset", default="digits", choices=("digits", "fashion_mnist"))
    parser.add_argument("--out", default="runs", help="where the runs are, and the records go (default %(default)s)")
    parser.add_argument("--report", metavar="FILE", help="write what is printed there as well")
    args = parser.parse_args(words)
    text = report(
        measured(args.dataset, Path(args.out)),
        args.dataset,
        f"python -m benchmarks.quality_study --dataset {args.dataset}",
    )
    print(text, end="")
    if args.report:
        Path(args.report).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main, kept={"": "finished records are"}))  # after Ctrl-C
