"""PIC with and without its window, with and without negative sampling: accuracy, memory and time on Fashion-MNIST.

    python -m benchmarks.pic_window [--seeds 3] [--report benchmarks/pic_window.md] [path=value ...]

Each (variant, seed) is a process of its own: pre-training of ``pic_fashion_mnist`` under a stopwatch, then protocols
of the data set. What is finished is kept in --out: the same command continues after an interruption. ``path=value``:
settings of the recipe for all variants, such as ``schedule.images=102400``. The report's .json has every seed.

The recipe itself pre-trains on 2,000 images, at rates chosen there; here every image of the training split is a class, at the
rates that digits had.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from zoo.errors import UserError

MODEL = "pic_fashion_mnist"
SETTINGS = {"split": "train", "params.window.stride": 1024, "optimizer.lr": 0.003, "params.class_sgd.lr": 0.3}
METRICS = {"linear": "top1", "fewlabel": "top1", "knn": "top1", "cluster": "nmi"}
HEADINGS = {"linear": "linear", "fewlabel": "20 labels", "knn": "kNN", "cluster": "NMI"}
COSTS = {
    "class_ms": "class part, CPU ms a step",
    "step_ms": "whole step, CPU ms",
    "train_s": "pre-training, CPU s",
    "classes": "classes in the softmax",
    "logits_mib": "logits, MiB",
    "rows_mib": "rows held, MiB",
    "peak_mib": "peak of the process, MiB",
    "added_mib": "of it since the first softmax, MiB",
    "visited": "images visited",
}
WARM = 10  # steps that do not count


@dataclass(frozen=True)
class Variant:
    """window: images (0: plain epochs); negatives: classes in the softmax (0: all)."""

    window: int
    negatives: int

    @property
    def settings(self) -> dict[str, object]:
        return {"params.window.size": self.window, "params.negatives": self.negatives}

    @property
    def title(self) -> str:
        return f"{f'{self.window:,}' if self.window else 'off'} | {f'{self.negatives:,}' if self.negatives else 'all'}"


class Stopwatch:
    """CPU time of each step of a PIC run in this process, and of its part that depends on the number of classes."""

    def __init__(self) -> None:
        self.class_s: list[float] = []
        self.step_s: list[float] = []
        self.classes: list[int] = []
        self.visited: set[int] = set()
        self.held = self.base = 0.0  # MiB: of rows; of the process at its first softmax, after the network's pass
        self._spent = self._backward = 0.0
        self._last: float | None = None

    def install(self) -> None:
        """From now on every PIC method is timed: forward and backward of its softmax, and the update of its rows."""
        from reproduce.methods.pic import PIC

        classify, update, watch = PIC.classify, PIC.after_backward, self

        def timed_classify(self: Any, features: Any, sides: Any, seen: Any) -> Any:
            watch.base = watch.base or memory_mib("VmRSS")
            began = time.process_time()
            loss = classify(self, features, sides, seen)
            watch._spent = time.process_time() - began
            watch.visited.update(seen.tolist())
            watch.classes.append(len(self._taken[0]))
            loss.register_hook(watch._start)  # the first gradient of a backward pass, and
            for one in features:
                one.register_hook(watch._stop)  # those that leave the softmax for the network
            return loss

        def timed_update(self: Any, step: int) -> None:
            began = time.process_time()
            update(self, step)
            now = time.process_time()
            born = int((self.rows.current >= 0).sum())
            watch.held = born * (2 * self.rows.dim * 4 + 4) / 2**20  # row, momentum, step
            watch.class_s.append(watch._spent + now - began)
            if watch._last is not None:
                watch.step_s.append(now - watch._last)
            watch._last = now

        PIC.classify, PIC.after_backward = timed_classify, timed_update  # type: ignore[method-assign]

    def _start(self, grad: Any) -> None:
        self._backward = time.process_time()

    def _stop(self, grad: Any) -> None:
        now = time.process_time()
        self._spent, self._backward = self._spent + now - self._backward, now

    def cost(self, batch: int, train_s: float) -> dict[str, float]:
        peak = memory_mib("VmHWM")
        return {
            "class_ms": 1000 * median(self.class_s),
            "step_ms": 1000 * median(self.step_s),
            "train_s": train_s,
            "classes": float(statistics.median(self.classes)),
            "logits_mib": batch * max(self.classes) * 4 / 2**20,
            "rows_mib": self.held,
            "peak_mib": peak,
            "added_mib": peak - self.base,
            "visited": float(len(self.visited)),
        }


def median(values: list[float]) -> float:
    return statistics.median(values[min(WARM, len(values) // 2) :])


def memory_mib(what: str) -> float:
    """Main memory of this process, VmRSS now or VmHWM at most (Linux); getrusage counts the parent's as well."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**10 if found else math.nan


