"""k-means, Euclidean and spherical, block by block and over processes.

One pass assigns every row to its nearest centroid (E), then moves each centroid to the mean of its rows (M); a last E ends it.
Sums are kept in float64 and shared between processes, so any sharding of the rows gives the same centroids to rounding.
Used by   DeepCluster (Euclidean), DeeperCluster (Euclidean, two levels), DeepCluster-v2 (spherical), and to score features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dist
from ..errors import Degenerate
from .flat import exchanged, flat_index
from .rows import ON_DEVICE, Rows, everywhere, sample

BLOCK_CELLS = 1 << 21  # cells of one block of similarities: 8 MB
SPLIT = 1e-4  # how far a split moves both halves, relative to their centroid's mean coordinate

FAR = 10.0  # rows whose mean is this many times longer than their spread are centred first
PILOT = 1024  # rows from which mean and spread are judged

Nearest = Callable[
    [Tensor], Callable[[Tensor], Tensor]
]  # (K, D) centroids -> a function of (b, D) blocks giving (b,) int64


@dataclass(frozen=True)
class Frame:
    """Coordinates in which distances do not cancel: ``(x - shift) / scale``.

    In float32, |x|^2 - 2 x c + |c|^2 loses what is 1e-7 of |x|^2. Rows far from the origin (nearly collapsed features) are
    therefore centred, and rows of any scale (1e-25 to 1e20) are brought near 1 by a power of two, which is exact.
    """

    shift: Tensor | None  # (D,) float32; None: the rows are near the origin
    scale: float  # a power of two

    @classmethod
    def of(cls, pilot: Tensor) -> Frame:
        """Judged from ``pilot`` (m, D), some of the rows."""
        pilot = pilot.double()
        mean = pilot.mean(0)
        spread, distance = (pilot - mean).square().sum(1).mean().sqrt(), mean.norm()
        far = bool(distance > FAR * spread) and bool(spread > 0)
        size = float(spread if far else (spread.square() + distance.square()).sqrt())
        return cls(mean.float() if far else None, 2.0 ** round(math.log2(size)) if 0 < size < math.inf else 1.0)

    def enter(self, x: Tensor) -> Tensor:
        x = x if self.shift is None else x - self.shift.to(x)
        return x if self.scale == 1 else x / self.scale

    def leave(self, x: Tensor) -> Tensor:
        x = x if self.scale == 1 else x * self.scale
        return x if self.shift is None else x + self.shift.to(x)


@dataclass(frozen=True)
class KMeans:
    """What k-means found. ``labels`` are of this rank's rows; everything else is the same on every rank."""

    centroids: Tensor  # (K, D) float32
    labels: Tensor  # (n,) int64, on the CPU
    sizes: Tensor  # (K,) int64: rows per cluster over all ranks, on the CPU
    objective: float  # sum over all rows of the squared distance to their centroid
    history: tuple[float, ...]  # the objective of every pass

    @property
    def empty(self) -> int:
        return int((self.sizes == 0).sum())


