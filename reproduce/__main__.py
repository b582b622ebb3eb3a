"""python -m reproduce ID|METHOD [path=value …] [--plan], labels RUN --to FILE, extend RUN path=value …, runs [RUN], slurm ID …: see `python -m reproduce --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.options import RunOptions
from engine.place import same_for_all, who
from zoo import settings
from zoo.errors import Parser, guard

# What goes on after Ctrl-C: any pre-training, from its last checkpoint.
KEPT = {"": "what was saved up to the last checkpoint is", "labels": "", "runs": "", "slurm": ""}

# Words are parsed before torch is imported, so that --help and a misspelt option answer at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run, continue or plan a pre-training, or one of the other commands; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["labels"]:
        return _labels(words[1:])
    if words[:1] == ["runs"]:
        return _runs(words[1:])
    if words[:1] == ["slurm"]:
        from reproduce import slurm

        return slurm.main(words[1:])
    if words[:1] == ["extend"]:
        return _train(words[1:], extends=True)
    return _train(words, extends=False)


def _train(words: list[str], extends: bool) -> int:
    example = "extend runs/swav_digits/HASH-s0 schedule.images=102400" if extends else "swav_digits seed=1 --plan"
    parser = Parser(
        prog="python -m reproduce extend" if extends else "python -m reproduce",
        description="Begin a new run with the network of a finished one: a warm start, not a longer run."
        if extends
        else "Pre-train a model of the zoo, or continue a run that was interrupted.",
        example=f"python -m reproduce {example}",
        epilog="Several processes: torchrun --nproc_per_node=N -m reproduce ID …. Options beside the recipe's settings: "
        + ", ".join(f"{name}=" for name in RunOptions.names())
        + ". Other commands: python -m reproduce runs [RUN] lists local runs or draws one; python -m reproduce labels RUN --to FILE "
        "writes pseudo-labels; python -m reproduce slurm ID nodes=8 gpus=8 … submits a job; python -m reproduce extend RUN "
        "schedule.images=N begins a new run with the network of a finished one",
    )
    parser.add_argument(
        "id",
        help="the folder of a finished run"
        if extends
        else "a model of the registry (python -m zoo list), or a method's name: a recipe derived from the images of data=FOLDER",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="path=value", help="recipe settings (optimizer.lr=0.1) and options (data=…)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="say what would run, and stop; with world=N for N processes"
    )
    args = parser.parse_intermixed_args(words)
    from engine import dist
    from reproduce import launch, plan

    with same_for_all():
        given = settings.parse(args.settings)
        world = given.pop("world", None) if args.plan else None
        work = (launch.extension if extends else launch.job)(args.id, given)
        if args.plan:
            print(plan.plan(work, world))
            return 0
    try:
        result = launch.run(work)
        if dist.is_main():
            print(launch.report(work, result))
            sys.stdout.flush()
    finally:
        dist.finish()
    return 0


def _labels(words: list[str]) -> int:
    parser = Parser(
        prog="python -m reproduce labels",
        description="Write the pseudo-labels of a clustering run to a file.",
        example="python -m reproduce labels runs/sela_digits/HASH-s0 --to labels.csv",
    )
    parser.add_argument("run", type=Path, help="a run folder of a clustering method")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="FILE", help=".csv: a row per image; .npz; else a file of tensors"
    )
    parser.add_argument("--data", metavar="FOLDER", help="where the images of the run are, for their names")
    args = parser.parse_args(words)
    from reproduce import labels

    print(labels.export(args.run, args.to, args.data))
    return 0


def _runs(words: list[str]) -> int:
    parser = Parser(
        prog="python -m reproduce runs",
        description="List the runs below a folder, or draw the curves of one.",
        example="python -m reproduce runs swav_digits out=runs",
    )
    parser.add_argument(
        "words", nargs="*", metavar="RUN", help="a run, or nothing for all; out=FOLDER (runs) is where they lie"
    )
    given = parser.parse_args(words).words
    from reproduce import runs

    print(runs.show(given))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main, lambda: who(os.environ), KEPT))
