"""How cost grows: SeLa's labelling, k-means, linear probes, clustering metrics and kNN against images and classes, exponents fitted.

    python -m benchmarks.scaling [WORK ...] [--large] [--rounds 3]

Each work is timed at sizes that double while the rest stays, sizes in turn, and cost = a x size^e is fitted to the least times (least
squares of logarithms). An exponent of 1 is cost in proportion; below 1, part of the cost does not depend on the size yet. With --large
the two sizes of docs/100m.md are run once each, with the memory that they hold beyond their rows: k-means of 5 million rows with
10,000 centroids (minutes, 3 GB), labels of 1 million images among 3,000 (a quarter of an hour, 2 GB). Figures are kept in
scaling.json, and scaling.md and scaling.svg are made from them. CPU time of the process, one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import _frame
from engine.maths.contingency import ami, ari, contingency, nmi
from engine.maths.kmeans import kmeans
from engine.maths.knn import search
from engine.maths.sela import sela_labels

KEPT = Path(__file__).with_suffix(".json")
PAGE, PLOT = KEPT.with_suffix(".md"), KEPT.with_suffix(".svg")
DIM = 128


class Sweep(NamedTuple):
    """What is timed, the axis that doubles, its sizes, what stays, and how the work of a size is made."""

    work: str
    axis: str
    sizes: tuple[int, ...]
    fixed: str
    make: Callable[[int], Callable[[], Any]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelling(images: int, clusters: int) -> Callable[[], Any]:
    """Eleven iterations, the matrix kept, and the labels."""
    logits = 0.5 * normal(images, clusters)
    return lambda: sela_labels(logits, tolerance=1e-30, max_iterations=11)


def clustering(images: int, clusters: int, dim: int = DIM) -> Callable[[], Any]:
    """Two assignments and the update between them."""
    rows = normal(images, dim)
    return lambda: kmeans(rows, rows[:clusters].clone(), iterations=1)


def probe(images: int, heads: int) -> Callable[[], Any]:
    """One epoch of ``heads`` linear classifiers of ten classes, on three folds, and nothing of the network."""
    from evaluations.kinds import linear
    from evaluations.protocol import complete, load

    rates = [0.01 * 1.1**i for i in range(heads)]
    given: dict[str, Any] = {"grid.lr": rates, "grid.weight_decay": [1e-5], "select.folds": 3, "head.epochs": 1}
    protocol = complete(load("linear_digits", {**given, "head.snapshots": 0}))
    rows = normal(images, DIM)
    labels = np.arange(images) % 10
    seen = (np.arange(images)[None] % 3 != np.arange(3)[:, None]).astype(np.float32)
    head = linear.head_of(protocol)
    return lambda: linear.fit(rows.numpy(), labels, seen, protocol, head, 10, 0, torch.device("cpu"))


def metrics(images: int, clusters: int) -> Callable[[], Any]:
    """NMI, AMI and ARI of a clustering of images of 1,000 classes."""
    draw = np.random.default_rng(0)
    true = draw.integers(0, 1000, images)
    found = np.where(draw.random(images) < 0.5, true, draw.integers(0, clusters, images)) % clusters

    def scores() -> tuple[float, ...]:
        table = contingency(true, found)
        return nmi(table), ami(table), ari(table)

    return scores


def neighbours(bank: int, asked: int) -> Callable[[], Any]:
    rows, queries = normal(bank, DIM), normal(asked, DIM, seed=1)
    return lambda: search(rows, queries, 20)


def doubling(first: int, times: int = 5) -> tuple[int, ...]:
    return tuple(first * 2**i for i in range(times))


SWEEPS = (
    Sweep("SeLa labelling", "images", doubling(5_000), "500 clusters", lambda n: labelling(n, 500)),
    Sweep("SeLa labelling", "clusters", doubling(125), "20,000 images", lambda k: labelling(20_000, k)),
    Sweep("k-means", "images", doubling(10_000), f"{DIM} dimensions, 500 clusters", lambda n: clustering(n, 500)),
    Sweep("k-means", "clusters", doubling(125), f"20,000 x {DIM}", lambda k: clustering(20_000, k)),
    Sweep("k-means", "dimensions", doubling(64), "20,000 images, 500 clusters", lambda d: clustering(20_000, 500, d)),
    Sweep("linear probe", "images", doubling(5_000), f"{DIM} features, 12 heads", lambda n: probe(n, 4)),
    Sweep("linear probe", "heads", (6, 12, 24, 48, 96), f"10,000 x {DIM}", lambda g: probe(10_000, g // 3)),
    Sweep("NMI, AMI and ARI", "images", doubling(50_000), "1,000 classes and clusters", lambda n: metrics(n, 1000)),
    Sweep("NMI, AMI and ARI", "clusters", doubling(250), "200,000 images", lambda k: metrics(200_000, k)),
    Sweep("kNN", "bank", doubling(10_000), f"1,000 queries, {DIM} features", lambda n: neighbours(n, 1000)),
    Sweep("kNN", "queries", doubling(250), f"a bank of 50,000 x {DIM}", lambda q: neighbours(50_000, q)),
)  # fmt: skip


def fit(sizes: Any, seconds: Any) -> tuple[float, float]:
    """(exponent, its standard error) of the straight line through the logarithms."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    return slope, math.sqrt(float(rest @ rest) / max(len(x) - 2, 1) / float(centred @ centred))


