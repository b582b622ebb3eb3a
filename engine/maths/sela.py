"""Labels for a whole data set, every label equally often: SeLa's optimal transport.

Paper     https://arxiv.org/abs/1911.05371, eq. 5-7: max over Q of sum Q log P + entropy(Q) / lambda, where rows of Q (clusters) sum to 1/K and
          columns (images) to 1/N. Solution Q = diag(r) P^lambda diag(c); r and c are found in turn.
Differs   The authors' code works on P^lambda itself: a cluster whose entries all underflow (p < 1e-13 at lambda 25) gives
          infinities, then NaN, and stops the loop as if it had converged; nothing bounds the iterations. Here logarithms of r and c
          are carried, and the matrix of the sweeps is rebuilt from the logits, with every row scaled to sum 1, whenever r has moved
          far. No entry that matters underflows, a dead cluster receives its N / K images, and the numbers are otherwise theirs.
          Their two passes per iteration are one here, and over-relaxation saves most of the iterations at the same labels
          (https://arxiv.org/abs/1711.01851).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dist
from ..errors import Degenerate
from .rows import Rows, block_rows

BLOCK_CELLS = 1 << 18  # 1 MB of float32: the second reading of a block hits the cache
RUN = 64  # rows summed in the matrix's own precision before float64 takes over
STALL = 0.9  # an error that falls by less than a tenth between two looks, and is within rounding, will not fall further
REACH = 20.0  # rebuild the matrix when log r is further than this from where it was built
LOWEST = {
    torch.float32: -69.0,
    torch.float64: -690.0,
}  # log of the least entry kept: e^20 times a smaller one is nothing


@dataclass(frozen=True)
class SelfLabels:
    """``labels`` are of this rank's rows; everything else is the same on every rank."""

    labels: Tensor  # (n,) int64, on the CPU
    sizes: Tensor  # (K,) int64: images per label over all ranks
    log_r: Tensor  # (K,) float64: log r up to a constant; the next labelling may start from it
    iterations: int
    error: float  # sum over images of |c_old / c_new - 1| when last measured
    converged: bool
    cost: float  # mean over images of -log p(label)


@torch.no_grad()
def sela_labels(
    logits: Any,
    lam: float = 25.0,
    *,
    tolerance: float = 0.1,
    max_iterations: int = 2000,
    check_every: int = 10,
    relaxation: float = 1.0,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    keep: bool = True,
    world: dist.Processes = "dist",
) -> SelfLabels:
    """One label per row, all labels (nearly) equally often, at the least cost -log p.

    logits      (n, K) this rank's outputs before the softmax: whatever Rows takes (a memory map, features with a head as transform).
    lam         lambda > 0; larger is closer to exactly equal numbers, and slower.
    tolerance   stop when ``error``, a SUM over images measured every ``check_every`` iterations, is at most this (0.1; CIFAR code 0.01),
                or when it is within rounding of ``dtype`` (8 eps for each image) and has stopped falling.
    relaxation  1 is the authors' iteration; 1.6 to 1.8 needs far fewer of them. While the error grows, 1 is used.
    start       (K,) log r of an earlier labelling.
    dtype       of the stored matrix and its products; float64 follows the authors' numbers to 1e-6, float32 gives the same labels.
    keep        hold the n x K matrix in memory; otherwise recompute it from the logits in every iteration (bounded memory, slower).
    Raises ValueError for wrong arguments, Degenerate for logits that are not finite. Not converging is no error: see ``converged``.
    """
    if lam <= 0 or tolerance <= 0 or not 1 <= relaxation < 2 or max_iterations < 1:
        raise ValueError(
            "sela_labels: lambda and tolerance must be positive, relaxation in [1, 2) and max_iterations at least 1, "
            f"not {lam}, {tolerance}, {relaxation} and {max_iterations}"
        )
    problem = _Problem(Rows(logits), lam, dtype, keep, world)
    first = problem.first_r()
    log_r = first if start is None else start.to(first).clone()
    log_c = problem.log_c0.clone()
    error = previous = math.inf
    iteration, omega, stalled = 0, 1.0, False
    rounding = problem.total * 8 * torch.finfo(dtype).eps  # a change of every image's c in its last bits
    while True:
        column, gap = problem.sweep(log_r, log_c, omega)  # omega: relaxation, or 1 where that is unsafe
        if iteration % check_every == 0:
            error = gap
            stalled = STALL * previous < error <= rounding
            omega = 1.0 if error > previous else relaxation  # growing: plain steps until the next look
            previous = error
        iteration += 1
        if error <= tolerance or stalled or iteration == max_iterations:
            break
        log_r += omega * (problem.log_r_ref + problem.log_share - column.clamp(min=1e-300).log() - log_r)
    labels, cost = problem.labels(log_r)
    sizes = dist.sum_(torch.bincount(labels, minlength=problem.rows.shape[1]), world)
    return SelfLabels(labels, sizes, log_r, iteration, error, error <= tolerance or stalled, cost)


