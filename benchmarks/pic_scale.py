"""PIC's class rows from 10 thousand to 10 million classes: time and memory of a step, with and without negative sampling.

    python -m benchmarks.pic_scale [--json FILE]

The backbone is left out: features are random. A step is everything that depends on the number of classes: choosing and taking
rows, the softmax forward and backward, the update, and the catching up of rows that were idle. With negative sampling the
8,192 images visited last are the classes; that window is full from the first measured step on.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
DIM, BATCH, NEGATIVES, STEPS = 128, 256, 8_192, 12
FULL_LIMIT = 100_000  # beyond, the full softmax takes minutes a step here
OPTIMIZER = {"name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4}


def measure(classes: int, negatives: int) -> dict[str, Any]:
    """One configuration in a process of its own: seconds a step (median), and what the process holds."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    from engine import rng
    from reproduce.methods.pic import PIC

    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone: Any = nn.Flatten()
    backbone.dim = DIM
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method = PIC(
        backbone,
        instances=classes,
        dim=DIM,
        hidden=0,
        negatives=negatives,
        window={"size": 0, "stride": 1, "mode": "sliding"},
    )
    order = (
        rng.permutation(0, "order", 0, classes)
        if classes <= 1_000_000
        else np.random.default_rng(0).permutation(classes)
    )
    steps = STEPS + 4
    context = SimpleNamespace(seed=0, optimizer=OPTIMIZER, lr=lambda step: 0.03)
    if negatives:  # as if the images before had been visited
        method.recent = torch.from_numpy(np.resize(order[steps * BATCH :], negatives))
    seconds = []
    for step in range(steps):
        seen = torch.from_numpy(order[np.arange(step * BATCH, (step + 1) * BATCH) % classes].copy())
        features = F.normalize(torch.randn(BATCH, DIM), dim=1).requires_grad_()
        began = time.process_time()
        method.before_step(step, context)
        loss = method.classify([features], [1], seen)
        loss.backward()
        method.after_backward(step)
        seconds.append(time.process_time() - began)
    held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    return {
        "classes": classes,
        "negatives": negatives or classes,
        "ms_per_step": round(1000 * statistics.median(seconds[4:]), 1),
        "mib_held": round(held),
        "mib_table_when_all_rows_exist": round(classes * (2 * DIM * 4 + 4) / 2**20),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pic_scale", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args(argv)
    wanted = [(n, NEGATIVES) for n in SIZES if n > NEGATIVES] + [(n, 0) for n in SIZES if n <= FULL_LIMIT]
    found = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        print(f"{'classes':>12} {'softmax over':>13} {'CPU ms/step':>12} {'MiB held':>9} {'MiB if all rows exist':>22}")
        for one in pool.starmap(measure, wanted, chunksize=1):
            found.append(one)
            print(
                f"{one['classes']:>12,} {one['negatives']:>13,} {one['ms_per_step']:>12} {one['mib_held']:>9,} "
                f"{one['mib_table_when_all_rows_exist']:>22,}",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"dim": DIM, "batch": BATCH, "steps": STEPS, "rows": found}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
