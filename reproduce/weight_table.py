"""A table with a trained row for every image: sharded over processes, updated where it was used, brought up to date when needed.

PIC's class matrix has as many rows as the data set has images. An optimiser that touches all of them each step costs as much
as the softmax over all of them. Here a step takes the rows it needs, and after the backward pass updates those rows alone by
SGD with momentum and weight decay. What the optimiser would have done to the others meanwhile is linear in (row, momentum):

    [w; v] <- A [w; v],   A = [[1 - lr*decay, -lr*momentum], [decay, momentum]]        a step of SGD without gradient

so a row idle for steps s .. t-1 catches up with the product A(t-1) ... A(s) when it is next taken (the PIC paper's weight-update
correction). Row n lives on process n mod R. Rows come into being when they are first taken, from a counter-based draw, so
neither the number of processes nor the order of visits changes them, and an untouched row costs no memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import dist, rng
from engine.batch import on

ON_DEVICE = 1 << 32  # bytes of a table that an accelerator holds, its momentum as much again
BLOCK = 512  # steps whose products are merged into the older ones at once


class Idle:
    """Products of A over any span of past steps up to now, at a cost per step that does not grow with the length of the span."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, float]] = []  # (lr, momentum, decay) of every step so far
        self._old = np.empty((0, 2, 2))  # A(boundary-1) ... A(s) for every s before the boundary
        self._new = np.empty((0, 2, 2))  # A(now-1) ... A(s) for every s from the boundary on

    def advance(self, lr: float, momentum: float, decay: float) -> None:
        """One more step has passed."""
        step = np.array([[1 - lr * decay, -lr * momentum], [decay, momentum]])
        self.steps.append((lr, momentum, decay))
        self._new = step @ np.concatenate([self._new, np.eye(2)[None]])
        if len(self._new) == BLOCK:
            self._old = np.concatenate([self._new[0] @ self._old, self._new])
            self._new = np.empty((0, 2, 2))

    def since(self, start: np.ndarray) -> np.ndarray:
        """(n, 2, 2) products over steps start[i] .. now-1; the identity where start is now."""
        edge, now = len(self._old), len(self.steps)
        start = np.asarray(start)
        recent = np.concatenate([self._new, np.eye(2)[None]])
        out = recent[np.clip(start - edge, 0, now - edge)]
        late = start < edge
        out[late] = recent[0] @ self._old[start[late]]
        return out


