"""`python -m reproduce runs`: the runs below a folder, each with what its log says; `runs RUN` draws the curves of one.

    python -m reproduce runs [out=FOLDER]           a line for each run: state, step, loss, rate, monitor, time left, alarms
    python -m reproduce runs RUN [out=FOLDER]       the last numbers of a run, its alarms, and RUN/curves.png

RUN is a run folder, or enough of its name to be the only one: swav_digits, swav_digits/4a, …. Files are read, no run is
disturbed: a run that another process trains is shown as its log has it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from engine import checkpoint, log
from engine.folder import holder
from engine.options import RunOptions
from engine.progress import duration
from reproduce import curves
from zoo import settings
from zoo.errors import UserError

CURVES = "curves.png"
PLAIN = ("step", "epoch", "loss", "lr", "images_per_second")  # numbers of a log's line that the engine itself writes
MONITOR = "monitor_"
COLUMNS = 3  # panels beside each other


@dataclass(frozen=True)
class Run:
    """A run folder, read: recipe.yaml, log.jsonl, done.json, and who holds its lock."""

    folder: Path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        found = yaml.safe_load((self.folder / "recipe.yaml").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        return log.read(self.folder / "log.jsonl")

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The log's numbers, one dictionary for each log interval."""
        return [line for line in self.log if "event" not in line and "step" in line]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line.get("event") == name]

    @cached_property
    def done(self) -> dict[str, Any] | None:
        path = self.folder / "done.json"
        return checkpoint.read_json(path) if path.is_file() else None

    @cached_property
    def holder(self) -> str | None:
        return holder(self.folder)

    @property
    def state(self) -> str:
        """finished, running, diverged (the loss was not finite), or stopped: the same command goes on."""
        if self.done is not None:
            return "finished"
        if self.holder is not None:
            return "running"
        last: dict[str, Any] = next(
            (line for line in reversed(self.log) if line.get("event") in ("non_finite_loss", "resumed")), {}
        )
        return "diverged" if last.get("event") == "non_finite_loss" else "stopped"

    @property
    def step(self) -> int:
        return int(self.done["steps"]) if self.done else int(self.lines[-1]["step"]) if self.lines else 0

    @cached_property
    def total(self) -> int | None:
        """Steps of the whole run; None where neither the log nor the recipe says it."""
        if self.done:
            return int(self.done["steps"])
        began = self.events("began")
        if began:
            return int(began[-1]["steps"])
        images = (self.recipe.get("schedule") or {}).get("images")
        return round(images / self.recipe["batch"]) if images and self.recipe.get("batch") else None

    @property
    def chance(self) -> float | None:
        """The loss of a network that says the same of every image, where the method has one."""
        began = self.events("began")
        return began[-1].get("chance") if began else None

    @property
    def loss(self) -> float | None:
        if self.done and self.done.get("loss") is not None:
            return float(self.done["loss"])
        return float(self.lines[-1]["loss"]) if self.lines else None

    @property
    def rate(self) -> float | None:
        """Images per second of the last log interval that measured it."""
        return next(
            (float(line["images_per_second"]) for line in reversed(self.lines) if line.get("images_per_second")), None
        )

    @property
    def left(self) -> float | None:
        """Seconds until a running run ends, at its last rate."""
        if self.state != "running" or not self.rate or self.total is None:
            return None
        return (self.total - self.step) * self.recipe["batch"] / self.rate

    @property
    def monitored(self) -> dict[str, float]:
        """The last look of the monitor, without the prefix of its names."""
        looks = self.events("monitor")
        return (
            {k.removeprefix(MONITOR): float(v) for k, v in looks[-1].items() if k.startswith(MONITOR)} if looks else {}
        )

    @property
    def alarms(self) -> list[str]:
        return [line["message"] for line in self.log if line.get("event") in ("alarm", "non_finite_loss")]

    def numbers(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of everything that was logged, by name: loss first, the engine's other numbers last."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for line in [*self.lines, *self.events("monitor")]:
            for name, value in line.items():
                if name in ("event", "time", "step", "epoch") or (number := as_number(value)) is None:
                    continue
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(line["step"]))
                values.append(number)
        last = PLAIN[PLAIN.index("loss") + 1 :]
        order = sorted(found, key=lambda n: (n != "loss", not n.startswith(MONITOR), n in last, n))
        return {name: found[name] for name in order}


def as_number(value: Any) -> float | None:
    """A number of the log, where infinities and NaN are strings; None for anything else."""
    try:
        return None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return None


def below(out: str | Path) -> list[Run]:
    """Every run below a folder, last written first."""
    found = [Run(path.parent) for path in Path(out).expanduser().glob("*/*/recipe.yaml")]
    return sorted(found, key=lambda run: (-written(run.folder), str(run.folder)))


def written(folder: Path) -> float:
    return max(
        ((folder / name).stat().st_mtime for name in ("log.jsonl", "recipe.yaml") if (folder / name).exists()),
        default=0.0,
    )


