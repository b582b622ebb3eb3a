"""``make bench``: a laptop-scale table made again, fairly: one budget of images, the same number of candidates for every method.

    python -m benchmarks.bench digits --plan

A row is one method. Its candidates (candidates.yaml) are pre-trained on ``fit`` and judged on ``val`` with each selection seed; the best mean
becomes the recipe in zoo/methods/<method>.yaml; then every pre-training seed of the table runs on ``train`` and is scored once on the
test split. results/selection/<model>.yaml keeps every score. What is finished is kept, so that the same command goes on. Each row is two git commits, the
chosen recipe and the records with their tables and figures: a record names the commit of the code that made it (`--no-commit`: neither).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from benchmarks import demo, select_recipes

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_name("candidates.yaml")
REFERENCES = ("pixels", "random")  # nothing is trained, so there is nothing to choose
KEPT = {"": "finished candidates, runs and records are"}  # after Ctrl-C
MINUTES = {"digits": 0.4, "fashion_mnist": 10.0}  # of one run on one core, where no selection file knows better


@dataclass(frozen=True)
class Row:
    """One method of a table: its model, candidates (overrides by path), selection seeds and pre-training seeds."""

    model: str
    candidates: tuple[dict[str, Any], ...]
    selection_seeds: int
    seeds: int

    @property
    def header(self) -> dict[str, Any]:
        """What a selection file must say to be this row's."""
        return {
            "candidates": len(self.candidates),
            "seeds": self.selection_seeds,
            "images": self.candidates[0]["schedule.images"],
        }


def table_rows(dataset: str, file: Path = FILE) -> list[Row]:
    """The rows of a table, cheap references first. Raises UserError where methods differ in their number of candidates."""
    from results.missing import seeds
    from results.tables import load, pick
    from zoo.errors import UserError

    told = yaml.safe_load(file.read_text(encoding="utf-8"))[dataset]
    table = pick(load(), dataset)[0]
    made = [Row(f"{name}_{dataset}", (), 0, seeds(table, f"{name}_{dataset}")) for name in REFERENCES]
    for method, grid in told["methods"].items():
        combined = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        model = f"{method}_{dataset}"
        made.append(Row(model, tuple({**told["fixed"], **c} for c in combined), told["seeds"], seeds(table, model)))
    counts = {len(row.candidates) for row in made if row.candidates}
    if len(counts) != 1:
        raise UserError(f"{file.name}: {dataset}: methods have {sorted(counts)} candidates; give each the same number")
    return made


