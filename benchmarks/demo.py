"""``make demo``: pre-train, judge and tabulate on real images, beside three reference rows.

Each (model, seed) is one task: pre-training by ``reproduce``, then every protocol of the data set by ``evaluations``.
Tasks run side by side, one thread each. What is finished is kept: the same command continues after an interruption.
`--methods` and `--protocols` widen it to whatever the zoo and the suite hold; the committed tables were made so (docs/results.md).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = ("pixels", "random", "supervised", "rotnet", "swav", "simclr")
PROTOCOLS = "linear_{0} knn_{0} fewlabel_{0} cluster_{0}"
KEPT = {"": "finished records, and the checkpoints of the runs that ran, are"}  # after Ctrl-C
QUICK = {
    "pixels": 0,
    "random": 1,
    "supervised": 2,
    "rotnet": 3,
}  # the last of a round, so that no long task is left alone at the end


def task(
    model: str, seed: int, protocols: list[str], out: str, record: bool, overrides: dict[str, object]
) -> list[Path]:
    """Pre-train ``model`` with ``seed`` and write one record for each protocol."""
    import torch

    torch.set_num_threads(1)
    from evaluations.measure import evaluate
    from reproduce.launch import pretrain

    folder = pretrain(model, {**overrides, "seed": seed, "out": out}, quiet=True)
    records = [
        evaluate(p, model, {**overrides, "pretrain_seed": seed}, out=out, record=record, quiet=True) for p in protocols
    ]
    return [folder / "weights.pth", *records]


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("dataset", choices=("digits", "fashion_mnist"))
    parser.add_argument("--data", help="folder of the data set; default: looked for, see python -m zoo data")
    parser.add_argument("--out", help="where runs and records go; default runs/demo/<dataset>")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, metavar="NAME", help=f"or 'all' (default {' '.join(METHODS)})"
    )
    parser.add_argument(
        "--protocols",
        nargs="+",
        metavar="PATTERN",
        help="ids; default linear, knn, fewlabel and cluster of the data set",
    )
    parser.add_argument("--seeds", type=int, default=5, help="at most this many seeds a row (default 5)")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), help="tasks side by side")
    parser.add_argument("--record", action="store_true", help="write the records to results/measured/ (maintainers)")
    args = parser.parse_args(argv)

    import zoo.data
    from evaluations import protocol
    from results import generate
    from results.missing import seeds
    from results.tables import load, pick
    from zoo import registry
    from zoo.errors import UserError

    here = [m.removesuffix(f"_{args.dataset}") for m in registry.models(f"*_{args.dataset}")]
    methods = here if args.methods == ["all"] else list(args.methods)
    if unknown := sorted(set(methods) - set(here)):
        raise UserError(f"--methods {' '.join(unknown)}: no such model on {args.dataset}; there are: {' '.join(here)}")
    patterns = args.protocols or PROTOCOLS.format(args.dataset).split()
    protocols = [n for p in patterns for n in protocol.names() if fnmatchcase(n, p)]
    if not protocols:
        raise UserError(f"--protocols {' '.join(patterns)}: none matches; see python -m evaluations list")

    overrides: dict[str, object] = {"data": args.data} if args.data else {}
    zoo.data.open_source(args.dataset, "train", root=args.data)  # a missing data set is told before anything runs
    out = args.out or f"runs/demo/{args.dataset}"
    methods.sort(key=lambda m: -QUICK.get(m, 9))
    plan = [
        (f"{m}_{args.dataset}", s)
        for s in range(args.seeds)
        for m in methods
        if s < seeds(pick(load(), args.dataset)[0], f"{m}_{args.dataset}")
    ]  # a first look soon
    print(f"{len(plan)} runs of {len(methods)} models on {args.dataset}, {args.processes} side by side -> {out}/")
    started, written, failed = time.time(), [], 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        futures = {pool.submit(task, m, s, protocols, out, args.record, overrides): (m, s) for m, s in plan}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                model, seed = futures[future]
                try:
                    written += future.result()
                except UserError as error:  # the others go on
                    failed += 1
                    print(f"error: {model} seed {seed}: {error}", file=sys.stderr)
                spent = time.time() - started
                left = spent / done * (len(plan) - done)
                print(f"[{done:2d}/{len(plan)}] {model} seed {seed}   {clock(spent)} spent, about {clock(left)} left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    store = Path("results/measured") if args.record else Path(out) / "measured"
    folder = Path("results/tables") if args.record else Path(out) / "tables"
    page = generate.render_to(args.dataset, roots=[store], folder=folder)
    table, _, _ = page.read_text(encoding="utf-8").partition("\n## ")
    print(f"\n{table}\nfiles written:")
    for path in [*sorted(written), page]:
        print(f"  {os.path.relpath(path)}")
    print(f"\n{clock(time.time() - started)} in all")
    if len(methods) > 1:
        other = "random" if "random" in methods else methods[-1]
        one = next(m for m in methods if m != other)
        print(f"next: python -m evaluations pair {one}_{args.dataset} {other}_{args.dataset} {protocols[0]} out={out}")
    return 2 if failed else 0


if __name__ == "__main__":
    from zoo.errors import guard

    sys.exit(guard(main, kept=KEPT))
