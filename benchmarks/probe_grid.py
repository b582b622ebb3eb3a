"""A grid of 3 folds x 4 rates x 5 layers of linear probes: kept features, one forward an epoch, or one run per cell.

    python -m benchmarks.probe_grid [--dataset fashion_mnist] [--images 2000] [--epochs 20] [--rounds 3] [--report FILE]

fast       this project's: one pass of the network keeps the features of every layer, then all heads of a layer train together
shared     the network runs on each batch once per epoch, and 60 ordinary heads learn from it, as newer code has it
per cell   one run per cell, as the authors' scripts have it: in every epoch the network runs, no deeper than the layer, on
           the training part for one head, and then on the held-out part to score it

All see the same images in the same order, unaugmented, and start from the same weights: their scores must agree. A round
runs fast, shared, and one cell of each layer, which stands for the layer's 12; folds and rates change from round to round,
so that 12 rounds run all 60. CPU seconds of the process, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from engine import layout, provenance, rng
from evaluations.inputs.features import FeatureRequest, Features, FeatureStore
from evaluations.inputs.pooling import pooled
from evaluations.inputs.views import stream
from evaluations.kinds import linear
from evaluations.probes import batched
from evaluations.protocol import Protocol, complete, load
from zoo import backbones, data
from zoo.schema import Backbone

FOLDS, RATES, DECAY, POOL, BATCH, SEED = 3, (0.03, 0.1, 0.3, 1.0), 1e-5, "adaptive_avg:2", 256, 0
NET = Backbone(name="tiny_resnet", options={"width": 16, "blocks": [1, 1, 1, 1], "stem_stride": 2, "in_channels": 1})
LONG = 100  # epochs of most papers' probes


class Cell(NamedTuple):
    fold: int
    rate: float
    layer: str


@dataclass
class Cost:
    """CPU seconds, those of the network among them, and images that went through it."""

    seconds: float = 0.0
    network: float = 0.0
    images: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.network + other.network, self.images + other.images)

    def times(self, factor: float) -> Cost:
        return Cost(self.seconds * factor, self.network * factor, self.images * factor)


@dataclass
class Bench:
    """The images, the frozen network (counted and timed), and the grid."""

    source: Any
    card: dict[str, Any]
    net: Any
    protocol: Protocol
    held_out: np.ndarray  # (folds, N)
    through: Cost = field(default_factory=Cost)

    @property
    def grid(self) -> list[Cell]:
        return [Cell(fold, rate, name) for name in self.net.layers for fold in range(FOLDS) for rate in RATES]

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        self.through.images += len(x)
        steps = type(self.net).stages(self.net, x)
        while True:
            began = time.process_time()
            found = next(steps, None)
            self.through.network += time.process_time() - began
            if found is None:
                return
            yield found

    def cost(self, work: Callable[[], Any]) -> tuple[Any, Cost]:
        self.through = Cost()
        began = time.process_time()
        found = work()
        self.through.seconds = time.process_time() - began
        return found, self.through

    def features(self, root: str) -> Features:
        judged: Any = SimpleNamespace(name="probe_grid", backbone=self.net, layers=self.net.layers, input=self.card)
        judged.weights_sha256, judged.description = "untrained", NET.model_dump(mode="json")
        planned = [FeatureRequest("train", name, POOL) for name in self.net.layers]
        return Features(
            judged,
            self.protocol,
            FeatureStore(root),
            open_split=lambda s: self.source,
            release=lambda: None,
            also=planned,
        )


def setting(dataset: str, images: int, epochs: int) -> Bench:
    whole = data.open_source(dataset, "fit")
    source = whole.subset(np.sort(rng.permutation(SEED, "probe grid", 0, len(whole))[:images]))
    given: dict[str, Any] = {"layers": ["all"], "pool": POOL, "grid.lr": list(RATES), "grid.weight_decay": [DECAY]}
    given |= {"select.folds": FOLDS, "head.epochs": epochs, "head.batch": BATCH, "head.norm": "none"}
    protocol = complete(load(f"linear_{dataset}", {**given, "head.snapshots": 0}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = backbones.build(NET).eval().requires_grad_(False)
    _, held_out = linear.folds_of(protocol, source.labels, SEED)
    bench = Bench(source, zoo.resolve(f"random_{dataset}").input.model_dump(mode="json"), net, protocol, held_out)
    net.stages = bench.stages  # type: ignore[method-assign]
    return bench


def fast(bench: Bench) -> dict[Cell, float]:
    """{cell: accuracy on its held-out fold} by the evaluation's own code, nothing kept from before."""
    labels, classes, protocol = bench.source.labels, len(bench.source.classes), bench.protocol
    head, found = linear.head_of(protocol), {}
    with tempfile.TemporaryDirectory() as root:
        features = bench.features(root)
        for name in bench.net.layers:
            x = features.get(FeatureRequest("train", name, POOL))
            seen = (~bench.held_out).astype(np.float32)
            trained = linear.fit(x, labels, seen, protocol, head, classes, SEED, torch.device("cpu"))
            right = batched.correct(x, labels, trained, bench.held_out)
            for fold, row in enumerate(100 * right / bench.held_out.sum(1, keepdims=True)):
                found.update({Cell(fold, rate, name): float(v) for rate, v in zip(RATES, row, strict=True)})
    return found