def selected(row: Row, pool: ProcessPoolExecutor | None, score: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """The selection of a row, finished: candidates that are in its file are not run again. ``pool`` None: one after the other."""
    import zoo

    path = select_recipes.FOLDER / f"{row.model}.yaml"
    selection = select_recipes.read(row.model)
    if selection.get("header") != row.header:  # of another budget or grid: it cannot be compared
        selection = {"model": row.model, "rule": select_recipes.RULE, "header": row.header, "candidates": []}
    known = {c["recipe"] for c in selection["candidates"]}
    todo = [c for c in row.candidates if zoo.resolve(row.model, c).hash() not in known]
    dataset = zoo.resolve(row.model).dataset
    # a candidate's own split is fit: score() takes it from the split `train` that all of them name
    jobs = [
        [(pool.submit if pool else _now)(score, row.model, dataset, c, seed) for seed in range(row.selection_seeds)]
        for c in todo
    ]
    for candidate, futures in zip(todo, jobs, strict=True):
        runs = [f.result() for f in futures]
        line: dict[str, Any] = {"recipe": zoo.resolve(row.model, candidate).hash(), "overrides": words(candidate)}
        line |= {name: [run[name] for run in runs] for name in (*select_recipes.MEASURES, "cpu_seconds")}
        line["score"] = round(statistics.mean(statistics.mean(line[name]) for name in select_recipes.MEASURES), 2)
        selection["candidates"].append(line)
        write(path, selection)
        print(f"  {line['score']:6.2f}  {line['overrides']}", flush=True)
    return selection


def words(candidate: Mapping[str, Any]) -> str:
    """A candidate as words of a command line."""
    return shlex.join(f"{path}={json.dumps(v) if not isinstance(v, str) else v}" for path, v in candidate.items())


def put_recipe(model: str, overrides: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write overrides into the model's own lines of zoo/methods/<method>.yaml (other lines keep their bytes); returns the file.

    Raises UserError when the file does not say what was meant afterwards.
    """
    import zoo
    from zoo.errors import UserError
    from zoo.registry import Registry
    from zoo.settings import merge

    root = folder or ROOT / "zoo"
    wanted = zoo.resolve(model, overrides)
    path = Registry(root).file(wanted.method)
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"^  {re.escape(model)}:.*\n(?:(?:    .*)?\n)*?(?=^(?:  )?\S|\Z)", text, re.MULTILINE)
    if found is None:
        raise UserError(f"{path}: no entry {model}")
    fields = yaml.safe_load(found[0])[model]
    recipe: Any = fields.get("recipe") or {}
    for name, value in overrides.items():
        tree: Any = value
        for part in reversed(name.split(".")):
            tree = {part: tree}
        recipe = merge(recipe, tree)
    lines = [f"  {model}:"]
    for key, value in {**fields, "recipe": recipe}.items():
        if key == "recipe":
            lines += ["    recipe:", *(f"      {name}: {_flow(part)}" for name, part in value.items())]
        else:
            lines.append(f"    {key}: {_flow(value)}")
    path.write_text(text[: found.start()] + "\n".join(lines) + "\n" + text[found.end() :], encoding="utf-8")
    if (now := Registry(root).read().resolve(model)).hash() != wanted.hash():
        path.write_text(text, encoding="utf-8")
        raise UserError(f"{path}: the written recipe of {model} is {now.hash()}, not {wanted.hash()}; write it by hand")
    return path


@contextmanager
def workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that drops what has not begun when something fails or is interrupted."""
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def measured(row: Row, protocols: list[str], out: str, processes: int) -> list[Path]:
    """Every pre-training seed of a row, recorded in results/measured; the paths of its records."""
    with workers(processes) as pool:  # new processes, which read the chosen recipe
        jobs = [pool.submit(demo.task, row.model, seed, protocols, out, True, {}) for seed in range(row.seeds)]
        return [path for job in jobs for path in job.result()[1:]]


def drop_others(row: Row, made: list[Path]) -> list[str]:
    """Remove the model's records of other weights: its pre-training command makes none of them any more. Returns their protocols."""
    from results.record import COMMITTED, read

    weights = {read(path).weights_sha256 for path in made}
    stale = [p for p in sorted((COMMITTED / row.model).glob("*.json")) if read(p).weights_sha256 not in weights]
    for path in stale:
        path.unlink()
    return sorted({path.name.partition("--")[0] for path in stale})


def done(row: Row, protocols: list[str]) -> bool:
    """Whether the row's records are those of its chosen recipe, all of them."""
    from results.record import COMMITTED, read

    if row.candidates:
        import zoo

        selection = select_recipes.read(row.model)
        chosen = selection.get("header") == row.header and len(selection["candidates"]) == len(row.candidates)
        if not chosen or selection.get("measured") != zoo.resolve(row.model).hash():
            return False
    found = {
        (r.protocol, r.pretrain_seed) for r in map(read, (COMMITTED / row.model).glob("*.json")) if not r.overrides
    }
    return {(p, s) for p in protocols for s in range(row.seeds)} <= found


def plan(todo: list[Row], dataset: str, protocols: list[str], processes: int) -> str:
    """One line per row, and the time that all of them take."""
    lines, total = [], 0.0
    for row in todo:
        kept = select_recipes.read(row.model)
        spent = [s for c in kept["candidates"] for s in c["cpu_seconds"]]
        same = kept.get("header") == row.header
        each = statistics.mean(spent) / 60 if spent and same else MINUTES[dataset]
        left = (len(row.candidates) - (len(kept["candidates"]) if same else 0)) * row.selection_seeds
        minutes = (left + row.seeds) * (each if row.candidates else 0.2)
        total += minutes
        lines.append(
            f"{row.model:28} {left:3} runs to choose, {row.seeds} seeds to measure: about {minutes:.0f} minutes of one core"
        )
    lines.append(
        f"{len(todo)} rows x {len(protocols)} protocols: about {total / 60 / processes:.1f} h with {processes} processes"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: make bench DATASET=digits ARGS='--methods swav simclr --plan'",
    )  # fmt: skip
    parser.add_argument("dataset", choices=("digits", "fashion_mnist"))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="rows (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, one thread each (default 2)")
    parser.add_argument("--plan", action="store_true", help="print what is left and how long it takes, and stop")
    parser.add_argument(
        "--no-commit", dest="commit", action="store_false", help="records then say that their code was not committed"
    )
    args = parser.parse_args(argv)
    from zoo.errors import UserError

    protocols = demo.PROTOCOLS.format(args.dataset).split()
    todo = [r for r in chosen(table_rows(args.dataset), args.methods, args.dataset) if not done(r, protocols)]
    print(plan(todo, args.dataset, protocols, args.processes), flush=True)
    if args.plan:
        return 0
    if args.commit and (changed := _git("status", "--porcelain", "--untracked-files=no")):
        raise UserError(
            f"{changed.splitlines()[0][3:]} has changes that are not committed; commit them first, or say --no-commit"
        )
    for number, row in enumerate(todo, 1):
        began = time.time()
        print(f"[{number}/{len(todo)}] {row.model}", flush=True)
        make(row, protocols, f"runs/bench/{args.dataset}", args.processes, args.commit)
        print(f"  {demo.clock(time.time() - began)}", flush=True)
    print(f"every row of {args.dataset} is measured; tables: results/tables/{args.dataset}.md")
    return 0


def make(row: Row, protocols: list[str], out: str, processes: int, commit: bool) -> None:
    """Choose, write the recipe, measure, tabulate."""
    if row.candidates:
        with workers(processes) as pool:
            selection = selected(row, pool, select_recipes.score)
        best = select_recipes.best(selection)
        given = next(c for c in row.candidates if words(c) == best["overrides"])
        print(f"  best: {best['score']} with {best['overrides']}", flush=True)
        changed = put_recipe(row.model, given)
        if commit:
            _commit(f"{row.model}: the best of {len(row.candidates)} recipes on val", changed, select_recipes.FOLDER)
    dropped = drop_others(row, measured(row, protocols, out, processes))
    if lost := [protocol for protocol in dropped if protocol not in protocols]:
        print(f"  records of the former recipe removed: {', '.join(lost)}; python -m results fill makes them again")
    if row.candidates:
        write(select_recipes.FOLDER / f"{row.model}.yaml", {**selection, "measured": best["recipe"]})
    for command in ("tables", "figures"):
        subprocess.run([sys.executable, "-m", "results", command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    if commit:
        _commit(
            f"{row.model} at {row.seeds} seed{'s' * (row.seeds != 1)}, its recipe chosen on val",
            ROOT / "results",
            ROOT / "README.md",
        )


def _commit(message: str, *paths: Path) -> None:
    _git("add", "--", *map(str, paths))
    if _git("diff", "--cached", "--name-only"):
        _git("commit", "-q", "-m", message)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip("\n")


def chosen(made: list[Row], methods: list[str] | None, dataset: str) -> list[Row]:
    """The rows that were asked for. Raises UserError for a method without a row."""
    from zoo.errors import UserError, suggest

    known = [row.model.removesuffix(f"_{dataset}") for row in made]
    for name in methods or []:
        if name not in known:
            raise UserError(f"--methods {name}: no such row{suggest(name, known)} ({', '.join(known)})")
    return [row for row, name in zip(made, known, strict=True) if not methods or name in methods]


def write(path: Path, selection: Mapping[str, Any]) -> None:
    from results.pages import write_text

    write_text(path, yaml.safe_dump(dict(selection), sort_keys=False, default_flow_style=None, width=160))


def _flow(value: Any) -> str:
    """YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()


def _now(call: Callable[..., Any], *args: Any) -> Any:
    from concurrent.futures import Future

    made: Future[Any] = Future()
    made.set_result(call(*args))
    return made


if __name__ == "__main__":
    from zoo.errors import guard

    sys.exit(guard(main, kept=KEPT))
