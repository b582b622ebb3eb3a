"""``python -m results fill TABLE``: the commands that fill a table's empty measured cells, and their execution.

Everything is done by the project's own commands in processes of their own, so that each can be repeated alone, and what is finished is
not done again. What is missing: results/missing.py.
"""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError

from .compare import judge
from .missing import Run, missing
from .pages import page
from .published import Catalogue
from .record import COMMITTED
from .store import REPOSITORY, RecordStore
from .tables import Built, build, load, pick

OPTIONS = ("data", "device", "workers", "precision")  # how a run is made; everything else would be another cell
SAVED = (138, 140)  # exit status of a run that saved after SIGUSR1 or SIGUSR2 (engine/signals.py)
Runner = Callable[[Sequence[str]], int]


def fill(
    name: str,
    *,
    plan: bool = False,
    sbatch: bool = False,
    record: bool = False,
    out: Path = Path("runs"),
    options: Mapping[str, Any] | None = None,
    runner: Runner | None = None,
    committed: Path = COMMITTED,
) -> int:
    """Print, or run, what fills table ``name``; returns 2 when a command failed, else 0.

    ``record``: into results/measured/ instead of ``out``/measured. ``options``: data, device, workers, precision for every command.
    """
    table = pick(load(), name)[0]
    given = _checked(options or {})
    roots = [committed] if record else [committed, out / "measured"]
    runs = missing(table, roots, Catalogue(), out=out, record=record, given=given)
    if sbatch:
        print("\n\n".join(batch_script(run) for run in runs) or f"{name}: no empty measured cell")
        return 0
    print(report(name, runs, given))
    if plan:
        return 0
    failed = execute(runs, runner or _run)
    built = build(table, RecordStore(roots), Catalogue())
    print(f"\n{closing(built)}")
    left = missing(table, roots, Catalogue(), out=out, record=record, given=given)
    if left:
        print(f"\n{_count(left)} still to be made; the same command goes on")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 2 if failed else 0


def report(name: str, runs: Sequence[Run], given: Mapping[str, Any]) -> str:
    """The plan: every run with its commands, its duration where known, and what is missing here."""
    if not runs:
        return f"{name}: no empty measured cell"
    lines = [f"{name}: {_count(runs)} missing. Cheapest first:"]
    for run in runs:
        lines.append(f"\n{run.name}")
        if run.first:
            time = f"about {hours(run.seconds)}: {run.said}" if run.seconds is not None else "duration not known"
            lines.append(f"  {shlex.join(run.first)}    # {time}")
        for one in run.evaluations:
            time = f"about {hours(one.seconds)}" if one.seconds is not None else "duration not known"
            lines.append(f"  {shlex.join(one.words)}    # {time}")
        if lack := _short(_lacks(run)):
            lines.append(f"  missing here: {', '.join(lack)}")
    if every := dict.fromkeys(said for run in runs for said in _lacks(run)):
        lines += ["", "Missing here", *(f"  {said}" for said in every)]
    able = [run for run in runs if run.ready]
    known = [run.cost for run in able if math.isfinite(run.cost)]
    lines.append(
        f"\n{sum(len(r.ready) for r in able)} of {sum(len(r.evaluations) for r in runs)} records can be made here"
        + (f", about {hours(sum(known))} for {len(known)} of {len(able)} runs" if known else "")
        + ". For a cluster: --sbatch"
    )
    return "\n".join(lines)


def execute(runs: Sequence[Run], runner: Runner) -> list[str]:
    """Run what can run, in order; what failed, one line each. A weight file that is there is not made again."""
    failed = []
    able = [run for run in runs if run.ready]
    for number, run in enumerate(able, 1):
        print(f"\n[{number}/{len(able)}] {run.name}", flush=True)
        steps = [words for words in (run.first, *(e.words for e in run.ready)) if words]
        for words in steps:
            print(f"$ {shlex.join(words)}", flush=True)
            if status := runner(words):
                failed.append(f"{shlex.join(words)} ended with status {status}")
                if words == run.first:
                    break  # without weights there is nothing to evaluate
    return failed