@torch.no_grad()
def kmeans(
    data: Any,
    start: Tensor | int,
    *,
    iterations: int = 10,
    spherical: bool = False,
    empty: str = "keep",
    init: str = "random",
    restarts: int = 1,
    generator: torch.Generator | None = None,
    backend: str = "torch",
    world: dist.Processes = "dist",
) -> KMeans:
    """The best of ``restarts`` runs of ``iterations`` M steps each, every run ended by an E step.

    data       (n, D) rows of this rank: whatever Rows takes, computed where Rows delivers them. Finite. For spherical k-means of unit
               length.
    start      (K, D) first centroids, or K, and then ``init`` draws them: "random" (different rows) or "kmeans++".
    iterations M steps at most; a run stops earlier when no label changes any more, which changes nothing.
    spherical  nearest by dot product, centroids scaled to unit length after each M (and not before the first E).
    empty      "keep": a cluster without rows keeps its centroid (DeepCluster-v2). "split": it takes half of the rows of a
               cluster drawn in proportion to its size, and both start a small step apart; no cluster ends empty (DeeperCluster).
    generator  on the CPU, in the same state on every rank; default: seed 0. Draws starts and splits.
    backend    "torch", or "faiss" for the E step (the same labels but for ties in the last bits; on the rows' GPU if faiss has it).
    """
    rows = Rows(data)
    if empty not in ("keep", "split"):
        raise ValueError(f'kmeans: empty must be "keep" or "split", not {empty!r}')
    if init not in STARTS:
        raise ValueError(f"kmeans: init must be one of {', '.join(STARTS)}, not {init!r}")
    if iterations < 0 or restarts < 1:
        raise ValueError(f"kmeans: iterations must be >= 0 and restarts >= 1, not {iterations} and {restarts}")
    start = start if isinstance(start, int) else torch.as_tensor(start)
    clusters = start if isinstance(start, int) else len(start)
    total = sum(dist.counts(len(rows), world))
    if clusters < 1 or clusters > total:
        raise ValueError(f"kmeans: {clusters} clusters of {total} rows: ask for at least 1 and at most as many as rows")
    generator = generator or torch.Generator().manual_seed(0)
    pilot = everywhere(rows, torch.arange(PILOT) * total // PILOT if total > PILOT else torch.arange(total), world)
    frame = Frame.of(pilot)
    if spherical:  # rows of unit length stay as they are: what all dot products share is left out of them
        nearest, frame = NEAREST[backend](spherical, frame.shift), Frame(None, 1.0)
    else:
        nearest, rows = NEAREST[backend](spherical, None), Rows(rows, transform=frame.enter)
    best = None
    for _ in range(restarts if isinstance(start, int) else 1):
        first = (
            STARTS[init](rows, start, generator, spherical, world)
            if isinstance(start, int)
            else frame.enter(start.to(rows.device))
        )
        found = _run(
            rows, first.to(rows.device, torch.float32), iterations, spherical, empty, generator, nearest, world
        )
        if best is None or found.objective < best.objective:
            best = found
    assert best is not None
    square = frame.scale**2
    history = tuple(value * square for value in best.history)
    return KMeans(frame.leave(best.centroids), best.labels, best.sizes, history[-1], history)


def _run(
    rows: Rows,
    centroids: Tensor,
    iterations: int,
    spherical: bool,
    empty: str,
    generator: torch.Generator,
    nearest: Nearest,
    world: dist.Processes,
) -> KMeans:
    labels = torch.full((len(rows),), -1, dtype=torch.int64)
    history: list[float] = []
    for step in range(iterations + 1):
        before = labels
        labels, sums, sizes, objective = _pass(rows, centroids, nearest, world, sums=step < iterations)
        history.append(objective)
        repair = empty == "split" and bool((sizes == 0).any())
        changed = dist.sum_((labels != before).sum().reshape(1), world)
        if step == iterations or (not changed and not repair):
            break
        means = (sums / sizes.clamp(min=1).to(sums)[:, None]).float()
        centroids = torch.where(sizes.to(means)[:, None] > 0, means, centroids)
        if repair:
            _, centroids, sizes = split(labels, centroids, sizes, generator, world)
        if spherical:
            centroids = F.normalize(centroids, dim=1)
    if repair:
        labels, centroids, sizes = split(labels, centroids, sizes, generator, world)
        centroids = F.normalize(centroids, dim=1) if spherical else centroids
    return KMeans(centroids, labels, sizes, history[-1], tuple(history))


def _pass(
    rows: Rows, centroids: Tensor, nearest: Nearest, world: dist.Processes, sums: bool
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Labels of this rank, and over all ranks: sums (K, D) float64 of the members, sizes (K,), objective."""
    clusters = len(centroids)
    labels = torch.empty(len(rows), dtype=torch.int64)
    total = torch.zeros(centroids.shape if sums else (0, 0), dtype=torch.float64, device=rows.device)
    objective = torch.zeros(1, dtype=torch.float64, device=rows.device)
    find = nearest(centroids)
    for low, block in rows.blocks(block_size(clusters, rows)):
        label = find(block)
        labels[low : low + len(block)] = label
        objective += (block - centroids[label]).square().sum(1).double().sum()
        if sums:
            total.index_add_(0, label, block.double())
    objective = dist.sum_(objective, world)
    if not torch.isfinite(objective):
        raise Degenerate(f"kmeans: rows or centroids are not finite (their distances sum to {float(objective)})")
    sizes = dist.sum_(torch.bincount(labels, minlength=clusters), world)
    return labels, dist.sum_(total, world), sizes, float(objective)


def block_size(clusters: int, rows: Rows) -> int:
    """Rows read at once. On a CPU a function of K alone, so that any form of the same rows is cut at the same places."""
    if rows.device.type == "cpu":
        return min(max(BLOCK_CELLS // max(clusters, 1), 256), 16384)
    return max(ON_DEVICE // max(clusters, rows.shape[1]), 256)


def assign(data: Any, centroids: Tensor, *, spherical: bool = False, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """(n,) int64 nearest centroid and (n,) float32 squared distance of each row of this rank, on the CPU."""
    frame, rows = Frame.of(centroids), Rows(data)
    nearest = NEAREST[backend](spherical, frame.shift if spherical else None)
    labels, distances = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows))
    centres = centroids.to(rows.device, torch.float32)
    find = nearest(centres if spherical else frame.enter(centres))
    for low, block in rows.blocks(block_size(len(centroids), rows)):
        label = find(block if spherical else frame.enter(block))
        labels[low : low + len(block)] = label
        distances[low : low + len(block)] = ((block - centres[label]) / frame.scale).square().sum(
            1
        ).double() * frame.scale**2
    return labels, distances


def tangent(centroids: Tensor, shift: Tensor) -> Tensor:
    """Unit centroids (K, D) minus what all of them share, scaled to unit length in float64 first: the last bits of float32
    lengths exceed the differences between nearly equal centroids."""
    return (F.normalize(centroids.double(), dim=1) - shift.to(centroids).double()).to(centroids)


def _nearest_torch(spherical: bool, shift: Tensor | None) -> Nearest:
    """``shift`` (D,): taken from the centroids of the spherical form; it adds the same to all dot products of a row."""

    def nearest(centroids: Tensor) -> Callable[[Tensor], Tensor]:
        if spherical:
            across = (centroids if shift is None else tangent(centroids, shift)).T
            return lambda block: (block @ across).argmax(1)
        half, across = centroids.square().sum(1) / 2, centroids.T
        return lambda block: torch.addmm(half, block, across, beta=-1).argmax(1)

    return nearest


def _nearest_faiss(spherical: bool, shift: Tensor | None) -> Nearest:
    def nearest(centroids: Tensor) -> Callable[[Tensor], Tensor]:
        centroids = centroids if shift is None else tangent(centroids, shift)
        index = flat_index(centroids.shape[1], centroids.device, products=spherical)
        index.add(exchanged(centroids))
        return lambda block: torch.as_tensor(index.search(exchanged(block), 1)[1]).view(-1).to(block.device)

    return nearest


NEAREST = {"torch": _nearest_torch, "faiss": _nearest_faiss}


def split(
    labels: Tensor, centroids: Tensor, sizes: Tensor, generator: torch.Generator, world: dist.Processes = "dist"
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each empty cluster half of the rows of another, drawn in proportion to what it can spare. Returns all three, renewed.

    A cluster drawn t times is cut in t + 1 equal parts (row by row in turn), so that sizes differ by at most one; its centroid
    and those of its parts lie a relative step of 1e-4 apart in random directions. No cluster is empty afterwards.
    """
    labels, centroids, sizes = labels.clone(), centroids.clone(), sizes.clone()
    vacant = torch.nonzero(sizes == 0).flatten().tolist()
    spare = (sizes - 1).clamp(min=0).double()
    parts: dict[int, list[int]] = {}
    for cluster in vacant:
        donor = int(torch.multinomial(spare, 1, generator=generator))
        spare[donor] -= 1
        parts.setdefault(donor, [donor]).append(cluster)
        step = SPLIT * centroids[donor].abs().mean().clamp(min=SPLIT)
        step = step * torch.randn(centroids.shape[1], generator=generator).to(centroids)
        centroids[cluster] = centroids[donor] + step
        centroids[donor] -= step
    donors = torch.tensor(sorted(parts))
    order = torch.argsort(labels, stable=True)
    begin = torch.searchsorted(labels[order], torch.stack([donors, donors + 1]))
    held = torch.zeros(dist.world_size(world), len(donors), dtype=torch.int64)
    held[dist.rank(world)] = begin[1] - begin[0]
    before = dist.sum_(held, world)[: dist.rank(world)].sum(0)
    for i, donor in enumerate(donors.tolist()):
        members = order[begin[0, i] : begin[1, i]]
        shares = torch.tensor(parts[donor])
        turn = (torch.arange(len(members)) + before[i]) % len(shares)
        labels[members] = shares[turn]
        sizes[shares] = (sizes[donor] - torch.arange(len(shares)) + len(shares) - 1) // len(shares)
    return labels, centroids, sizes


def _random(rows: Rows, clusters: int, generator: torch.Generator, spherical: bool, world: dist.Processes) -> Tensor:
    return sample(rows, clusters, generator, world)


def _plusplus(rows: Rows, clusters: int, generator: torch.Generator, spherical: bool, world: dist.Processes) -> Tensor:
    """k-means++ (Arthur, Vassilvitskii 2007) with 2 + log K candidates each time, on at most 100 K (and 20,000) rows."""
    total = sum(dist.counts(len(rows), world))
    points = sample(rows, min(total, max(100 * clusters, 20000)), generator, world)
    if spherical:
        points = F.normalize(points, dim=1)
    seen = points
    if (shift := Frame.of(points).shift) is not None:
        points = points - shift  # distances of nearly equal points cancel otherwise
    tries = 2 + int(torch.tensor(float(clusters)).log())
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = _squared(points, points[chosen[0]][None]).squeeze(0)
    for _ in range(clusters - 1):
        weights = distance.double().cpu() if bool(distance.sum() > 0) else torch.ones(len(points), dtype=torch.float64)
        edges = weights.cumsum(0)
        draws = torch.rand(tries, generator=generator, dtype=torch.float64) * edges[-1]
        candidates = torch.searchsorted(edges, draws, right=True).clamp(max=len(points) - 1)
        left = torch.minimum(distance, _squared(points, points[candidates.to(points.device)]))  # (tries, m)
        winner = int(left.sum(1).argmin())
        chosen.append(int(candidates[winner]))
        distance = left[winner]
    return seen[chosen]


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    """(c, m) squared distances."""
    products = centres @ points.T
    return (centres.square().sum(1)[:, None] + points.square().sum(1) - 2 * products).clamp_(min=0)


STARTS: dict[str, Callable[..., Tensor]] = {"random": _random, "kmeans++": _plusplus}
