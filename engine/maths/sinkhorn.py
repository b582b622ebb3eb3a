"""Balanced soft assignments of one batch: SwAV's Sinkhorn-Knopp.

Paper     https://arxiv.org/abs/2006.09882, eq. 3-5
Differs   The authors' code normalises the whole B x K matrix six times. Here two vectors are scaled instead and the matrix is read
          once per iteration, block by block while it lies in the cache: the same numbers at half the cost.
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


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, *, hard: bool = False, world: dist.Processes = "dist"
) -> Tensor:
    """Assignments (B, K) float32 whose rows sum to 1 and whose columns are used about equally often.

    scores      (B, K) similarity of this rank's samples with the prototypes, any float type; for SwAV cosines in [-1, 1].
    epsilon     > 0; smaller is sharper.
    iterations  >= 1; each normalises prototypes over the samples of all ranks, then each sample. The last step is a sample's.
    hard        one-hot rows at the largest soft assignment.
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
    kernel = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
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
        for part in parts:
            part *= share
            part *= _inverse(part.sum(1, keepdim=True))
        return F.one_hot(kernel.argmax(1), kernel.shape[1]).to(kernel) if hard else kernel


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