def run(sweep: Sweep, rounds: int) -> dict[str, Any]:
    """Least CPU seconds at each size over ``rounds`` interleaved rounds; the first call of a size warms up."""
    works = [sweep.make(size) for size in sweep.sizes]
    for work in works:
        work()
    seconds = [math.inf] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            began = time.process_time()
            work()
            seconds[i] = min(seconds[i], time.process_time() - began)
    exponent, error = fit(sweep.sizes, seconds)
    told = {"work": sweep.work, "axis": sweep.axis, "fixed": sweep.fixed}
    return {**told, "sizes": list(sweep.sizes), "seconds": seconds, "exponent": exponent, "error": error}


def large_kmeans(images: int = 5_000_000, clusters: int = 10_000) -> dict[str, Any]:
    rows = torch.empty(images, DIM)
    for i, block in enumerate(rows.split(100_000)):
        block.copy_(normal(len(block), DIM, seed=i))
    start = rows[:clusters].clone()
    _, told = watched(lambda: kmeans(rows, start, iterations=0))
    gflop = 2 * images * clusters * DIM / 1e9
    size = f"{images:,} x {DIM}, {clusters:,} clusters: one assignment"
    return {"work": "k-means", "size": size, **told, "beside_gib": rows.nbytes / 2**30, "gflop": gflop}


def large_labelling(images: int = 1_000_000, clusters: int = 3_000) -> dict[str, Any]:
    """Logits come from features and a head in every iteration: the matrix of 12 GB is never held."""
    from engine.maths.rows import Rows

    features = torch.empty(images, DIM)
    for i, block in enumerate(features.split(100_000)):
        block.copy_(normal(len(block), DIM, seed=i))
    head = normal(DIM, clusters, seed=1) / 2 / math.sqrt(DIM)
    rows = Rows(features, transform=lambda block: block @ head)
    found, told = watched(lambda: sela_labels(rows, relaxation=1.6, keep=False))
    size = f"{images:,} images from {DIM} features, {clusters:,} labels: {found.iterations} iterations"
    size += ", stopped by the rule" if found.converged else ", not converged"
    size += f", {int(found.sizes.min()):,} to {int(found.sizes.max()):,} images a label"
    gflop = 2 * images * clusters * (DIM + 2) * (found.iterations + 1) / 1e9
    return {"work": "SeLa labelling", "size": size, **told, "beside_gib": features.nbytes / 2**30, "gflop": gflop}


LARGE = {"k-means": large_kmeans, "SeLa labelling": large_labelling}


