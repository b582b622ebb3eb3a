"""What the input path costs the host: SwAV's multi-crop of JPEG files, CPU time per image and bytes copied to the device.

    python -m benchmarks.input_path [--before CHECKOUT] [--rounds 5] [--report benchmarks/input_path.md]

JPEG files of 500 x 375 pixels are made up; the recipe's views are drawn by the stream of pre-training. The device is torch's
`meta`, on which nothing is computed. For the times, what runs on the device is left out altogether: it costs the host a launch for
each operation, and those are counted. CHECKOUT is an earlier version of this repository to compare with, measured in turn with this
one, each time in a fresh process; a version without a device in its stream finishes batches on the host and copies float32.
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
from torch.utils._python_dispatch import TorchDispatchMode

MODEL, BATCH, STEPS = "swav_800ep", 16, 4
META = torch.device("meta")


class Counted(TorchDispatchMode):
    """Counts bytes that go from main memory to the device, and operations that run there."""

    bytes = launches = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and out.device.type == "meta":
            self.bytes += out.numel() * out.element_size()
        elif isinstance(out, torch.Tensor) and out.device.type == "meta" and not function.is_view:
            self.launches += 1
        return out


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


def measure() -> dict[str, float]:
    """CPU ms per image, all in one process and of the training process beside a worker, and MiB copied for a step of BATCH images."""
    import zoo
    from reproduce import views
    from reproduce.stream import Stream
    from reproduce.views import Augment
    from zoo.data import open_source

    torch.set_num_threads(1)
    recipe = zoo.resolve(MODEL, {}).dump()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        pictures(Path(home), BATCH * STEPS)
        source = open_source("folder", "train", Path(home))
        on_device = "device" in inspect.signature(Stream.__init__).parameters
        where: dict[str, Any] = {"device": META} if on_device else {}
        skipped = ("colour", "finish") if on_device else ()
        for workers in (0, 1):
            stream = Stream(
                source,
                Augment.of(recipe["views"], recipe["input"]),
                batch=BATCH,
                schedule={"epochs": 2},
                workers=workers,
                **where,
            )
            with Counted() as counted:
                for batch in stream.epoch(0):  # the worker starts, kernels load
                    batch.to(META)
            left_out = {name: lambda view, *rest: view for name in skipped}
            with mock.patch.multiple(views, **left_out) if left_out else nullcontext():
                began = time.process_time()
                for batch in stream.epoch(1):
                    batch.to(META)
                name = "training process" if workers else "all"
                found[name] = 1000 * (time.process_time() - began) / (BATCH * STEPS)
            found["mib"], found["launches"] = counted.bytes / STEPS / 2**20, counted.launches / STEPS
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure()))
        return
    here = Path(__file__).resolve().parent.parent
    versions = {**({"before": options.before.resolve()} if options.before else {}), "after": here}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(options.rounds):
        for name, root in versions.items():
            done = subprocess.run([sys.executable, __file__, "--once"], env={**os.environ, "PYTHONPATH": str(root)}, check=True,
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
            runs[name].append(json.loads(done.stdout))
    lines = [f"| version | CPU ms an image, all | of it the training process | images/s that this caps | MiB copied for {BATCH} images | operations on the device, a step |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, found in runs.items():
        whole, own, mib, launches = (
            statistics.median(run[key] for run in found) for key in ("all", "training process", "mib", "launches")
        )
        spread = max(run["training process"] for run in found) - min(run["training process"] for run in found)
        lines.append(
            f"| {name} | {whole:.1f} | {own:.2f} (range {spread:.2f}) | {1000 / own:,.0f} | {mib:.1f} | {launches:,.0f} |"
        )
    text = "\n".join(lines)
    print(text)
    if options.report:
        options.report.write_text(f"# What the input path costs the host\n\nViews of {MODEL}, median of {options.rounds} runs of each version "
                                  f"in turn, one thread, {os.cpu_count()} cores, torch {torch.__version__}. Not run on a GPU here: the device "
                                  f"is torch's meta device, and launches of what runs there are counted, not timed. Before, colour was PIL's, in "
                                  f"the workers, and the training process normalised in float32.\n\n{text}\n")  # fmt: skip


if __name__ == "__main__":
    main()
