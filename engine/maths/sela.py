"""Labels for a whole data set, every label equally often: SeLa's optimal transport.

Paper     https://arxiv.org/abs/1911.05371, eq. 5-7: max over Q of sum Q log P + entropy(Q) / lambda, where rows of Q (clusters) sum to 1/K and
          columns (images) to 1/N. Solution Q = diag(r) P^lambda diag(c); r and c are found in turn.
Differs   The authors' code works on P^lambda itself: a cluster whose entries all underflow (p < 1e-13 at lambda 25) gives
          infinities, then NaN, and stops the loop as if it had converged; nothing bounds the iterations. Here logarithms of r and c
          are carried, and the matrix of the sweeps is rebuilt from the logits, with every row scaled to sum 1, whenever r has moved
          far. No entry that matters underflows, a dead cluster receives its N / K images, and the numbers are otherwise theirs.
          Their two passes over float64 are one over float32 here, and over-relaxation saves most of the iterations at the same labels
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

BLOCK_CELLS = 1 << 18  # 1 MB of float32: both products with a block take 0.8 of two readings of the whole matrix
RUN = 64  # rows summed in the matrix's own precision before float64 takes over
STALL = 0.9  # an error that falls by less than a tenth between two looks, and is within rounding, will not fall further
REACH = 20.0  # rebuild the matrix when log r is further than this from where it was built
FARTHEST = 80.0  # log of the largest factor of a row: a normal float32 still
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
    keep        hold the n x K matrix in memory, so that the logits are read once (and again if r moves far); otherwise recompute it
                from them in every iteration (bounded memory, five times the time, and that of ``logits`` itself).
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
    error = previous = math.inf
    iteration, omega, stalled = 0, 1.0, False
    rounding = problem.total * 8 * torch.finfo(dtype).eps  # a change of every image's c in its last bits
    while True:
        column, gap = problem.sweep(log_r, omega)  # omega: relaxation, or 1 where that is unsafe
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
    """The matrix exp(lambda * log p + log r + log c), by blocks of rows, and what one iteration does with it.

    What is stored is exp(lambda * log p + log_r_ref + log_c_ref), its largest entry in a row 1; the rest of r and c are factors of
    columns (u) and rows (v) close to 1.
    """

    def __init__(self, rows: Rows, lam: float, dtype: torch.dtype, keep: bool, world: dist.Processes):
        self.rows, self.lam, self.dtype, self.world, self.lowest = rows, lam, dtype, world, LOWEST[dtype]
        self.total = sum(dist.counts(len(rows), world))
        clusters = rows.shape[1]
        if not self.total or not clusters:
            raise ValueError(f"sela_labels: nothing to label: {self.total} rows, {clusters} clusters")
        self.log_share = math.log(self.total / clusters)
        size = block_rows(clusters, BLOCK_CELLS, rows.device)
        self.size = size // RUN * RUN or size
        self.kept = torch.empty(len(rows), clusters, dtype=dtype, device=rows.device) if keep else None
        self.raw = False  # what is kept: the logits yet, instead of the matrix
        self.log_r_ref = torch.full((clusters,), torch.inf, dtype=torch.float64, device=rows.device)  # not built yet
        self.log_p0 = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)  # of each row's likeliest label
        self.log_c_ref, self.ratio = torch.empty_like(self.log_p0), torch.empty_like(self.log_p0)
        self.v = torch.ones_like(self.log_p0)  # c over exp(log_c_ref)

    def logits(self, low: int, block: Tensor) -> Tensor:
        """Logits minus their row's maximum, in the kept matrix if there is one."""
        block = block.to(self.dtype)
        target = torch.empty_like(block) if self.kept is None else self.kept[low : low + len(block)]
        return torch.sub(block, block.amax(1, keepdim=True), out=target)

    def first_r(self) -> Tensor:
        """log r after the first half step, in which every image still counts the same; c is that which makes the matrix P^lambda."""
        clusters = self.rows.shape[1]
        top = torch.full((clusters,), -torch.inf, dtype=torch.float64, device=self.rows.device)
        mass, scratch = torch.zeros_like(top), self.scratch()
        for low, block in self.rows.blocks(self.size):
            z, part, work = self.logits(low, block), slice(low, low + len(block)), scratch[: len(block)]
            self.log_p0[part] = -torch.clamp(z, min=self.lowest, out=work).exp_().sum(1).double().log()
            self.log_c_ref[part] = self.lam * self.log_p0[part]
            torch.add(self.log_c_ref[part, None].to(z), z, alpha=self.lam, out=work)
            higher = torch.maximum(top, work.amax(0).double())
            mass *= (top - higher).exp()
            mass += work.sub_(higher.to(z)).clamp_(min=self.lowest).exp_().sum(0).double()
            top = higher
        self.raw = self.kept is not None
        highest = dist.max_(
            top.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), self.world
        )  # NaN is not comparable: as inf it reaches every rank
        mass = dist.sum_(mass * (top - highest).nan_to_num(nan=-torch.inf).exp(), self.world)
        if not torch.isfinite(highest).all():
            raise Degenerate("sela_labels: logits are not finite")
        return self.log_share - mass.log() - highest

    def sweep(self, log_r: Tensor, omega: float) -> tuple[Tensor, float]:
        """Renew c. Returns (K,) column sums for the next r, and the sum of the relative changes of c."""
        u, blocks = self.at(log_r)
        found = torch.zeros_like(log_r)
        for low, block in blocks:
            part = slice(low, low + len(block))
            v, ratio = self.v[part], self.ratio[part]
            torch.mul(block @ u, v, out=ratio)  # c_old / c_new
            v *= ratio.pow(-omega)
            found += column_sums(v.to(self.dtype), block)
        both = torch.cat([found, (self.ratio - 1).abs_().sum().reshape(1)])
        dist.sum_(both, self.world)
        return both[:-1], float(both[-1])

    def at(self, log_r: Tensor) -> tuple[Tensor, Iterator[tuple[int, Tensor]]]:
        """u (K,), and the blocks of rows (first row, matrix) that it multiplies: built anew where r has moved far."""
        built = self.kept is not None and float((log_r - self.log_r_ref).abs().max()) <= REACH
        if not built:
            self.log_r_ref = log_r.clone()
        return (log_r - self.log_r_ref).exp().to(self.dtype), self.stored() if built else self.build()

    def stored(self) -> Iterator[tuple[int, Tensor]]:
        assert self.kept is not None
        return ((low, self.kept[low : low + self.size]) for low in range(0, len(self.kept), self.size))

    def build(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of the matrix at log_r_ref; c stays what it is."""
        raw, self.raw = self.raw, False
        middle = self.log_r_ref.median()  # a common factor; in float32 it would cost every entry its last digits
        log_r = (self.log_r_ref - middle).to(self.dtype)
        for low, block in self.stored() if raw else self.rows.blocks(self.size):
            kernel = block if raw else self.logits(low, block)
            torch.add(log_r, kernel, alpha=self.lam, out=kernel)
            top = kernel.amax(1, keepdim=True)
            self.exp_(kernel.sub_(top))
            part, ref = slice(low, low + len(block)), -middle - top.squeeze(1).double()
            moved = self.log_c_ref[part] + self.v[part].log() - ref
            self.v[part] = moved.clamp_(-FARTHEST, FARTHEST).exp_()
            self.log_c_ref[part] = ref
            yield low, kernel

    def scratch(self) -> Tensor:
        return torch.empty(
            min(self.size, len(self.rows)), self.rows.shape[1], dtype=self.dtype, device=self.rows.device
        )

    def exp_(self, z: Tensor) -> Tensor:
        """exp in place, 0 where it would fall below exp(lowest): results near the least number are ten times slower than others."""
        return F.threshold(z.clamp_(min=self.lowest - 1).exp_(), math.exp(self.lowest), 0.0, inplace=True)

    def labels(self, log_r: Tensor) -> tuple[Tensor, float]:
        """The largest entry of each row, and the mean over all images of its -log p, which is read off the matrix too."""
        labels = torch.empty(len(self.rows), dtype=torch.int64)
        cost = torch.zeros(1, dtype=torch.float64, device=self.rows.device)
        (u, blocks), scratch = self.at(log_r), self.scratch()
        for low, block in blocks:
            part = slice(low, low + len(block))
            scaled = torch.mul(block, u, out=scratch[: len(block)])
            label = scaled.max(1).indices  # twice as fast as argmax
            labels[part] = label
            entry = block.gather(1, label[:, None]).squeeze(1).double().log()
            cost -= ((entry - self.log_r_ref[label] - self.log_c_ref[part]) / self.lam + self.log_p0[part]).sum()
        return labels, float(dist.sum_(cost, self.world)) / self.total


def column_sums(v: Tensor, block: Tensor) -> Tensor:
    """(K,) float64 sums over rows of v (b,) times block (b, K): products of ``RUN`` rows in their own precision, runs in float64.

    One float32 sum over thousands of rows is off by more than the authors' stopping rule allows (100,000 images x 100 labels: the
    error stays at 0.25; in runs of 64 rows it falls to 0.01 after the iterations that float64 needs).
    """
    whole = len(v) // RUN * RUN
    runs = torch.bmm(v[:whole].view(-1, 1, RUN), block[:whole].view(-1, RUN, block.shape[1]))
    total = runs.sum((0, 1), dtype=torch.float64)
    return total if whole == len(v) else total.add_(v[whole:] @ block[whole:])


def plan(logits: Tensor, log_r: Tensor, lam: float, total: int) -> Tensor:
    """(b, K) float64 rows of the transport plan Q for ``b`` of ``total`` images; every row sums to 1 / total."""
    return (lam * logits.double().log_softmax(1) + log_r).softmax(1) / total