def find(name: str, out: str | Path) -> Run:
    """The run of this folder, or the only one below ``out`` whose ID/HASH-sSEED begins with the name or holds it."""
    if (Path(name).expanduser() / "recipe.yaml").is_file():
        return Run(Path(name).expanduser())
    every = {f"{run.folder.parent.name}/{run.folder.name}": run for run in below(out)}
    for matches in (lambda n: n.startswith(name), lambda n: name in n):
        found = [n for n in every if matches(n)]
        if len(found) == 1:
            return every[found[0]]
        if found:
            raise UserError(
                f"{name}: {len(found)} runs below {out} are called so ({', '.join(sorted(found)[:4])}, …); say more of the name"
            )
    raise UserError(
        f"{name}: no run folder, and none of the {len(every)} runs below {out} is called so; python -m reproduce runs lists them"
    )


# -- what is told ------------------------------------------------------------------------------------------------------------
def table(runs: Sequence[Run]) -> str:
    """A line for each run, and below them the alarms of each."""
    heads = ("state", "step", "loss", "chance", "images/s", "left", "written", "alarms", "monitor", "run")
    words = ("state", "monitor", "run")  # the other columns are numbers
    lines = tabulate(
        [cells(run) for run in runs],
        heads,
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left" if head in words else "right" for head in heads],
    )
    return "\n".join([lines, *(f"alarm: {named(run)}: {alarm}" for run in runs for alarm in run.alarms)])


def cells(run: Run) -> tuple[str, ...]:
    """Texts of a row of the table; "-" for what is not known."""
    known = lambda value, form: "-" if value is None else format(value, form)
    return (
        run.state,
        f"{run.step}/{known(run.total, 'd')}",
        known(run.loss, ".4f"),
        known(run.chance, ".2f"),
        known(run.rate, ",.0f"),
        "-" if run.left is None else duration(run.left),
        f"{duration(max(0.0, time.time() - written(run.folder)))} ago",
        str(len(run.alarms)),
        looks(run.monitored) or "-",
        named(run),
    )


def looks(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name not in ("seconds", "share"))


def named(run: Run) -> str:
    return f"{run.folder.parent.name}/{run.folder.name}"


def story(run: Run) -> str:
    """The last numbers of a run and its alarms, a line each."""
    head, row = table([Run(run.folder)]).splitlines()[:2]
    last = run.lines[-1] if run.lines else {}
    numbers = [
        f"{name} {value:.4g}"
        for name, raw in last.items()
        if name not in PLAIN and (value := as_number(raw)) is not None
    ]
    lines = [head, row, *([f"last line of the log: {', '.join(numbers)}"] if numbers else [])]
    lines += [f"alarm: {alarm}" for alarm in run.alarms]
    committed = curves.of(run.folder)
    if committed is not None and run.loss is not None and run.total:
        low, high = committed.at(run.step / run.total)
        lines.append(f"committed runs of this recipe ({committed.runs}) had a loss of {low:.4g} to {high:.4g} there")
    if run.state == "running":
        lines.append(f"held by {run.holder}")
    if run.state == "stopped":
        lines.append("the command that began it goes on from its checkpoint")
    return "\n".join(lines)


def draw(run: Run) -> Path:
    """Every curve of the log as a panel of RUN/curves.png; alarms are red lines. UserError for a log without numbers."""
    from matplotlib.figure import Figure

    found = run.numbers()
    if not found:
        raise UserError(f"{run.folder}: log.jsonl has no numbers yet; its first line comes after log_interval steps")
    rows = math.ceil(len(found) / COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{named(run)}: {run.state}, step {run.step} of {run.total or '?'}", fontsize=10)
    for place, (name, (steps, values)) in enumerate(found.items(), 1):
        panel = figure.add_subplot(rows, COLUMNS, place)
        panel.plot(steps, values, marker="." if len(steps) < 30 else None, linewidth=1, color="#1666b0", label=name)
        if name == "loss" and run.chance is not None:
            panel.axhline(run.chance, color="#8794a1", linestyle="--", linewidth=1, label=f"chance {run.chance:.2f}")
        if name == "loss" and (committed := curves.of(run.folder)) is not None and run.total:
            at = [run.total * (k + 0.5) / len(committed.low) for k in range(len(committed.low))]
            panel.fill_between(
                at, committed.low, committed.high, color="#b45f06", alpha=0.35, label=f"{committed.runs} committed runs"
            )
            panel.plot(at, committed.low, color="#b45f06", linewidth=0.5)
        if name == "loss":
            panel.legend(fontsize=7)
        for alarm in run.events("alarm"):
            panel.axvline(alarm["step"], color="#b3261e", linewidth=1, alpha=0.6)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
    path = run.folder / CURVES
    checkpoint.write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def show(words: Sequence[str]) -> str:
    """The answer to ``runs WORDS``: a table of all runs, or the story of one, whose curves are drawn into its folder.

    words   a run or none, and out=FOLDER. Raises UserError: more than one run, no runs there.
    """
    options, rest = RunOptions.split(settings.parse(word for word in words if "=" in word))
    names = [word for word in words if "=" not in word]
    if rest or len(names) > 1:
        raise UserError(f"runs {' '.join(words)}: one run at most, and out=FOLDER; see python -m reproduce runs --help")
    if names:
        run = find(names[0], options.out)
        return f"{story(run)}\n{draw(run)}"
    runs = below(options.out)
    if not runs:
        raise UserError(f"{options.out}: no runs below it (ID/HASH-sSEED/recipe.yaml); out=FOLDER says where they lie")
    return table(runs)
