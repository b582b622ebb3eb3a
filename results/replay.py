"""Run a record's commands again, in a fresh folder, and compare what comes out.

On the same kind of CPU with the same versions a replay must give the same numbers. Elsewhere a metric may move by what was measured
between the kernels of CPU families (cpu_drift.json, made by benchmarks/cpu_drift.py), which is no bound.
Only this project's own commands are run: a record is data, and data must not choose programs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from zoo.errors import UserError

from .record import Record, files, read
from .store import REPOSITORY, place

DRIFT = Path(__file__).with_name("cpu_drift.json")
UNRELATED = {"cores", "memory_gib"}  # of the hardware: no number depends on them (threads are compared by themselves)
MODULES = ("reproduce", "evaluations")
LAUNCH = re.compile(r"--(nproc[_-]per[_-]node|nnodes)=[0-9]+|--standalone")
Runner = Callable[[Sequence[str], dict[str, str]], None]


@dataclass(frozen=True)
class Outcome:
    """Both records, and every metric as (name, recorded, replayed)."""

    path: Path
    recorded: Record
    replayed: Record
    allowed: Mapping[str, float]  # metric -> largest difference that agrees
    differences: tuple[str, ...]  # of hardware and versions; empty: the numbers must be equal

    @property
    def metrics(self) -> list[tuple[str, float, float | None]]:
        again = self.replayed.metrics
        return [(n, m.value, again[n].value if n in again else None) for n, m in sorted(self.recorded.metrics.items())]

    @property
    def agrees(self) -> bool:
        return all(self.agree(*each) for each in self.metrics)

    def agree(self, name: str, old: float, new: float | None) -> bool:
        return new is not None and abs(new - old) <= self.allowed[name]


def replay(
    path: Path | str,
    *,
    tolerance: float | None = None,
    data: str | None = None,
    echo: bool = False,
    run: Runner | None = None,
) -> Outcome:
    """Pre-train (when the record says how) and evaluate again; nothing is left behind.

    ``tolerance`` None: 0 on the same hardware and versions, else the measured drift of each metric.
    """
    path = Path(path)
    recorded = read(path)
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        environment = os.environ | {"OMP_NUM_THREADS": str(recorded.provenance.threads)}
        for command in (recorded.pretrain_command, recorded.command):
            if command is not None:
                words = rewrite(command, folder, data, str(path))
                if echo:
                    print(f"$ {shlex.join(words)}", flush=True)
                (run or _run)(words, environment)
        replayed = _found(Path(folder) / "measured", recorded, path)
    differences = environment_differences(recorded, replayed)
    moved = drift(recorded.protocol, recorded.metrics) if differences else dict.fromkeys(recorded.metrics, 0.0)
    allowed = moved if tolerance is None else dict.fromkeys(recorded.metrics, tolerance)
    return Outcome(path, recorded, replayed, allowed, tuple(differences))


def drift(protocol: str, metrics: Iterable[str]) -> dict[str, float]:
    """{metric: the most that it moved between CPU families, in percentage points}; of metrics that were not measured under this
    protocol the most that any metric moved."""
    told = json.loads(DRIFT.read_text(encoding="utf-8"))
    moved: dict[tuple[str, str], float] = {}
    for row in told["rows"] + told["reported"]:
        values, key = row["values"].values(), (row["protocol"], row["metric"])
        moved[key] = max(moved.get(key, 0.0), max(values) - min(values))
    return {name: round(moved.get((protocol, name), max(moved.values())), 4) for name in metrics}


def flips() -> tuple[int, int]:
    """(verdicts "better than random" that changed with the kernels, those measured)."""
    marks = [set(row["marks"].values()) for row in json.loads(DRIFT.read_text(encoding="utf-8"))["verdicts"]]
    return sum(len(each) > 1 for each in marks), len(marks)


def rewrite(command: str, out: str, data: str | None, where: str) -> list[str]:
    """A recorded command as it is run again: this Python, a fresh ``out``, not into the committed records."""
    words = shlex.split(command)
    start, rest = [sys.executable], words[1:]
    if words[:1] == ["torchrun"]:
        options = list(takewhile(LAUNCH.fullmatch, rest))
        start, rest = [*start, "-m", "torch.distributed.run", *options], rest[len(options) :]
    known = words[:1] in (["python"], ["python3"], ["torchrun"])
    if not known or rest[:1] != ["-m"] or rest[1:2] not in [[module] for module in MODULES]:
        raise UserError(f"{where}: {command!r} is not a `python -m {' | '.join(MODULES)}` command and is not run")
    dropped = ("out=", "data=") if data is not None else ("out=",)
    kept = [w for w in [*start, *rest] if w != "--record" and not w.startswith(dropped)]
    return [*kept, f"out={out}", *([f"data={data}"] if data is not None else [])]


def environment_differences(one: Record, other: Record) -> list[str]:
    """What differs between two records' versions, hardware and threads."""
    a, b = one.provenance, other.provenance
    found = [
        f"{name} {a.libraries.get(name, 'absent')} -> {b.libraries.get(name, 'absent')}"
        for name in sorted(a.libraries.keys() | b.libraries.keys())
        if a.libraries.get(name) != b.libraries.get(name)
    ]
    here, there = _own_kernels(a.hardware), _own_kernels(b.hardware)
    found += [
        f"{name} {here.get(name)} -> {there.get(name)}"
        for name in sorted((here.keys() | there.keys()) - UNRELATED)
        if here.get(name) != there.get(name)
    ]
    return found + ([f"threads {a.threads} -> {b.threads}"] if a.threads != b.threads else [])


