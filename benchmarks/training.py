"""What the training loop costs, and what precision and memory format gain: CPU seconds of one thread, interleaved rounds.

    python -m benchmarks.training [--rounds 5] [--steps 100]

loop       fit() with its default options (log, checkpoints, TensorBoard) against the shortest loop that trains the same
precision  simclr's step on the fashion_mnist profile's network, 2 views of 32 px, in float32 and bfloat16, NCHW and NHWC
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from engine import layout, loop, optim, rng
from engine.batch import Batch
from engine.dist import World
from engine.options import RunOptions
from reproduce import launch
from zoo import data


class Fixed:
    """A stream that gives the same batch again and again: the cost of making views does not count."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps_per_epoch, self.total_steps = batch, steps, steps

    def context(self, method: Any, epoch: int) -> None:
        return None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield from (self.batch for _ in range(self.steps_per_epoch - start))


def setting(model: str, size: int) -> tuple[Any, Callable[[], Any], Batch]:
    """A recipe, a maker of its method, and a batch of noise."""
    recipe = zoo.resolve(model)
    channels, source = recipe.input.channels, data.open_source("digits", "train")
    draws = rng.normals(0, "benchmark", 0, torch.arange(recipe.batch).numpy(), 0, channels * size * size)
    view = torch.from_numpy(draws).float().view(-1, channels, size, size)
    batch = Batch(torch.arange(recipe.batch), [view, view.flip(0)])
    return recipe, lambda: launch.build(recipe, source), batch


def bare(method: Any, batch: Batch, recipe: dict[str, Any], steps: int) -> None:
    """The shortest loop that trains."""
    last = layout.memory_format(method, recipe["channels_last"]) is torch.channels_last
    method.to(memory_format=torch.channels_last if last else torch.contiguous_format).train()
    optimizer = optim.build(recipe["optimizer"], method.param_groups())
    half = recipe["precision"] == "bfloat16"
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = method.loss(batch.to("cpu", channels_last=last), step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def rounds(cases: Mapping[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Each case once per round, after a round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(count + 1):
        for name, work in cases.items():
            spent = seconds(work)
            if number:
                found[name].append(spent)
    return found


def loop_cost(model: str, size: int, steps: int, count: int) -> str:
    recipe, make, batch = setting(model, size)
    plain = recipe.dump()

    def full() -> None:
        with tempfile.TemporaryDirectory() as folder:
            loop.fit(
                make(), Fixed(batch, steps), rates=optim.schedule(plain["schedule"], steps, steps, lr=plain["optimizer"]["lr"]),
                recipe=plain, folder=Path(folder) / model / "run", options=RunOptions(),
                world=World(), provenance={},
            )  # fmt: skip

    found = rounds({"bare": lambda: bare(make(), batch, plain, steps), "fit": full}, count)
    ratio = statistics.median(f / b for f, b in zip(found["fit"], found["bare"], strict=True))
    low, high = (edge(f / b for f, b in zip(found["fit"], found["bare"], strict=True)) for edge in (min, max))
    step = [1e3 * statistics.median(found[name]) / steps for name in ("bare", "fit")]
    return f"loop       {model}: bare {step[0]:.2f} ms/step, fit {step[1]:.2f} ms/step; ratio {ratio:.3f} ({low:.3f}-{high:.3f})"


def precision_gain(model: str, size: int, steps: int, count: int) -> list[str]:
    recipe, make, batch = setting(model, size)
    plain = recipe.dump()
    cases: dict[str, Callable[[], Any]] = {}
    for precision in ("float32", "bfloat16"):
        for last in (False, True):
            changed = {**plain, "precision": precision, "channels_last": last}
            name = f"{precision} {'NHWC' if last else 'NCHW'}"
            cases[name] = partial(lambda changed: bare(make(), batch, changed, steps), changed)
    found = rounds(cases, count)
    first = next(iter(cases))
    return [
        f"precision  {model} {name}: {steps * recipe.batch / statistics.median(found[name]):,.0f} images/CPU-s, "
        f"{statistics.median(a / b for a, b in zip(found[first], found[name], strict=True)):.2f}x"
        for name in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(loop_cost("simclr_digits", 10, args.steps, args.rounds))
    print(loop_cost("swav_digits", 10, args.steps, args.rounds))
    print("\n".join(precision_gain("simclr_fashion_mnist", 32, max(args.steps // 20, 2), args.rounds)))


if __name__ == "__main__":
    main()
