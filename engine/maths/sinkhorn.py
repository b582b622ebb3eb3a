"""Balanced soft assignments of one batch: SwAV's Sinkhorn-Knopp.

Paper     https://arxiv.org/abs/2006.09882, eq. 3-5
Differs   The authors' code normalises the whole B x K matrix six times. Here two vectors are scaled instead and the matrix is read
          once per iteration, block by block while it lies in the cache: the same numbers in less time, benchmarks/RESULTS.md says how much.
          Their code overflows when score / epsilon exceeds 88; here the largest entry of every row and every column is 1 before
          the first iteration, which the iterations cancel exactly. A prototype far from every sample therefore still gets its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dist
from ..errors import Degenerate
from .rows import block_rows

BLOCK_CELLS = 1 << 17  # cells of a block: half a megabyte of float32, so that its second reading hits the cache


class Workspace:
    """Memory that calls of ``sinkhorn`` on a CPU share: fresh pages for each call cost as much as an iteration or two.

    A call's result lies in it, and the next call overwrites it.
    """

    def __init__(self) -> None:
        self._cells = torch.empty(0)

    def matrix(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(rows, columns) float32 of any values. An accelerator's allocator keeps memory itself: fresh there."""
        if device.type != "cpu":
            return torch.empty(rows, columns, device=device)
        if self._cells.numel() < rows * columns:
            self._cells = torch.empty(rows * columns)
        return self._cells[: rows * columns].view(rows, columns)


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    hard: bool = False,
    last: int | None = None,
    workspace: Workspace | None = None,
    world: dist.Processes = "dist",
) -> Tensor:
    """Assignments (B, K) float32 whose rows sum to 1 and whose columns are used about equally often.

    scores      (B, K) similarity of this rank's samples with the prototypes, any float type; for SwAV cosines in [-1, 1].
    epsilon     > 0; smaller is sharper.
    iterations  >= 1; each normalises prototypes over the samples of all ranks, then each sample. The last step is a sample's.
    hard        one-hot rows at the largest soft assignment.
    last        0 to B: only the assignments of so many last rows are returned (and computed); None: of all.
    workspace   memory to compute in, which the result is a part of (unless ``hard``); None: fresh memory.
    world       see engine.dist. Ranks may hold different numbers of rows.
    Raises ValueError for a wrong argument, Degenerate for scores that are not finite; on an accelerator, which nobody waits for,
    the assignments are then NaN.
    """
    if epsilon <= 0:
        raise ValueError(f"sinkhorn: epsilon must be positive, not {epsilon}")
    if iterations < 1:
        raise ValueError(f"sinkhorn: iterations must be at least 1, not {iterations}")
    if scores.ndim != 2:
        raise ValueError(f"sinkhorn: scores must be (samples, prototypes), not {tuple(scores.shape)}")
    if last is not None and not 0 <= last <= len(scores):
        raise ValueError(f"sinkhorn: last must be 0 to {len(scores)}, the number of rows, not {last}")
    kernel = (workspace or Workspace()).matrix(len(scores), scores.shape[1], scores.device)
    unused = 0 if last is None else len(scores) - last
    per_block = block_rows(scores.shape[1], BLOCK_CELLS, scores.device)
    parts = kernel.split(per_block)
    with torch.autocast(scores.device.type, enabled=False):
        masses, columns = _centre_(parts, scores.detach().split(per_block), epsilon, world)
        total = _sum(
            mass @ part.sub_(columns).mul_(1 / epsilon).exp_() for part, mass in zip(parts, masses, strict=True)
        )
        for _ in range(iterations - 1):
            share = _even(dist.sum_(total, world))  # prototypes: equal mass each
            total = _sum(_inverse(part @ share) @ part for part in parts)  # samples: mass 1 each
        share = _even(dist.sum_(total, world))
        for part in parts[unused // per_block :]:
            part *= share
            part *= _inverse(part.sum(1, keepdim=True))
        found = kernel[unused:]
        return F.one_hot(found.argmax(1), found.shape[1]).to(found) if hard else found


def _centre_(
    parts: Sequence[Tensor], blocks: Sequence[Tensor], epsilon: float, world: dist.Processes
) -> tuple[list[Tensor], Tensor]:
    """Write blocks minus their row maxima into ``parts``. Returns each sample's starting mass and the (K,) column maxima left."""
    rows = []
    found = torch.full((parts[0].shape[1] + 1,), -torch.inf, device=parts[0].device)
    for part, block in zip(parts, blocks, strict=True):
        rows.append(block.amax(1).float())
        torch.sub(block, rows[-1][:, None], out=part)
        if len(part):
            found = torch.maximum(found, torch.cat([part.amax(0), rows[-1].max().reshape(1)]))
    dist.max_(found.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), world)
    if found.device.type != "cpu":
        found += (
            found - found
        ).sum()  # NaN if one is not finite: the assignments and the loss too, which the host reads anyway
    elif ~found.isfinite().all() & (found[-1] > -torch.inf):  # without a row anywhere, all of them are -inf
        raise Degenerate("sinkhorn: scores are not finite")
    # exp(-80) is the least mass: still a normal float32
    return [((row_max - found[-1]) / epsilon).clamp_(min=-80).exp_() for row_max in rows], found[:-1]


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total += term
    return total


def _even(total: Tensor) -> Tensor:
    share = _inverse(total)
    return (
        share / share.mean()
    )  # a common factor cancels in the next step; without this it would grow from step to step


def _inverse(x: Tensor) -> Tensor:
    return x.clamp_(min=torch.finfo(x.dtype).tiny).reciprocal_()