def _own_kernels(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """``hardware`` without the CPU's own kernels, which older records do not name: the CPU says which they are, unless the
    environment chose others."""
    return {k: v for k, v in hardware.items() if k != "kernels" or "=" in str(v)}


def report(outcome: Outcome) -> str:
    """What was compared and how it ended."""
    lines = []
    for name, old, new in outcome.metrics:
        ok, room = outcome.agree(name, old, new), outcome.allowed[name]
        said = f"({room:g} allowed)" if room else ""
        lines.append(
            f"  {name:24} recorded {old:10.4f}   replayed {'absent' if new is None else f'{new:10.4f}'}   {'ok' if ok else 'DIFFERS'} {said}".rstrip()
        )
    for name in ("weights_sha256", "predictions_sha256", "data_fingerprint"):
        old, new = getattr(outcome.recorded, name), getattr(outcome.replayed, name)
        lines.append(f"  {name:24} {'equal' if old == new else 'not equal'}")
    if outcome.differences:
        changed, of = flips()
        lines.append(
            f"  other surroundings ({'; '.join(outcome.differences)}): metrics may move by what was measured between CPU families, which is "
            f"no bound, and verdicts may change with them ({changed} of {of} did)"
        )
    else:
        lines.append("  same kind of CPU and versions: equal numbers are asked")
    verdict = "agrees" if outcome.agrees else "DOES NOT AGREE"
    return "\n".join([*lines, f"{place(outcome.path)}: the replay {verdict} with the record"])


def _run(words: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        words,
        check=False,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"{shlex.join(words)} ended with status {done.returncode}: {said or 'no message'}")


def _found(root: Path, recorded: Record, path: Path) -> Record:
    fits = [r for r in map(read, files(root)) if (r.question, r.version) == (recorded.question, recorded.version)]
    if not fits:
        made = ", ".join(f"{r.model} {r.protocol}@{r.version}" for r in map(read, files(root))) or "none"
        raise UserError(
            f"{path}: its command made no record of {recorded.model} {recorded.protocol}@{recorded.version} (made: {made}); "
            "the protocol may have a newer version: measure again"
        )
    return fits[0]
