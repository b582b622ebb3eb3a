"""Sums and maxima over processes, for functions whose rows are spread over ranks.

Every function of this package takes ``world``: ``"dist"`` (the default: the initialised process group, or this process alone
when there is none), ``"local"`` (this process alone, whatever is initialised), or a ``torch.distributed`` process group.
Row n of the whole problem is row n of the ranks' rows laid end to end in rank order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

World = Any  # "dist", "local" or a torch.distributed.ProcessGroup


def is_local(world: World) -> bool:
    if isinstance(world, str) and world not in ("dist", "local"):
        raise ValueError(f'world must be "dist", "local" or a process group, not {world!r}')
    return (
        world == "local"
        or not (dist.is_available() and dist.is_initialized())
        or dist.get_world_size(group(world)) == 1
    )


def group(world: World) -> Any:
    return None if isinstance(world, str) else world


def size(world: World) -> int:
    return 1 if is_local(world) else dist.get_world_size(group(world))


def rank(world: World) -> int:
    return 0 if is_local(world) else dist.get_rank(group(world))


def _reduce_(t: Tensor, op: Any, world: World) -> Tensor:
    if is_local(world):
        return t
    if dist.get_backend(group(world)) == "nccl" and not t.is_cuda:
        there = t.to(torch.device("cuda", torch.cuda.current_device()))
        dist.all_reduce(there, op, group=group(world))
        return t.copy_(there)
    dist.all_reduce(t, op, group=group(world))
    return t


def sum_(t: Tensor, world: World = "dist") -> Tensor:
    """``t`` summed over ranks, in place."""
    return _reduce_(t, dist.ReduceOp.SUM, world)


def max_(t: Tensor, world: World = "dist") -> Tensor:
    """Element-wise maximum of ``t`` over ranks, in place."""
    return _reduce_(t, dist.ReduceOp.MAX, world)


def counts(n: int, world: World = "dist") -> list[int]:
    """How many rows each rank holds, in rank order."""
    held = torch.zeros(size(world), dtype=torch.int64)
    held[rank(world)] = n
    return sum_(held, world).tolist()
