"""Is my loss normal? The losses of the runs behind the committed records, by share of the run: curves.json.

    python -m reproduce.curves [out=FOLDER]      write the finished runs below FOLDER into curves.json, without those of former recipes

A curve belongs to a recipe's hash: runs of other settings or images have no curve here, since their losses are not comparable.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from engine import checkpoint
from engine.options import RunOptions
from zoo import settings
from zoo.errors import UserError, guard

FILE = Path(__file__).with_suffix(".json")
POINTS = 20  # of a curve; the loss at each is the mean of the log's lines in the twentieth of the run that ends there


@dataclass(frozen=True)
class Curve:
    """runs: how many; low, high: of the loss over them, (POINTS,), at the ends of equal parts of a run."""

    runs: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    def at(self, share: float) -> tuple[float, float]:
        """(low, high) of the loss in the part of a run that holds this share (0 to 1) of its steps."""
        k = min(len(self.low) - 1, max(0, int(np.ceil(share * len(self.low))) - 1))
        return self.low[k], self.high[k]


@cache
def known(path: Path = FILE) -> Mapping[str, Curve]:
    """Every committed curve by '<model>/<recipe hash>'."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: Curve(c["runs"], tuple(c["low"]), tuple(c["high"])) for name, c in found.items()}


def of(folder: Path) -> Curve | None:
    """The curve of the recipe that a run folder (…/<model>/<hash>-s<seed>) is of."""
    return known().get(f"{folder.parent.name}/{folder.name.rpartition('-s')[0]}")


def points(steps: Sequence[int], losses: Sequence[float], total: int) -> list[float] | None:
    """(POINTS,) means of the loss over equal parts of a run; None where a part has no line of the log."""
    part = np.minimum(np.ceil(np.asarray(steps) * POINTS / total).astype(int) - 1, POINTS - 1)
    values = np.asarray(losses, dtype=float)
    if set(part.tolist()) != set(range(POINTS)) or not np.isfinite(values).all():
        return None
    return [float(values[part == k].mean()) for k in range(POINTS)]


def collect(runs: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The curves of finished runs (reproduce.runs.Run), by '<model>/<recipe hash>', rounded to four digits."""
    each: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        if run.state != "finished" or not run.total or not run.lines:
            continue
        found = points([line["step"] for line in run.lines], [float(line["loss"]) for line in run.lines], run.total)
        if found is not None:
            each[f"{run.folder.parent.name}/{run.folder.name.rpartition('-s')[0]}"].append(found)
    rounded = lambda values: [float(f"{v:.4g}") for v in values]
    return {
        name: {"runs": len(losses), "low": rounded(np.min(losses, axis=0)), "high": rounded(np.max(losses, axis=0))}
        for name, losses in sorted(each.items())
    }


def current(name: str) -> bool:
    """Whether '<model>/<recipe hash>' is a model of the registry with its recipe of today."""
    model, _, hash = name.partition("/")
    return model in zoo.models() and zoo.resolve(model).hash()[: len(hash)] == hash


def main(words: Sequence[str] | None = None) -> int:
    from reproduce import runs

    options, rest = RunOptions.split(settings.parse(sys.argv[1:] if words is None else words))
    if rest:
        raise UserError(f"{', '.join(rest)}: out=FOLDER only")
    found = collect(runs.below(options.out))
    if found and FILE.is_file():
        found = {**json.loads(FILE.read_text(encoding="utf-8")), **found}
        found = {name: curve for name, curve in found.items() if current(name)}
    if not found:
        raise UserError(f"{options.out}: no finished runs below it whose logs make a curve")
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(curve)}" for name, curve in sorted(found.items()))
    checkpoint.write_text(FILE, "{\n" + lines + "\n}\n")
    print(f"{FILE}: {len(found)} curves")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
