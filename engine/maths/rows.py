"""Rows of a big matrix, wherever they live, read block by block in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import dist


class Rows:
    """(N, D) rows of this rank: a tensor, an array, a memory map, a list of such shards laid end to end, or other Rows.

    index      optional (N,) positions in the source: a subset, or another order.
    transform  optional function of a block (b, D') giving (b, D): whitening, a linear head, ...
    device     where blocks are delivered; default: the source's own.
    """

    def __init__(
        self,
        source: Any,
        index: Any = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
    ):
        shards = list(source) if isinstance(source, list | tuple) else [source]
        if not shards or any(len(s.shape) != 2 for s in shards):
            raise ValueError(f"rows must be two-dimensional, not {[tuple(s.shape) for s in shards]}")
        self.shards = shards
        self.starts = np.cumsum([0, *(len(s) for s in shards)])
        self.index = (
            None if index is None else np.asarray(index.cpu() if hasattr(index, "cpu") else index, dtype=np.int64)
        )
        self.transform = transform
        first = shards[0]
        own = first.device if isinstance(first, (Tensor, Rows)) else "cpu"
        self.device: torch.device = torch.device(own if device is None else device)
        width = int(first.shape[1])
        if transform is not None:
            width = transform(torch.zeros(1, width, device=self.device)).shape[1]
        self.shape = (int(self.starts[-1]) if self.index is None else len(self.index), width)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, low: int, high: int) -> Tensor:
        """Rows low..high-1 as (b, D) float32 on the device."""
        if self.index is not None:
            return self.finish(self.gather(self.index[low:high]))
        parts = []
        for shard, start in zip(self.shards, self.starts, strict=False):
            a, b = max(low - start, 0), min(high - start, len(shard))
            if a < b:
                parts.append(_tensor(shard.read(a, b) if isinstance(shard, Rows) else shard[a:b]))
        if not parts:
            return self.finish(torch.zeros(0, int(self.shards[0].shape[1])))
        return self.finish(parts[0] if len(parts) == 1 else torch.cat(parts))

    def take(self, positions: Any) -> Tensor:
        """Rows at ``positions`` (m,), in that order."""
        positions = np.asarray(positions.cpu() if hasattr(positions, "cpu") else positions, dtype=np.int64)
        return self.finish(self.gather(positions if self.index is None else self.index[positions]))

    def gather(self, where: np.ndarray) -> Tensor:
        if len(self.shards) == 1 and isinstance(self.shards[0], Tensor):
            return self.shards[0][torch.from_numpy(where).to(self.shards[0].device)]
        out = torch.empty(len(where), int(self.shards[0].shape[1]))
        order = np.argsort(where, kind="stable")  # reading a memory map forwards is far quicker
        for shard, start in zip(self.shards, self.starts, strict=False):
            here = order[
                np.searchsorted(where, start, sorter=order) : np.searchsorted(where, start + len(shard), sorter=order)
            ]
            if len(here):
                at = where[here] - start
                got = shard.take(at) if isinstance(shard, Rows) else shard[at]
                out[torch.from_numpy(here)] = _tensor(got).float().cpu()
        return out

    def finish(self, block: Tensor) -> Tensor:
        block = block.to(self.device, torch.float32)
        return block if self.transform is None else self.transform(block)

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, block) for consecutive blocks of ``size`` rows; the same blocks however the source is sharded."""
        for low in range(0, len(self), size):
            yield low, self.read(low, min(low + size, len(self)))


def _tensor(block: Any) -> Tensor:
    if isinstance(block, Tensor):
        return block
    return torch.from_numpy(np.ascontiguousarray(block) if block.flags.writeable else np.array(block))


ON_DEVICE = (
    1 << 27
)  # cells of a block on an accelerator, 512 MB of float32: no cache to fit, and each block is launches


def block_rows(columns: int, in_cache: int, device: torch.device) -> int:
    """Rows of a block of a matrix with so many columns: ``in_cache`` cells on a CPU, as many as memory may take elsewhere; at least 16."""
    return max((in_cache if device.type == "cpu" else ON_DEVICE) // max(columns, 1), 16)


def sample(rows: Rows, n: int, generator: torch.Generator, world: dist.Processes = "dist") -> Tensor:
    """``n`` different rows of all ranks' rows, drawn at random; the same on every rank and for every number of ranks.

    The generator (on the CPU) must be in the same state on every rank.
    """
    held = dist.counts(len(rows), world)
    total = sum(held)
    if n > total:
        raise ValueError(
            f"{n} different rows wanted, only {total} there are: ask for fewer clusters or give more images"
        )
    wanted = _distinct(total, n, generator)
    return everywhere(rows, wanted, world)


MANY = 1 << 24  # rows from which on a permutation of all of them is not held to draw a few


def _distinct(total: int, n: int, generator: torch.Generator) -> Tensor:
    """(n,) different numbers below `total`, drawn at random, in random order."""
    if total < MANY or n > total // 4:
        return torch.randperm(total, generator=generator)[:n]
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < n:  # the first time that a number is drawn counts
        drawn = torch.cat([drawn, torch.randint(total, (n + 16,), generator=generator)])
        values, back = drawn.unique(return_inverse=True)
        first = torch.full((len(values),), len(drawn)).scatter_reduce(0, back, torch.arange(len(drawn)), "amin")
        drawn = drawn[first.sort().values]
    return drawn[:n]


def everywhere(rows: Rows, wanted: Tensor, world: dist.Processes = "dist") -> Tensor:
    """Rows ``wanted`` (n,) of the ranks' rows laid end to end, brought to every rank."""
    before = sum(dist.counts(len(rows), world)[: dist.rank(world)])
    mine = (wanted >= before) & (wanted < before + len(rows))
    out = torch.zeros(len(wanted), rows.shape[1], device=rows.device)
    out[mine.to(out.device)] = rows.take(wanted[mine] - before)
    return dist.sum_(out, world)
