"""What a step costs the host, for every ImageNet recipe: views of JPEG files, their hand-over, the loop; bytes copied, operations, waits.

    python -m benchmarks.input_path [MODEL ...] [--before CHECKOUT] [--rounds 3]

JPEG files of 500 x 375 pixels are made up; the recipe's views are drawn by the stream of pre-training. The device is torch's
`meta`, on which nothing is computed. For the times of views, what runs on the device is left out altogether: it costs the host a launch
for each operation, and those are counted, as are those of the loop (loss, backward, optimiser, the method's own work): the time of a
launch is the driver's, and was not measured. Steps between two labellings; the numbers of clusters and of remembered images are cut
down, which changes no count of operations. CHECKOUT is an earlier version of this repository
to compare the views with, measured in turn with this one, each time in a fresh process; a version without a device in its stream
finishes batches on the host and copies float32. Figures are kept in input_path.json, and input_path.md is made from them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

try:
    from benchmarks._counting import Watched
except ImportError:  # an earlier checkout's benchmarks come first
    from _counting import Watched  # type: ignore[no-redef]

HERE = Path(__file__).resolve().parent
KEPT = HERE / "input_path.json"
PAGE = KEPT.with_suffix(".md")
BATCH, STEPS = 16, 4
META = torch.device("meta")
# One recipe of each method, and what is cut down for 64 images: none of it changes what a step does.
FEW: dict[str, dict[str, Any]] = {
    "swav_800ep": {},
    "deepclusterv2_800ep": {"params.prototypes": [8, 8, 8]},
    "selav2_400ep": {},
    "unmix_swav_200ep": {},
    "mocov1_200ep": {},
    "mocov2_200ep": {},
    "unmix_mocov2_200ep": {},
    "simclr_pic_200ep": {},
    "simsiam_100ep": {},
    "instdisc_pic_200ep": {"params.negatives": 32},
    "pic_200ep": {"params.negatives": 32, "params.window.size": 32, "params.window.stride": 16},
    "sela_rn50_10x3k_aug": {"params.clusters": 8},
    "deepcluster_alexnet_imagenet": {"params.clusters": 8, "params.pca": 16},
    "rotnet_alexnet_imagenet": {},
    "deepercluster_vgg16_yfcc": {"batch": 16, "params.clusters": 8, "params.pca": 16, "init": None},
}


def _no_autocast(*_: Any, **__: Any) -> Any:
    """The meta device has none."""
    return nullcontext()


def pictures(folder: Path, count: int) -> None:
    """JPEG files with coarse and fine structure."""
    random = np.random.default_rng(0)
    (folder / "train" / "one").mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        fine = random.normal(0, 12, (375, 500, 1))
        Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(
            folder / "train" / "one" / f"{i}.jpg", quality=90
        )


def views_of(model: str) -> dict[str, float]:
    """CPU ms an image, all in one process and of the training process beside a worker; KiB copied and operations on the device, an image."""
    import zoo
    from reproduce import views
    from reproduce.stream import Stream
    from reproduce.views import Augment
    from zoo.data import open_source

    recipe = zoo.resolve(model, {}).dump()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        pictures(Path(home), BATCH * STEPS)
        source = open_source("folder", "train", Path(home))
        known = inspect.signature(Stream.__init__).parameters
        on_device = "device" in known
        where: dict[str, Any] = {"device": META} if on_device else {}
        where |= {"schedule": {"epochs": 2}} if "schedule" in known else {"epochs": 2}
        left_out = dict.fromkeys(("colour", "finish") if on_device else (), lambda view, *rest: view)
        for workers in (0, 1):
            augment = Augment.of(recipe["views"], recipe["input"])
            stream = Stream(source, augment, batch=BATCH, workers=workers, **where)
            with Watched() as counted:
                for batch in stream.epoch(0):  # the worker starts, kernels load
                    batch.to(META)
            with mock.patch.multiple(views, **left_out) if left_out else nullcontext():
                began = time.process_time()
                for batch in stream.epoch(1):
                    batch.to(META)
                name = "training process" if workers else "all"
                found[name] = 1000 * (time.process_time() - began) / (BATCH * STEPS)
            found["kib"] = counted.bytes / (BATCH * STEPS) / 2**10
            found["launches"] = counted.count / STEPS
    return found


def loop_of(model: str) -> dict[str, float]:
    """Operations that the host sends to the device in a step, and those that wait for it."""
    import zoo
    from engine import optim
    from engine.batch import Batch
    from reproduce import launch
    from zoo.data import open_source

    few = {"batch": 4, "precision": "float32", "sync_bn": False}
    recipe = zoo.resolve(model, {**few, **FEW[model]})
    with tempfile.TemporaryDirectory() as home, mock.patch.object(torch, "autocast", _no_autocast):
        pictures(Path(home), 64)
        source = open_source("folder", "train", Path(home)).subset(range(8 if not FEW[model] else 64))
        method = launch.build(recipe, source).train()
        batches = launch.streamed(recipe, source, method)
        ctx = batches.context(method, 0)
        method.before_epoch(0, ctx)
        method.train()
        method.before_step(0, ctx)
        first = next(iter(batches.epoch(0)))
        method.loss(first, 0)[0].backward()  # memories and queues come into being
        method.after_backward(0)
        method.zero_grad(set_to_none=True)
        there = method.to(META)
        for owner in there.modules():
            for key, value in list(vars(owner).items()):
                if isinstance(value, torch.Tensor) and key not in ("labels", "recent"):
                    setattr(owner, key, value.to(META))
        if hasattr(there, "_events"):
            there._events = [0]
        labels = None if first.labels is None else first.labels.to(META)
        batch = Batch(first.index, [view.to(META) for view in first.views], labels, first.epoch)
        optimizer = optim.build(recipe.dump()["optimizer"], there.param_groups())

        def step() -> None:
            there.before_step(1, ctx)
            there.loss(batch, 1)[0].backward()
            there.after_backward(1)
            optimizer.step()
            optimizer.zero_grad()

        step()  # momenta come into being
        with Watched() as counted:
            step()
    return {"sent": counted.count, "waits": len(counted.waits)}


def measured(model: str, before: Path | None, rounds: int) -> dict[str, Any]:
    """Medians over rounds of every version, in turn."""
    versions = {**({"before": before} if before else {}), "after": HERE.parent}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for number in range(rounds):
        for name, root in versions.items():
            what = ["--views", model] if name == "before" or number else ["--views", model, "--loop"]
            done = subprocess.run(
                [sys.executable, __file__, *what], check=True, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            runs[name].append(json.loads(done.stdout))
    return {
        "model": model,
        "rounds": rounds,
        **{
            name: {key: statistics.median(run[key] for run in found if key in run) for key in found[0]}
            for name, found in runs.items()
        },
    }


def page(kept: dict[str, Any]) -> str:
    """input_path.md from what was kept."""
    machine = kept["machine"]
    lines = [
        "# What a step costs the host",
        "",
        "Written by `python -m benchmarks.input_path` from `benchmarks/input_path.json`; do not edit. CPU time of one thread, median of some runs of each",
        f"version in turn; {machine['cpu']}, torch {machine['torch']}. Not run on a GPU: the device is torch's meta device, and what runs there is",
        "counted, not timed. Before (the commit in the table's last line), colour was PIL's, in the workers, and the training process normalised in float32.",
        "",
        "| recipe | views: CPU ms an image, all, before → after | of it the training process | images/s that this caps, a process | KiB copied an image | operations of the views on the device, a batch |"
        " of the loop, a step | waits of the loop, a step |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]

    def arrow(row: dict[str, Any], key: str, show: str) -> str:
        both = [row[name][key] for name in ("before", "after") if name in row]
        return " → ".join(format(value, show) for value in both)

    for row in kept["rows"]:
        caps = [1000 / row[name]["training process"] for name in ("before", "after") if name in row]
        after = row["after"]
        lines.append(
            f"| {row['model']} | {arrow(row, 'all', '.1f')} | {arrow(row, 'training process', '.2f')} | "
            f"{' → '.join(f'{c:,.0f}' for c in caps)} | {arrow(row, 'kib', ',.0f')} | {arrow(row, 'launches', ',.0f')} | "
            f"{after['sent']:,.0f} | {after['waits']:.0f} |"
        )
    lines += ["", f"Before: commit {kept['before']}." if kept.get("before") else ""]
    lines += [
        "A step of the loop is the same for any batch. What waits is counted as tests/contracts/test_synchronisations.py does."
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_path", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.input_path swav_800ep --before ../earlier",
    )  # fmt: skip
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(FEW)} (default: all)")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.views:
        torch.set_num_threads(1)
        print(json.dumps({**views_of(args.views), **(loop_of(args.views) if args.loop else {})}))
        return 0
    if unknown := [m for m in args.models if m not in FEW]:
        parser.error(f"{unknown[0]}: not measured here; there are {', '.join(FEW)}")
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"rows": []}
    from engine import provenance

    kept["machine"] = {"cpu": provenance.collect()["hardware"]["cpu"], "torch": torch.__version__}
    if args.before:
        said = ["git", "-C", str(args.before), "rev-parse", "--short", "HEAD"]
        kept["before"] = subprocess.run(said, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    for model in args.models or FEW:
        row = measured(model, args.before, args.rounds)
        kept["rows"] = [*(r for r in kept["rows"] if r["model"] != model), row]
        kept["rows"].sort(key=lambda r: list(FEW).index(r["model"]))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(kept), encoding="utf-8")
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
