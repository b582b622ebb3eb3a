"""Plain torch.distributed: one process without a group, or many under torchrun or Slurm, behind the same few names.

Every helper works without a process group, where the world is one process and communication is the identity.
"""

from __future__ import annotations

import datetime
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import UserError
from .place import Place, place

T = TypeVar("T")
_OPERATIONS = {"sum": td.ReduceOp.SUM, "max": td.ReduceOp.MAX, "min": td.ReduceOp.MIN}


@dataclass(frozen=True)
class World:
    """Who this process is: rank of size, its place on this machine, its device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init(device: str | None = None) -> World:
    """Join the processes that torchrun or srun started, or be the only one. `device`: "auto", "cpu", "cuda", "cuda:1".

    gloo carries CPU tensors and NCCL those of GPUs. Raises UserError when the environment or the device makes no sense.
    """
    here = place(os.environ)
    rank, size, local_rank, _ = here
    where = _device(device or "auto", here)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size > 1 and not td.is_initialized():
        url = meeting(os.environ)
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        # Long: clustering millions of features on one process keeps the others waiting.
        td.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=datetime.timedelta(hours=2))
    return World(rank, size, local_rank, where)


def finish() -> None:
    """Leave the process group, if there is one."""
    if td.is_initialized():
        td.destroy_process_group()
        groups.cache_clear()


def _device(name: str, here: Place) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: not a device that torch knows; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        own = (
            0 if here.bound and count == 1 else here.local_rank
        )  # srun --gpus-per-task=1: each task sees its GPU alone
        index = own if device.index is None else device.index
        if index >= count:
            raise UserError(
                f"device={name}: process {here.local_rank} of this machine finds {count} GPUs; start at most {count} processes here, "
                "or use device=cpu"
            )
        return torch.device("cuda", index)
    return device


def meeting(env: Any) -> str:
    """Where processes find each other: DIST_URL, as tcp://host:port or file:///path of a file that is not there yet; else env://, by
    MASTER_ADDR, which is filled in for a job step of Slurm.
    """
    url = env.get("DIST_URL") or "env://"
    if url == "env://":
        _set_address(env)
    elif not re.fullmatch(r"tcp://[^/:]+:\d+|file:///.+", url):
        raise UserError(f"DIST_URL={url}: neither env://, tcp://host:port nor file:///path")
    elif url.startswith("file://") and not os.path.isdir(folder := os.path.dirname(url.removeprefix("file://"))):
        raise UserError(f"DIST_URL={url}: there is no folder {folder}; it must be one that all processes see")
    return url


def _set_address(env: Any) -> None:
    if "MASTER_ADDR" in env:
        return
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError(
            "several processes, but MASTER_ADDR is not set; start them with torchrun or srun, or say DIST_URL=tcp://host:port"
        )
    env["MASTER_ADDR"] = first_host(nodes)
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))


def first_host(nodelist: str) -> str:
    """The first name in Slurm's notation: 'gpu[03-07,12],x1' -> 'gpu03'."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodelist)
    if match is None:
        raise UserError(f"SLURM_JOB_NODELIST={nodelist!r} names no host; set MASTER_ADDR")
    return match.group(1) + (match.group(2) or "")


# "dist": all that joined; "local": this one alone, whatever is joined; or a torch.distributed.ProcessGroup.
Processes = Any
_imagined: tuple[int, int] | None = None  # rank and size that stand in for the real ones


def world_size(processes: Processes = "dist") -> int:
    if isinstance(processes, str) and processes not in ("dist", "local"):
        raise ValueError(f'world must be "dist", "local" or a process group, not {processes!r}')
    if processes == "local":
        return 1
    if processes == "dist" and _imagined is not None:
        return _imagined[1]
    return td.get_world_size(_group(processes)) if td.is_initialized() else 1


def rank(processes: Processes = "dist") -> int:
    if processes == "dist" and _imagined is not None:
        return _imagined[0]
    return 0 if world_size(processes) == 1 else td.get_rank(_group(processes))


def _group(processes: Processes) -> Any:
    return None if isinstance(processes, str) else processes


@contextmanager
def imagined(size: int, rank: int = 0) -> Iterator[None]:
    """Inside, rank() and world_size() are those of one of `size` processes, which need not run: what it would hold can be built on the
    meta device. Nothing may communicate inside."""
    global _imagined
    before, _imagined = _imagined, (rank, size)
    try:
        yield
    finally:
        _imagined = before


def is_main() -> bool:
    return rank() == 0


def together(what: Callable[[], T]) -> T:
    """``what()`` on every process. When it fails on some with an error of the user's, all of them raise the first one's.

    Nobody waits for a process that has left, and one line is told for all (``agreed``).
    """
    found, error = None, None
    try:
        found = what()
    except Exception as caught:
        if not getattr(caught, "user_error", False) or world_size() == 1:
            raise
        error = caught
    told: list[str | None] = [None] * world_size()
    if world_size() > 1:
        td.all_gather_object(told, None if error is None else str(error))
    for number, text in enumerate(told):
        if text is not None:
            failed = UserError(text if number == 0 else f"process {number} of {len(told)}: {text}")
            failed.agreed = True  # type: ignore[attr-defined]
            raise failed from error
    return cast(T, found)