def task(variant: Variant, seed: int, settings: dict[str, object], data: str | None, out: str) -> dict[str, float]:
    """Pre-train and judge one variant with one seed; the numbers of its row."""
    import torch

    torch.set_num_threads(1)
    from reproduce import launch

    place: dict[str, object] = {"data": data} if data else {}
    wanted = {**settings, **variant.settings, **place, "seed": seed, "out": out}
    work = launch.job(MODEL, wanted)
    kept = work.folder / "cost.json"
    if not (kept.exists() and launch.finished(work.folder)):  # a run that was cut short has no whole cost: again
        watch = Stopwatch()
        watch.install()
        began = time.process_time()
        launch.pretrain(MODEL, {**wanted, "resume": False}, quiet=True)
        cost = watch.cost(work.recipe.batch, time.process_time() - began)
        kept.write_text(json.dumps(cost))
    return json.loads(kept.read_text()) | judged(work.folder, seed, place, out)


def judged(folder: Path, seed: int, place: dict[str, object], out: str) -> dict[str, float]:
    from evaluations.measure import evaluate
    from results import record

    found = {}
    for name, metric in METRICS.items():
        path = evaluate(f"{name}_fashion_mnist", str(folder), {**place, "pretrain_seed": seed}, out=out, quiet=True)
        found[name] = record.read(path).metrics[metric].value
    return found


# -- the report --------------------------------------------------------------------------------------------------------


def mean_sd(values: list[float], digits: int) -> str:
    """``12.3 ± 0.4``; without a spread for one seed, and for numbers that no seed changes."""
    spread = f" ± {sd(values):,.{digits}f}" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):,.{digits}f}{spread}"


def sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def contrast(found: dict[Variant, list[dict[str, float]]], first: Variant, second: Variant) -> str:
    """What the second does beside the first: scores apart by more than 2 sqrt(s1^2 + s2^2), the others, costs."""
    moved: list[str] = []
    same: list[str] = []
    for name in METRICS:
        a, b = ([row[name] for row in found[v]] for v in (first, second))
        change = statistics.fmean(b) - statistics.fmean(a)
        allowed = 2 * math.sqrt(sd(a) ** 2 + sd(b) ** 2)
        text = f"{HEADINGS[name]} {change:+.1f} (allowed {allowed:.1f})"
        (moved if abs(change) > allowed and min(len(a), len(b)) > 1 else same).append(text)
    of_a, of_b = ({name: statistics.fmean(row[name] for row in found[v]) for name in COSTS} for v in (first, second))
    shown = {"class_ms": "ms on classes", "step_ms": "ms a step", "peak_mib": "MiB peak", "visited": "images visited"}
    costs = ", ".join(f"{of_a[name]:,.0f} → {of_b[name]:,.0f} {unit}" for name, unit in shown.items())
    return f"{', '.join(moved) or 'no score'} beyond the spread; within it: {', '.join(same) or 'none'}; {costs}."


def conclusions(found: dict[Variant, list[dict[str, float]]]) -> list[str]:
    """One line for each switch at each position of the other."""
    lines = []
    for first, second in itertools.permutations(found, 2):
        if first.negatives == second.negatives and second.window and not first.window:
            kind = f"{first.negatives:,} negatives" if first.negatives else "all classes"
            lines.append(f"- **The window, with {kind}:** {contrast(found, first, second)}")
        if first.window == second.window and second.negatives and not first.negatives:
            kind = "on" if first.window else "off"
            lines.append(f"- **Negative sampling, window {kind}:** {contrast(found, first, second)}")
    return sorted(lines, reverse=True)