def forwards(bench: Bench, cells: Sequence[Cell], every_epoch: bool) -> tuple[dict[Cell, float], Cost]:
    """({cell: accuracy on its held-out fold}, cost of scoring before the last epoch), the network run anew each time.

    every_epoch: score after each epoch, as authors' scripts do, instead of once at the end.
    """
    head, seen, labels = linear.head_of(bench.protocol), ~bench.held_out, torch.as_tensor(bench.source.labels)
    n, classes = len(labels), len(bench.source.classes)
    probes: list[nn.Linear] = []
    for cell in cells:
        probe = nn.Linear(4 * bench.net.dims[cell.layer], classes)
        drawn = torch.randn(classes, probe.in_features, generator=rng.generator(SEED * 1000, "linear head"))
        probe.weight.data, probe.bias.data = head.init_std * drawn, torch.zeros(classes)
        probes.append(probe)
    groups = [{"params": list(p.parameters())} for p in probes]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=head.momentum, weight_decay=DECAY)
    rate = np.array([cell.rate for cell in cells])
    rates = head.schedule.build().rates(rate, np.full(len(cells), DECAY), head.epochs, -(-n // BATCH))
    needed = np.any(seen[[cell.fold for cell in cells]], axis=0)

    step, extra = 0, Cost()
    for epoch in range(head.epochs):
        order = rng.permutation(SEED, "linear head batches", epoch, n)
        batches = [rows[needed[rows]] for rows in (order[at : at + BATCH] for at in range(0, n, BATCH))]
        for rows, x in batches_of(bench, batches, cells):
            for group, value in zip(optimizer.param_groups, rates[step], strict=True):
                group["lr"] = float(value)
            optimizer.zero_grad()
            losses = []
            for cell, probe in zip(cells, probes, strict=True):
                mine = torch.as_tensor(seen[cell.fold, rows])
                losses.append(F.cross_entropy(probe(x[cell.layer][mine]), labels[rows][mine]))
            torch.stack(losses).sum().backward()
            optimizer.step()
            step += 1
        if every_epoch and epoch + 1 < head.epochs:
            before, began = Cost(0, bench.through.network, bench.through.images), time.process_time()
            score(bench, cells, probes)
            spent = bench.through + before.times(-1)
            extra += Cost(time.process_time() - began, spent.network, spent.images)
    return score(bench, cells, probes), extra


@torch.no_grad()
def score(bench: Bench, cells: Sequence[Cell], probes: Sequence[nn.Linear]) -> dict[Cell, float]:
    hits = dict.fromkeys(cells, 0.0)
    rows = np.flatnonzero(bench.held_out[[cell.fold for cell in cells]].any(0))
    for part, x in batches_of(bench, np.array_split(rows, -(-len(rows) // BATCH)), cells):
        for cell, probe in zip(cells, probes, strict=True):
            mine = bench.held_out[cell.fold, part]
            best = probe(x[cell.layer][torch.as_tensor(mine)]).argmax(1).numpy()
            hits[cell] += float((best == bench.source.labels[part][mine]).sum())
    return {cell: 100 * value / float(bench.held_out[cell.fold].sum()) for cell, value in hits.items()}


def batches_of(bench: Bench, order: Sequence[np.ndarray], cells: Sequence[Cell]) -> Iterator[tuple[np.ndarray, Any]]:
    """(rows, {layer: pooled features}) of one pass, no deeper than the deepest layer of the cells."""
    names = list(dict.fromkeys(cell.layer for cell in cells))
    for rows, images in stream(bench.source, bench.features("").views("centre"), order):
        with torch.no_grad():
            maps = bench.net.forward_layers(layout.arranged(images[:, 0], bench.net, "cpu"), names)
            found = {name: pooled(maps[name], POOL) for name in names}
        yield rows, found


@dataclass
class Round:
    """Costs of each form for the whole grid (per cell: 12 times one cell of each layer), and the scores."""

    costs: dict[str, Cost]
    scores: dict[str, dict[Cell, float]]


def measure(bench: Bench, number: int) -> Round:
    kept, cost_fast = bench.cost(lambda: fast(bench))
    (together, _), cost_shared = bench.cost(lambda: forwards(bench, bench.grid, every_epoch=False))
    alone: dict[Cell, float] = {}
    cost_alone, cost_once = Cost(), Cost()
    for i, name in enumerate(bench.net.layers):
        cell = Cell(number % FOLDS, RATES[(number + i) % len(RATES)], name)
        (found, extra), cost = bench.cost(lambda cell=cell: forwards(bench, [cell], every_epoch=True))  # type: ignore[misc]
        alone.update(found)
        cost_alone, cost_once = cost_alone + cost, cost_once + cost + extra.times(-1)
    stands_for = FOLDS * len(RATES)
    costs = {"fast": cost_fast, "shared": cost_shared, "per cell": cost_alone.times(stands_for)}
    costs["per cell, scored once"] = cost_once.times(stands_for)
    return Round(costs, {"fast": kept, "shared": together, "per cell": alone})


def agreement(bench: Bench, rounds: Sequence[Round], form: str) -> str:
    """How the scores of a form compare with those of the fast one, in images of the held-out fold."""
    size = {cell: bench.held_out[cell.fold].sum() / 100 for cell in bench.grid}
    apart = {c: abs(v - r.scores["fast"][c]) * size[c] for r in rounds for c, v in r.scores[form].items()}
    same, worst = sum(v < 0.5 for v in apart.values()), max(apart.values())
    if worst > 0.005 * bench.held_out[0].sum() + 1:
        raise SystemExit(f"error: {form} and fast differ by {worst:.0f} images; they are not the same computation")
    rest = "" if same == len(apart) else f"; the others differ by {worst:.0f} image{'s'[: worst > 1.5]} at most"
    return f"{form}: the same score in {same} of {len(apart)} cells ({int(size[bench.grid[0]] * 100):,} held-out images){rest}"


def ratio(rounds: Sequence[Round], of: str, by: str, what: str) -> tuple[float, float, float]:
    """(median, least, most) over rounds."""
    found = [getattr(r.costs[of], what) / getattr(r.costs[by], what) for r in rounds]
    return statistics.median(found), min(found), max(found)


def longer(cost: Cost, form: str, epochs: int) -> float:
    """Seconds of LONG epochs: everything grows with the epochs, but the one pass of the fast form."""
    fixed = cost.network if form == "fast" else 0.0
    return fixed + (cost.seconds - fixed) * LONG / epochs


def report(bench: Bench, rounds: Sequence[Round], command: str) -> str:
    epochs, names = linear.head_of(bench.protocol).epochs, list(rounds[0].costs)
    far = {name: statistics.median(longer(r.costs[name], name, epochs) for r in rounds) for name in names}
    middle, low, high = ratio(rounds, "per cell", "shared", "seconds")
    made = provenance.collect()
    return REPORT.format(
        command=command,
        machine=f"{made['hardware']['cores']} cores, {made['hardware']['cpu']}, other work beside; "
        f"torch {made['versions']['torch']}",
        images=len(bench.source),
        dataset=bench.protocol.dataset,
        epochs=epochs,
        batch=BATCH,
        width=NET.options["width"],
        rows="\n".join(row(rounds, name) for name in names),
        rounds=len(rounds),
        sampled=len({cell for r in rounds for cell in r.scores["per cell"]}),
        shared=f"{middle:,.1f} times the CPU time ({low:,.1f} to {high:,.1f})",
        shared_images=ratio(rounds, "per cell", "shared", "images")[0],
        long=LONG,
        far=far["per cell"] / far["fast"],
        far_shared=far["shared"] / far["fast"],
        far_images=60 * LONG,
        far_passes=LONG + 1,
        agreement="\n".join(f"- {agreement(bench, rounds, form)}" for form in ("shared", "per cell")),
    )


def row(rounds: Sequence[Round], name: str) -> str:
    cost = rounds[0].costs[name]
    seconds, network = (statistics.median(getattr(r.costs[name], k) for r in rounds) for k in ("seconds", "network"))
    middle, low, high = ratio(rounds, name, "fast", "seconds")
    passes = ratio(rounds, name, "fast", "images")[0]
    spread = f"{middle:,.1f} ({low:,.1f} to {high:,.1f})"
    return f"| {name} | {cost.images:,.0f} | {seconds:,.2f} | {network:,.2f} | {passes:,.0f} | {spread} |"


REPORT = """\
# The probe grid: 3 folds x 4 rates x 5 layers

`{command}`: one thread
({machine}, CPU). {images:,} images of {dataset}, {epochs} epochs,
batch {batch}; an untrained tiny_resnet of width {width} with five layers pooled to 2 x 2.

| form | images through the network | CPU s | of which network | images, times fast | CPU s, times fast (rounds) |
|---|---:|---:|---:|---:|---:|
{rows}

- fast: one pass keeps the features of every layer, all heads of a layer train together. What `python -m evaluations` does.
- shared: one forward an epoch, 60 ordinary heads learn from it, scored once at the end. What newer code does already.
- per cell: one run per cell; in every epoch the network runs on the training part and then on the held-out part, as the
  authors' scripts have it. The last row leaves out the scoring before the last epoch.

Medians of the rounds ({rounds}) in one process, the forms in turn. **Extrapolated:** both rows per cell are 12 times the cost of
one cell of each layer a round ({sampled} of the 60 cells were run; `--rounds 12` runs them all). Per cell against shared:
{shared}, {shared_images:,.1f} times the images.

**Extrapolated to {long} epochs**, the length of most papers' probes, from the same figures (all but the one pass of the fast
form grows with the epochs): per cell costs {far:,.0f} times the CPU time of fast, shared {far_shared:,.1f} times; {far_images:,}
and {far_passes} times the images. Heads are most of what is left of the fast form, so the larger the network beside them, the
nearer these come to the ratios of the images (per cell stays below: its network stops at the layer).

Scores on the held-out folds, against the fast form:
{agreement}

Fast keeps one fixed view of an image. Probes with fresh crops in every epoch cannot use it; for them this project has the
shared form (`form: faithful`). Not run on a GPU.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe_grid", description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist", choices=("digits", "fashion_mnist"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", metavar="FILE", help="write what is printed there as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    bench = setting(args.dataset, args.images, args.epochs)
    rounds = []
    for number in range(args.rounds):
        rounds.append(measure(bench, number))
        print(f"round {number + 1}/{args.rounds}", file=sys.stderr, flush=True)
    words = [f"--{k} {getattr(args, k)}" for k in ("dataset", "images", "epochs", "rounds")]
    text = report(bench, rounds, " ".join(["python -m benchmarks.probe_grid", *words]))
    print(text, end="")
    if args.report:
        Path(args.report).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
