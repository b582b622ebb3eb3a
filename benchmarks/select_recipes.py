"""Choose a laptop-scale recipe without the test split: pre-train on ``fit`` (or a named part of it), judge on ``val``, keep every score.

    python -m benchmarks.select_recipes simclr_digits --try optimizer.lr=0.03 --try "optimizer.lr=0.1 batch=256"

Each ``--try`` is one candidate (``""`` is the recipe as it stands). Candidates and scores are appended to
``results/selection/<model>.yaml``; one that is there already is not run again. A test holds the recipe in use to be the best.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "results" / "selection"
RULE = "mean of linear top-1, few-label top-1 and NMI (percent) on val, after pre-training on fit; mean over the seeds"
MEASURES = {"linear": "top1", "fewlabel": "top1", "cluster": "nmi"}


def score(model: str, dataset: str, overrides: dict[str, Any], seed: int) -> dict[str, float]:
    """Pre-train once on ``fit`` and measure on ``val``; everything in a folder that is removed again."""
    import torch

    torch.set_num_threads(1)
    from evaluations.measure import evaluate
    from reproduce.launch import pretrain

    split = training_split(model, dataset, overrides)
    with tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        folder = pretrain(model, {**overrides, "split": split, "seed": seed, "out": out}, quiet=True)
        found = {"cpu_seconds": round(time.process_time() - started, 1)}
        for name, metric in MEASURES.items():
            splits = {"splits.train": "fit", "splits.test": "val"}
            record = evaluate(f"{name}_{dataset}", str(folder), splits, out=out, quiet=True)
            found[name] = round(json.loads(record.read_text())["metrics"][metric]["value"], 2)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def training_split(model: str, dataset: str, overrides: dict[str, Any]) -> str:
    """``fit``, or a recipe's own smaller split when it holds no image of ``val``. Raises UserError when it does."""
    import zoo
    from zoo import data
    from zoo.errors import UserError

    split = str(zoo.resolve(model, overrides).split)
    if split == "train":
        return "fit"
    named, held = (data.open_source(dataset, s) for s in (split, "val"))
    if {named.name(i) for i in range(len(named))} & {held.name(i) for i in range(len(held))}:
        raise UserError(f"{model}: split={split} holds images of val, on which recipes are judged; name another split")
    return split


def read(model: str) -> dict[str, Any]:
    path = FOLDER / f"{model}.yaml"
    empty: dict[str, Any] = {"model": model, "rule": RULE, "candidates": []}
    return yaml.safe_load(path.read_text()) if path.exists() else empty


def best(selection: dict[str, Any]) -> dict[str, Any]:
    return max(selection["candidates"], key=lambda c: c["score"])


def main(argv: list[str] | None = None) -> int:
    import zoo
    from zoo import settings as parser_of

    parser = argparse.ArgumentParser(prog="python -m benchmarks.select_recipes", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--try", dest="tries", action="append", required=True, metavar="'path=value …'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print scores, keep nothing")
    args = parser.parse_args(argv)
    selection = read(args.model)
    known = {c["recipe"] for c in selection["candidates"]}
    todo = []
    for text in args.tries:
        given = parser_of.parse(shlex.split(text))
        recipe = zoo.resolve(args.model, given)
        if recipe.hash() not in known:
            todo.append((text, given, recipe))
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            [pool.submit(score, args.model, recipe.dataset, given, seed) for seed in range(args.seeds)]
            for _, given, recipe in todo
        ]
        for (text, _, recipe), futures in zip(todo, jobs, strict=True):
            runs = [f.result() for f in futures]
            row: dict[str, Any] = {"recipe": recipe.hash(), "overrides": text}
            row |= {name: [run[name] for run in runs] for name in (*MEASURES, "cpu_seconds")}
            row["score"] = round(statistics.mean(statistics.mean(row[name]) for name in MEASURES), 2)
            means = {name: round(statistics.mean(row[name]), 1) for name in (*MEASURES, "cpu_seconds")}
            print(f"{row['score']:6.2f}  {means}  {text or '(as it stands)'}", flush=True)
            selection["candidates"].append(row)
            if not args.dry:
                FOLDER.mkdir(parents=True, exist_ok=True)
                text = yaml.safe_dump(selection, sort_keys=False, default_flow_style=None, width=160)
                (FOLDER / f"{args.model}.yaml").write_text(text)
    top = best(selection)
    print(
        f"best: {top['score']} with {top['overrides'] or '(as it stands)'}; write it into zoo/methods/ if it is not there yet"
    )
    return 0


if __name__ == "__main__":
    from zoo.errors import guard

    sys.exit(guard(main, kept={"": "the scores of finished candidates are"}))  # after Ctrl-C