class WeightTable:
    """`count` rows of `dim` numbers, those of this process: ids rank, rank + R, ...

    scale        standard deviation of a row at the start
    correction   idle rows catch up; False: an idle row stands still, as a plain sampled softmax leaves it
    """

    def __init__(self, count: int, dim: int, *, seed: int = 0, scale: float = 0.01, correction: bool = True) -> None:
        self.count, self.dim, self.seed, self.scale, self.correction = count, dim, seed, scale, correction
        self.rank, self.world = dist.rank(), dist.world_size()
        own = -(-(count - self.rank) // self.world)
        self.weight, self.velocity = _zeros(own, dim), _zeros(own, dim)
        self.current = torch.full((own,), -1, dtype=torch.int32)  # step up to which a row is right; -1: unborn
        self.idle = Idle()
        self.right = -1  # step up to which all rows are right, if known

    @property
    def now(self) -> int:
        return len(self.idle.steps)

    def own(self, ids: Tensor) -> Tensor:
        """Those of sorted global ids that live here."""
        return ids[ids % self.world == self.rank]

    def take(self, ids: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """(n, dim) current values of this process's rows `ids` (global, unique) on `device`, ready to collect a gradient.

        The table starts in main memory and moves to an accelerator unless it is very large: rows taken from main memory go there and
        their gradients come back in every step, for which the host waits.
        """
        if self.weight.nbytes <= ON_DEVICE:
            self._move(device)
        where = self._local(ids)
        self._catch_up(where)
        return on(self.weight[self._at(where)], device).requires_grad_()

    def update(self, ids: Tensor, grad: Tensor, *, lr: float, momentum: float, decay: float) -> None:
        """A step of SGD on rows `ids` as taken; the step has then passed for all rows."""
        where = self._local(ids)
        at = self._at(where)
        weight, velocity = self.weight[at], self.velocity[at].mul_(momentum).add_(grad.to(self.weight.device))
        velocity.add_(weight, alpha=decay)
        self.velocity[at], self.weight[at] = velocity, weight.sub_(velocity, alpha=lr)
        self.idle.advance(lr, momentum, decay)
        self.current[where] = self.now

    def all(self, device: torch.device | str = "cpu") -> Tensor:
        """(n_r, dim) all rows of this process, the table itself on `device` and no copy, ready to collect a gradient."""
        self._move(device)
        if self.right != self.now:
            self._catch_up(torch.arange(len(self.weight)))
        return self.weight.detach().requires_grad_()

    @torch.no_grad()
    def update_all(self, grad: Tensor, *, lr: float, momentum: float, decay: float) -> None:
        """A step of SGD on all rows, in place, as an optimiser's on a parameter."""
        self.velocity.mul_(momentum).add_(grad).add_(self.weight, alpha=decay)
        self.weight.sub_(self.velocity, alpha=lr)
        self.idle.advance(lr, momentum, decay)
        self.current.fill_(self.now)
        self.right = self.now

    def _move(self, device: torch.device | str) -> None:
        self.weight, self.velocity = on(self.weight, device), on(self.velocity, device)

    def _local(self, ids: Tensor) -> Tensor:
        return torch.div(ids - self.rank, self.world, rounding_mode="floor")

    def _at(self, where: Tensor) -> Tensor:
        return on(where, self.weight.device)

    def _catch_up(self, where: Tensor) -> None:
        """Bring local rows `where` to the present."""
        for unborn in where[self.current[where] < 0].split(1 << 16):
            ids = (unborn * self.world + self.rank).numpy()
            drawn = torch.from_numpy(self.scale * rng.normals(self.seed, "rows", 0, ids, 0, self.dim))
            self.weight[self._at(unborn)] = on(drawn.float(), self.weight.device)
            self.current[unborn] = 0
        late = where[self.current[where] < self.now]
        if self.correction and len(late):
            at = self._at(late)
            a = on(torch.from_numpy(self.idle.since(self.current[late].numpy())), at.device)[..., None]  # (n, 2, 2, 1)
            w, v = self.weight[at].double(), self.velocity[at].double()
            self.weight[at] = (a[:, 0, 0] * w + a[:, 0, 1] * v).float()
            self.velocity[at] = (a[:, 1, 0] * w + a[:, 1, 1] * v).float()
        self.current[late] = self.now

    # -- memory ------------------------------------------------------------------------------------------------------
    def whole(self) -> Tensor:
        """(count, dim): all rows of all processes, brought up to date."""
        for part in torch.arange(len(self.weight)).split(1 << 16):
            self._catch_up(part)
        return self._gather(self.weight).cpu().clone()

    def state(self) -> dict[str, Any]:
        """Everything, the same on every process and for any number of them."""
        return {
            "weight": self._gather(self.weight).cpu(),
            "velocity": self._gather(self.velocity).cpu(),
            "current": self._gather(self.current[:, None])[:, 0],
            "steps": torch.tensor(self.idle.steps, dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        mine = slice(self.rank, None, self.world)
        self.weight, self.velocity, self.current = (state[k][mine].clone() for k in ("weight", "velocity", "current"))
        self.idle, self.right = Idle(), -1
        for lr, momentum, decay in state["steps"].tolist():
            self.idle.advance(lr, momentum, decay)

    def _gather(self, part: Tensor) -> Tensor:
        """Shards of (almost) equal length, interleaved again; of one process, its own rows themselves."""
        if self.world == 1:
            return part
        longest = -(-self.count // self.world)
        padded = torch.cat([part, part.new_zeros(longest - len(part), part.shape[1])])
        every = dist.all_gather(padded).view(self.world, longest, -1)
        return every.transpose(0, 1).reshape(self.world * longest, -1)[: self.count]


def _zeros(rows: int, columns: int) -> Tensor:
    """(rows, columns) float32 whose memory is taken up a small page at a time, when it is first written to."""
    room = mmap.mmap(-1, max(1, 4 * rows * columns))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        room.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would bring in 4,000 rows for one
    return (
        torch.frombuffer(room, dtype=torch.float32, count=rows * columns).view(rows, columns)
        if rows
        else torch.zeros(0, columns)
    )


class _ShardedSoftmax(torch.autograd.Function):
    """-log p of each row's class, the classes (columns) being spread over processes, the rows being the same everywhere."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        top = dist.all_reduce_(
            logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf), "max"
        )
        p = (logits - top[:, None]).exp_()
        total = dist.all_reduce_(p.sum(1))
        here = target >= 0
        hit = logits.new_zeros(len(logits))
        if logits.shape[1]:
            hit = torch.where(here, logits.gather(1, target.clamp(min=0)[:, None])[:, 0], hit)
        ctx.save_for_backward(p.div_(total[:, None]), target)
        return top + total.log() - dist.all_reduce_(hit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p, target = ctx.saved_tensors
        out, here = p * grad[:, None], target >= 0
        if out.shape[1]:
            out.scatter_add_(1, target.clamp(min=0)[:, None], torch.where(here, -grad, 0.0)[:, None])
        return out, None


def sharded_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(M,) cross entropies over classes that are spread over processes.

    logits  (M, n_r) of the same M rows on every process, against this process's classes.
    target  (M,) column of the row's class if it is here, else -1.
    The gradient of a logit is complete; that of whatever all processes share must be summed over them.
    """
    return _ShardedSoftmax.apply(logits, target)