def page(
    found: dict[Variant, list[dict[str, float]]],
    origin: dict[str, Any],
    command: str,
    images: int,
    settings: dict[str, Any],
) -> str:
    """The report in Markdown."""
    seeds, hardware, versions = len(next(iter(found.values()))), origin["hardware"], origin["versions"]
    machine = f"{hardware.get('cpu') or 'a CPU'}, {hardware.get('cores', '?')} cores, {origin['platform']}"
    lines = [
        "# PIC with and without its window, with and without negative sampling",
        "",
        f"Generated by `{command}`; do not edit.",
        "",
        (
            f"`{MODEL}` with {', '.join(f'{path}={value}' for path, value in settings.items())}; {images:,} images seen, mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''} "
            f"of pre-training. One thread a run; {machine}; torch {versions['torch']}; not run on a GPU. CPU time and "
            "memory are those of the process that pre-trains; other work on the machine moves times, not scores."
        ),
        "",
    ]
    scores = [[mean_sd([row[name] for row in rows], 1) for name in METRICS] for rows in found.values()]
    costs = [[mean_sd([row[name] for row in rows], 0) for name in COSTS] for rows in found.values()]
    for headings, cells in ((HEADINGS.values(), scores), (COSTS.values(), costs)):
        lines += [f"| window | softmax over | {' | '.join(headings)} |", "|---|---|" + "---:|" * len(headings)]
        lines += [f"| {v.title} | {' | '.join(row)} |" for v, row in zip(found, cells, strict=True)] + [""]
    lines += [
        (
            "The class part is everything that depends on the number of classes: choosing and taking rows, the softmax "
            "forward and backward, the update of rows. Logits are one float32 matrix, of which a step holds a few; "
            "rows held are those that exist, with their momentum."
        ),
        "",
        "A difference counts when it is larger than 2 √(s₁² + s₂²):" if seeds > 1 else "One seed: no verdict.",
        "",
        *conclusions(found),
    ]
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pic_window", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="path=value", help="recipe settings for all variants")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=8192, help="images in the window (default 8192)")
    parser.add_argument("--negatives", type=int, default=4096, help="classes in the sampled softmax (default 4096)")
    parser.add_argument("--data", help="folder of the data set; default: looked for, see python -m zoo data")
    parser.add_argument("--out", default="runs/pic_window", help="where runs and records go (default runs/pic_window)")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), help="tasks side by side")
    parser.add_argument("--report", metavar="FILE.md", help="write the report there, and FILE.json beside it")
    args = parser.parse_intermixed_args(argv)

    import zoo
    import zoo.data
    from engine import provenance
    from zoo.settings import parse

    settings = {**SETTINGS, **parse(args.settings)}
    recipe = zoo.resolve(MODEL, settings)  # a wrong setting is told before anything runs
    source = zoo.data.open_source(recipe.dataset, recipe.split, root=args.data)
    plan = list(
        itertools.product([Variant(w, n) for w in (0, args.window) for n in (0, args.negatives)], range(args.seeds))
    )
    print(f"{len(plan)} runs of {MODEL}, {args.processes} side by side -> {args.out}/")
    began, numbers = time.time(), {}
    context = get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:  # a peak of its own
        futures = {pool.submit(task, v, seed, settings, args.data, args.out): (v, seed) for v, seed in plan}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                variant, seed = futures[future]
                numbers[variant, seed] = future.result()
                spent = time.time() - began
                left = clock(spent / done * (len(plan) - done))
                print(f"[{done:2d}/{len(plan)}] window {variant.window}, negatives {variant.negatives}, seed {seed}   "
                      f"{clock(spent)} spent, about {left} left", flush=True)  # fmt: skip
        except BrokenProcessPool:
            raise UserError(f"a run was ended from outside, perhaps for want of memory (each takes about 1.6 GiB); what is "
                            f"finished is kept in {args.out}: the same command goes on, --processes 1 takes less") from None  # fmt: skip
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    variants = dict.fromkeys(variant for variant, _ in plan)
    found = {variant: [numbers[variant, seed] for seed in range(args.seeds)] for variant in variants}
    images = recipe.schedule.images or (recipe.schedule.epochs or 0) * len(source)
    origin = provenance.collect()
    told = {
        "--seeds": args.seeds,
        "--window": args.window,
        "--negatives": args.negatives,
        "--report": args.report,
    }  # no places of this machine
    words = [f"{name} {value}" for name, value in told.items() if value] + args.settings
    text = page(found, origin, " ".join(["python -m benchmarks.pic_window", *words]), images, settings)
    if args.report:
        Path(args.report).write_text(text, encoding="utf-8")
        rows = [{**asdict(variant), "seed": seed, **numbers[variant, seed]} for variant, seed in plan]
        beside = Path(args.report).with_suffix(".json")
        whole = {"model": MODEL, "settings": settings, "provenance": origin, "rows": rows}
        beside.write_text(json.dumps(whole, indent=1) + "\n")
        print(f"{args.report} and {beside} written")
    print(f"\n{text}\n{clock(time.time() - began)} in all")
    return 0


if __name__ == "__main__":
    from zoo.errors import guard

    sys.exit(guard(main, kept={"": "finished runs are"}))  # after Ctrl-C