def require_same(what: Callable[[], T], told: Callable[[T, T], str]) -> None:
    """Raise UserError on every process where ``what()`` of one is not the first one's; told(the first's, its own) says what differs."""
    value = together(what)
    first = broadcast_object(value)

    def compared() -> None:
        if value != first:
            raise UserError(told(first, value))

    together(compared)


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        td.barrier()


def all_reduce_(t: Tensor, op: str = "sum", processes: Processes = "dist") -> Tensor:
    """`t` becomes the sum, max or min over processes, in place; returned for convenience. No gradient."""
    if world_size(processes) == 1:
        return t
    if td.get_backend(_group(processes)) == "nccl" and not t.is_cuda:
        there = t.to(torch.device("cuda", torch.cuda.current_device()))
        td.all_reduce(there, op=_OPERATIONS[op], group=_group(processes))
        return t.copy_(there)
    td.all_reduce(t, op=_OPERATIONS[op], group=_group(processes))
    return t


def sum_(t: Tensor, processes: Processes = "dist") -> Tensor:
    """`t` summed over processes, in place."""
    return all_reduce_(t, "sum", processes)


def max_(t: Tensor, processes: Processes = "dist") -> Tensor:
    """Element-wise maximum of `t` over processes, in place."""
    return all_reduce_(t, "max", processes)


def counts(n: int, processes: Processes = "dist") -> list[int]:
    """How many rows each process holds, in rank order; row n of the whole is row n of theirs laid end to end."""
    held = torch.zeros(world_size(processes), dtype=torch.int64)
    held[rank(processes)] = n
    return sum_(held, processes).tolist()


def broadcast_(t: Tensor, source: int = 0) -> Tensor:
    """`t` becomes the tensor of process `source`, in place; returned for convenience."""
    if world_size() > 1:
        td.broadcast(t, src=source)
    return t


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The value of process `source`: a small Python object."""
    if world_size() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=source)
    return box[0]


def all_gather(t: Tensor, group: Any = None) -> Tensor:
    """(B, ...) on each of R processes -> (R*B, ...), in rank order. Equal shapes everywhere; no gradient."""
    if world_size() == 1:
        return t
    parts = [torch.empty_like(t, memory_format=torch.contiguous_format) for _ in range(td.get_world_size(group))]
    td.all_gather(parts, t.contiguous(), group=group)
    return torch.cat(parts)


def all_gather_rows(t: Tensor) -> Tensor:
    """As all_gather, for a first dimension that differs between processes."""
    if world_size() == 1:
        return t
    counts = all_gather(torch.tensor([len(t)], device=t.device))
    longest = int(counts.max())
    padded = torch.cat([t, t.new_zeros(longest - len(t), *t.shape[1:])])
    parts = all_gather(padded).split(longest)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.rows = len(t)
        return all_gather(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        first = rank() * ctx.rows
        return all_reduce_(grad.contiguous().clone())[first : first + ctx.rows]


def all_gather_grad(t: Tensor) -> Tensor:
    """As all_gather, differentiable: a row's gradient is the sum of what all processes send back.

    With losses that are per-process means and gradients averaged over processes, this gives the gradient of the mean
    over processes, the same as one process with the whole batch.
    """
    return _Gather.apply(t) if world_size() > 1 else t


@cache
def groups(members: tuple[tuple[int, ...], ...]) -> tuple[Any, ...]:
    """A process group for each tuple of ranks, of use to these ranks only. Made once: every process takes part in making every group."""
    return tuple(td.new_group(list(ranks)) for ranks in members)


def data_parallel(module: nn.Module, *, unused_parameters: bool = False, apart: Iterable[str] = ()) -> nn.Module:
    """`module`, whose backward then averages gradients over processes. One process: as it is.

    unused_parameters  some trainable parameters may take no part in a backward pass
    apart              names of parameters that other processes do not hold: left alone
    On a CPU, and on a GPU with deterministic algorithms, sums are the same to the bit in a first step and in a later one: what a resumed
    run needs.
    """
    if world_size() == 1:
        return module
    if apart := list(apart):
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, apart)
    device = next((p.device.type for p in module.parameters() if p.requires_grad), "cpu")
    # The name changed with torch 2.14: buffers are not to be copied from process 0 at every step.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    # Fixed buckets: torch would lay them out anew after a first step, and so sum in another order after a resume.
    fixed = device != "cpu" and torch.are_deterministic_algorithms_enabled()
    whole = DistributedDataParallel(module, find_unused_parameters=unused_parameters or fixed, **buffers)
    if device == "cpu" and world_size() > 2:  # of two processes, either order gives the same sum
        whole.register_comm_hook(None, lambda state, bucket: _mean_in_order(bucket.buffer()))
    return whole


def _mean_in_order(flat: Tensor) -> torch.futures.Future[Tensor]:
    """The mean of a bucket (n,) of gradients over processes, every element summed in the order of ranks wherever in a bucket it lies."""
    size = world_size()
    share = -(-len(flat) // size)
    padded = torch.cat([flat, flat.new_zeros(share * size - len(flat))])
    theirs = torch.empty_like(padded)
    td.all_to_all_single(theirs, padded)
    first, *others = theirs.view(size, share)
    for other in others:
        first += other
    parts = [torch.empty_like(first) for _ in range(size)]
    td.all_gather(parts, first / size)
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(torch.cat(parts)[: len(flat)])
    return future


def unsynchronised(module: nn.Module) -> AbstractContextManager[Any]:
    """Within it, a backward of a ``data_parallel`` module keeps its gradients; they meet the others' in the next one."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
