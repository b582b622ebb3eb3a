"""``make demo``: pre-train, judge and tabulate on real images, beside three reference rows.

Each (model, seed) is one task: pre-training by ``reproduce``, then every protocol of the data set by ``evaluations``.
Tasks run side by side, one thread each. What is finished is kept: the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Seeds per row. Pixels have no parameters, so a second seed would measure the same thing again.
SEEDS = {"pixels": 1, "random": 5, "supervised": 3, "rotnet": 3, "swav": 5, "simclr": 5}
PROTOCOLS = ("linear", "knn", "fewlabel", "cluster")
# Rough CPU seconds of one task, longest first, so that the last task to start is a short one.
EFFORT = {"simclr": 5, "swav": 4, "rotnet": 3, "supervised": 2, "random": 1, "pixels": 0}


def task(dataset: str, method: str, seed: int, out: str, record: bool, overrides: dict[str, object]) -> list[Path]:
    """Pre-train ``<method>_<dataset>`` with ``seed`` and write one record for each protocol."""
    import torch

    torch.set_num_threads(1)
    from evaluations.run import evaluate
    from reproduce.launch import pretrain

    model = f"{method}_{dataset}"
    folder = pretrain(model, {**overrides, "seed": seed, "out": out}, quiet=True)
    records = [
        evaluate(f"{p}_{dataset}", model, {**overrides, "pretrain_seed": seed}, out=out, record=record, quiet=True)
        for p in PROTOCOLS
    ]
    return [folder / "weights.pth", *records]


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("dataset", choices=("digits", "fashion_mnist"))
    parser.add_argument("--data", help="folder of the data set; default: looked for, see python -m zoo data")
    parser.add_argument("--out", help="where runs and records go; default runs/demo/<dataset>")
    parser.add_argument("--seeds", type=int, default=5, help="at most this many seeds a row (default 5)")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), help="tasks side by side")
    parser.add_argument("--record", action="store_true", help="write the records to results/measured/ (maintainers)")
    args = parser.parse_args(argv)

    import zoo.data
    from results import tables

    overrides: dict[str, object] = {"data": args.data} if args.data else {}
    zoo.data.open_source(args.dataset, "train", root=args.data)  # a missing data set is told before anything runs
    out = args.out or f"runs/demo/{args.dataset}"
    plan = [(m, s) for m in sorted(SEEDS, key=lambda m: -EFFORT[m]) for s in range(min(SEEDS[m], args.seeds))]
    print(f"{len(plan)} runs of {len(SEEDS)} models on {args.dataset}, {args.processes} side by side -> {out}/")
    started, written = time.time(), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        futures = {pool.submit(task, args.dataset, m, s, out, args.record, overrides): (m, s) for m, s in plan}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                method, seed = futures[future]
                written += future.result()
                spent = time.time() - started
                left = spent / done * (len(plan) - done)
                print(f"[{done:2d}/{len(plan)}] {method}_{args.dataset} seed {seed}   {clock(spent)} spent, about {clock(left)} left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    store = Path("results/measured") if args.record else Path(out) / "measured"
    folder = Path("results/tables") if args.record else Path(out) / "tables"
    page = tables.render_to(args.dataset, roots=[store], folder=folder)
    table, _, _ = page.read_text(encoding="utf-8").partition("\n## ")
    print(f"\n{table}\nfiles written:")
    for path in [*sorted(written), page]:
        print(f"  {os.path.relpath(path)}")
    print(f"\n{clock(time.time() - started)} in all. Next: python -m evaluations pair simclr_{args.dataset} "
          f"random_{args.dataset} linear_{args.dataset} out={out}")
    return 0


if __name__ == "__main__":
    from zoo.errors import guard

    sys.exit(guard(main))
