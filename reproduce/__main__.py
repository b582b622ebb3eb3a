"""python -m reproduce ID|METHOD [path=value …] [--plan], labels RUN --to FILE, extend RUN path=value …, runs [RUN], slurm ID …: see `python -m reproduce --help`."""

from __future__ import annotations

import os
import sys

from engine.place import same_for_all, who
from zoo import settings
from zoo.errors import Parser, guard


def main(argv: list[str] | None = None) -> int:
    """Run, go on with, or plan a pre-training; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["labels"]:
        from reproduce import labels

        return labels.main(words[1:])
    if words[:1] == ["slurm"]:
        from reproduce import slurm

        return slurm.main(words[1:])
    if words[:1] == ["runs"]:
        from reproduce import runs

        return runs.main(words[1:])
    from engine import dist
    from engine.options import RunOptions
    from reproduce import launch, plan

    extends, words = words[:1] == ["extend"], words[1:] if words[:1] == ["extend"] else words
    parser = Parser(
        prog="python -m reproduce extend" if extends else "python -m reproduce",
        description="Pre-train a model of the zoo, or go on with a run that was interrupted.",
        epilog="several processes: torchrun --nproc_per_node=N -m reproduce ID …; options beside the recipe's settings: "
        + ", ".join(f"{name}=" for name in RunOptions.names())
        + ". Also: python -m reproduce runs [RUN], which lists local runs or draws one; python -m reproduce labels RUN --to FILE; python -m reproduce slurm ID nodes=8 gpus=8 …, which submits a job; python -m reproduce extend RUN schedule.images=N, which "
        "begins a new run with the network of a finished one",
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


if __name__ == "__main__":
    sys.exit(guard(main, lambda: who(os.environ)))