class _Problem:
    """The matrix exp(lambda * log p + log r + log c), by blocks of rows, and what one iteration does with it."""

    def __init__(self, rows: Rows, lam: float, dtype: torch.dtype, keep: bool, world: dist.Processes):
        self.rows, self.lam, self.dtype, self.world, self.lowest = rows, lam, dtype, world, LOWEST[dtype]
        self.total = sum(dist.counts(len(rows), world))
        clusters = rows.shape[1]
        if not self.total or not clusters:
            raise ValueError(f"sela_labels: nothing to label: {self.total} rows, {clusters} clusters")
        self.log_share = math.log(self.total / clusters)
        self.size = block_rows(clusters, BLOCK_CELLS, rows.device)
        self.kept = torch.empty(len(rows), clusters, dtype=dtype, device=rows.device) if keep else None
        self.log_r_ref = torch.full((clusters,), torch.inf, dtype=torch.float64, device=rows.device)  # not built yet
        self.log_c_ref = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        self.log_c0 = torch.empty_like(self.log_c_ref)  # makes the first matrix P^lambda

    def logits(self, block: Tensor) -> Tensor:
        """lambda times (logits minus their row's maximum)."""
        block = block.to(self.dtype)
        return (block - block.amax(1, keepdim=True)) * self.lam

    def first_r(self) -> Tensor:
        """log r after the first half step, in which every image still counts the same; also fills log_c0."""
        clusters = self.rows.shape[1]
        top = torch.full((clusters,), -torch.inf, dtype=torch.float64, device=self.rows.device)
        mass = torch.zeros_like(top)
        for low, block in self.rows.blocks(self.size):
            z = self.logits(block)
            log_c = -self.lam * self.exp_(z / self.lam).sum(1).double().log()
            self.log_c0[low : low + len(block)] = log_c
            z = z + log_c[:, None].to(z)
            higher = torch.maximum(top, z.amax(0).double())
            mass = mass * (top - higher).exp() + self.exp_(z - higher.to(z)).sum(0).double()
            top = higher
        highest = dist.max_(
            top.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), self.world
        )  # NaN is not comparable: as inf it reaches every rank
        mass = dist.sum_(mass * (top - highest).nan_to_num(nan=-torch.inf).exp(), self.world)
        if not torch.isfinite(highest).all():
            raise Degenerate("sela_labels: logits are not finite")
        return self.log_share - mass.log() - highest

    def sweep(self, log_r: Tensor, log_c: Tensor, omega: float) -> tuple[Tensor, float]:
        """Renew c (in place). Returns (K,) column sums for the next r, and the sum of the relative changes of c."""
        rebuild = self.kept is None or float((log_r - self.log_r_ref).abs().max()) > REACH
        if rebuild:
            self.log_r_ref = log_r.clone()
        u = (log_r - self.log_r_ref).exp().to(self.dtype)
        found = torch.zeros(len(log_r) + 1, dtype=torch.float64, device=self.rows.device)
        blocks = self.rows.blocks(self.size) if rebuild else self.stored()
        for low, block in blocks:
            part = slice(low, low + len(block))
            if rebuild:
                block, self.log_c_ref[part] = self.build(low, block)
            plain = self.log_c_ref[part] - (block @ u).double().log()
            change = plain - log_c[part]
            found[-1] += (-change).expm1().abs().sum()
            log_c[part] += omega * change
            v = (log_c[part] - self.log_c_ref[part]).exp().to(self.dtype)
            found[:-1] += column_sums(v, block)
        dist.sum_(found, self.world)
        return found[:-1], float(found[-1])

    def stored(self) -> Iterator[tuple[int, Tensor]]:
        assert self.kept is not None
        return ((low, self.kept[low : low + self.size]) for low in range(0, len(self.kept), self.size))

    def build(self, low: int, block: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the matrix at log_r_ref, scaled to sum 1, and the log c that scales them so."""
        kernel = self.logits(block).add_(self.log_r_ref.to(self.dtype))
        top = kernel.amax(1, keepdim=True)
        kernel = self.exp_(kernel.sub_(top))
        total = kernel.sum(1, keepdim=True)
        kernel.div_(total)
        if self.kept is not None:
            kernel = self.kept[low : low + len(block)].copy_(kernel)
        return kernel, -(top.double() + total.double().log()).squeeze(1)

    def exp_(self, z: Tensor) -> Tensor:
        """exp in place, 0 where it would fall below exp(lowest): results near the least number are ten times slower than others."""
        return F.threshold(z.clamp_(min=self.lowest - 1).exp_(), math.exp(self.lowest), 0.0, inplace=True)

    def labels(self, log_r: Tensor) -> tuple[Tensor, float]:
        labels = torch.empty(len(self.rows), dtype=torch.int64)
        cost = torch.zeros(1, dtype=torch.float64, device=self.rows.device)
        for low, block in self.rows.blocks(self.size):
            z = self.logits(block)
            label = (z + log_r.to(z)).argmax(1)
            labels[low : low + len(block)] = label
            z /= self.lam
            cost += (self.exp_(z.clone()).sum(1).log() - z.gather(1, label[:, None]).squeeze(1)).double().sum()
        return labels, float(dist.sum_(cost, self.world)) / self.total


def column_sums(v: Tensor, block: Tensor) -> Tensor:
    """(K,) float64 sums over rows of v (b,) times block (b, K): products of ``RUN`` rows in their own precision, runs in float64.

    One float32 sum over thousands of rows is off by more than the authors' stopping rule allows (100,000 images x 100 labels: the
    error stays at 0.25; in runs of 64 rows it falls to 0.01 after the iterations that float64 needs).
    """
    whole = len(v) // RUN * RUN
    runs = torch.bmm(v[:whole].view(-1, 1, RUN), block[:whole].view(-1, RUN, block.shape[1]))
    return runs.double().sum((0, 1)) + v[whole:].double() @ block[whole:].double()


def plan(logits: Tensor, log_r: Tensor, lam: float, total: int) -> Tensor:
    """(b, K) float64 rows of the transport plan Q for ``b`` of ``total`` images; every row sums to 1 / total."""
    return (lam * logits.double().log_softmax(1) + log_r).softmax(1) / total