def closing(built: Built) -> str:
    """The table with its legend, and every verdict: against the random row, and against published numbers."""
    text, _, rest = page(built, REPOSITORY / "results" / "tables").partition("\n## ")
    marks = rest.partition("## Verdicts\n")[2].strip()
    lines = [*([marks] if marks else []), *against_published(built)]
    return text.rstrip() + (
        "\n\nVerdicts\n\n" + "\n".join(lines) if lines else "\n\nNo verdict: nothing was measured yet"
    )


def against_published(built: Built) -> list[str]:
    """One line per pair of a published and a measured cell of the same row, protocol and metric."""
    lines = []
    for name, row in built.rows:
        facts = {(c.fact.published.protocol, c.fact.published.metric): c.fact for c in row if c.fact}
        for column, cell in zip(built.table.columns, row, strict=True):
            if cell.summary is None or column.style == "paper":
                continue
            if fact := facts.get((cell.summary.protocol, cell.summary.metric)):
                verdict, allowed, source = judge(fact, cell.summary)
                lines.append(
                    f"- `{name}`, {column.head}: {verdict} (published {fact.published.value:g}, measured "
                    f"{cell.summary.value:.2f}, ±{allowed:.2f} allowed from {source})"
                )
    return lines


def batch_script(run: Run) -> str:
    """A Slurm batch script of one run; times, partitions and accounts are the cluster's own."""
    nodes, each = -(-run.gpus // 8), min(run.gpus, 8)
    head = [
        "#!/bin/bash",
        f"#SBATCH --job-name={run.name.replace(' ', '-')}",
        f"#SBATCH --nodes={nodes} --ntasks-per-node={each} --gpus-per-node={each} --cpus-per-task=8",
        "#SBATCH --requeue --signal=USR1@120   # the run saves and is queued again: the same script goes on",
    ]
    said = [f"# {lack}" for lack in run.missing if not lack.startswith(("a GPU", "data"))]
    body = []
    if run.first and run.seed is None:
        body.append(f"{shlex.join(run.first)} || exit $?")  # one process fetches
    elif run.first:  # all of them pre-train, and leave with the status of a notice when they have saved
        body += [
            f"srun --kill-on-bad-exit=0 {shlex.join(run.first)}",
            "status=$?",
            f"case $status in {'|'.join(map(str, SAVED))}) scontrol requeue $SLURM_JOB_ID ;; esac",
            "[ $status = 0 ] || exit $status",
        ]
    body += [f"srun --nodes=1 --ntasks=1 {shlex.join(e.words)} || exit $?" for e in run.evaluations]
    return "\n".join([*head, *said, *body])


def hours(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _lacks(run: Run) -> list[str]:
    return list(dict.fromkeys((*run.missing, *(said for one in run.evaluations for said in one.missing))))


def _short(lack: Sequence[str]) -> list[str]:
    """What is missing, without the next step."""
    return list(dict.fromkeys(said.partition(":")[0] for said in lack))


def _count(runs: Sequence[Run]) -> str:
    records = sum(len(run.evaluations) for run in runs)
    return f"{records} record{'s' * (records != 1)} of {len(runs)} set{'s' * (len(runs) != 1)} of weights"


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UserError(
            f"{unknown[0]}=: fill passes on {', '.join(OPTIONS)} only; another setting would be another cell"
        )
    return dict(options)


def _run(words: Sequence[str]) -> int:
    """Ctrl-C at the terminal reaches the command too: it finishes its step and saves, and is waited for."""
    process = subprocess.Popen([sys.executable, *words[1:]])
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.send_signal(
                signal.SIGINT
            )  # where only this process was told; a second notice within a second is the same
            process.wait()
        raise