def watched(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns, its CPU seconds, and the MiB that the process held at most beyond what it held before."""
    _frame.memory(reset=True)
    before = _frame.memory() or {"VmRSS": math.nan}
    done, began, cpu = threading.Event(), time.monotonic(), time.process_time()

    def tell() -> None:
        while not done.wait(60):
            print(f"  running since {time.monotonic() - began:,.0f} s", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    result = work()
    done.set()
    after = _frame.memory() or {"VmHWM": math.nan}
    return result, {"cpu_seconds": time.process_time() - cpu, "mib": after["VmHWM"] - before["VmRSS"]}


def alone(call: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """In a process of its own, with one thread, beside the machine that it ran on."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_single, (call, args))


def _single(call: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> dict[str, Any]:
    torch.set_num_threads(1)
    machine = _frame.machine()
    told = {name: machine[name] for name in ("cpu", "kernels", "flags", "versions", "commit")}
    return {**call(*args), "machine": {**told, "limits": machine["limits"]}}


def sweep_of(number: int, rounds: int) -> dict[str, Any]:
    return run(SWEEPS[number], rounds)


def page(kept: dict[str, list[dict[str, Any]]]) -> str:
    """scaling.md from what was kept."""
    lines = [
        "# How cost grows",
        "",
        "Written by `python -m benchmarks.scaling --large` from `benchmarks/scaling.json`; do not edit. CPU seconds of one thread, the least of",
        "some rounds, sizes in turn. Exponent: cost = a x size^e, least squares of logarithms, ± its standard error; the arithmetic alone has 1",
        "everywhere. Below 1, part of the cost does not depend on that size. Not run on a GPU.",
        "",
        "![seconds against size](scaling.svg)",
        "",
        "| work | grows | stays | sizes | CPU seconds | exponent |",
        "|:--|:--|:--|:--|:--|--:|",
    ]
    for s in kept["sweeps"]:
        sizes = " · ".join(f"{n:,}" for n in s["sizes"])
        seconds = " · ".join(f"{x:.3g}" for x in s["seconds"])
        lines.append(
            f"| {s['work']} | {s['axis']} | {s['fixed']} | {sizes} | {seconds} | {s['exponent']:.2f} ± {s['error']:.2f} |"
        )
    lines += [
        "",
        "## Large",
        "",
        "| work | size | CPU seconds | GFLOP/s | held beside the rows |",
        "|:--|:--|--:|--:|--:|",
    ]
    for r in kept["large"]:
        rate, beside = r["gflop"] / r["cpu_seconds"], f"{r['mib']:,.0f} MiB beside {r['beside_gib']:.2f} GiB"
        lines.append(f"| {r['work']} | {r['size']} | {r['cpu_seconds']:,.0f} | {rate:,.0f} | {beside} |")
    machines = sorted({_machine(r["machine"]) for r in (*kept["sweeps"], *kept["large"])})
    return "\n".join([*lines, "", "## Machines", "", *machines]) + "\n"


def _machine(m: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items())
    return f"- {m['cpu']}, torch uses {m['kernels']}; flags: {' '.join(m['flags'])}. {versions}."


def plot(kept: dict[str, list[dict[str, Any]]]) -> str:
    """scaling.svg from what was kept: one panel for each work, its sweeps as lines."""
    import matplotlib
    from matplotlib.figure import Figure

    from results.figures import FIRST, INK, SECOND, STYLE, svg

    works = list(dict.fromkeys(s["work"] for s in kept["sweeps"]))
    looks = ((FIRST, "o", "-"), (INK, "s", "--"), (SECOND, "^", ":"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6 * math.ceil(len(works) / 3) + 0.4), layout="constrained")
        for place, work in enumerate(works):
            axes = figure.add_subplot(math.ceil(len(works) / 3), 3, place + 1)
            for s, (colour, marker, line) in zip([s for s in kept["sweeps"] if s["work"] == work], looks, strict=False):
                growth = [n / s["sizes"][0] for n in s["sizes"]]
                axes.plot(
                    growth, s["seconds"], line, color=colour, marker=marker, markersize=4,
                    label=f"{s['axis']} from {s['sizes'][0]:,}: {s['exponent']:.2f}",
                )  # fmt: skip
            axes.set(title=work, xscale="log", yscale="log", xlabel="size, times the least", ylabel="CPU seconds")
            axes.set_xticks([1, 2, 4, 8, 16], labels=["1", "2", "4", "8", "16"])
            axes.minorticks_off()
            axes.legend(fontsize=7, frameon=False, title="exponent", title_fontsize=7)
        return svg(figure, [s["seconds"] for s in kept["sweeps"]])


def read() -> dict[str, list[dict[str, Any]]]:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"sweeps": [], "large": []}


def keep(kept: dict[str, list[dict[str, Any]]]) -> None:
    order = {(s.work, s.axis): i for i, s in enumerate(SWEEPS)}
    kept["sweeps"].sort(key=lambda s: order[s["work"], s["axis"]])
    kept["large"].sort(key=lambda r: list(LARGE).index(r["work"]))
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    PLOT.write_text(plot(kept), encoding="utf-8")


def measured(works: list[str], rounds: int, large: bool) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """(list that it belongs to, figures, keys that name it) of one measurement after the other."""
    if large:
        for work in works:
            if work in LARGE:
                yield "large", alone(LARGE[work]), ("work",)
    else:
        for number, sweep in enumerate(SWEEPS):
            if sweep.work in works:
                yield "sweeps", alone(sweep_of, number, rounds), ("work", "axis")


def main(argv: list[str] | None = None) -> int:
    known = list(dict.fromkeys(s.work for s in SWEEPS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.scaling k-means kNN",
    )  # fmt: skip
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--large", action="store_true", help="the two large sizes instead of the sweeps")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--page", action="store_true", help="only write page and figure from what is kept")
    args = parser.parse_args(argv)
    if unknown := [w for w in args.works if w not in known]:
        parser.error(f"{unknown[0]}: not measured here; there are {', '.join(known)}")
    if args.page:
        keep(read())
        return 0
    for name, found, keys in measured(args.works or known, args.rounds, args.large):
        kept = read()  # another process may have written
        kept[name] = [*(o for o in kept[name] if any(o[k] != found[k] for k in keys)), found]
        keep(kept)
        shown = {k: v for k, v in found.items() if k != "machine"}
        print(json.dumps(shown), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
