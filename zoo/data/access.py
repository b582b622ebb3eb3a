"""How the bytes of a packed set are held: read each time, or in memory.

no     every image is read from its archive when it is asked for
part   this process keeps its share (every n-th file) in memory, once for itself and its workers, and lets the other
       processes of the machine read it: together they hold each file once
full   every file is kept in memory, by the first process of the machine that asks, for all of them
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import UserError

MODES = ("no", "part", "full")


@dataclass(frozen=True)
class Access:
    """mode: no, part or full; share: (process, number of processes) that divide the files among them in mode part."""

    mode: str = "no"
    share: tuple[int, int] = (0, 1)

    @classmethod
    def of(cls, mode: str | None = None, share: tuple[int, int] | None = None) -> Access:
        """Defaults from the environment: SELFZOO_CACHE, and the launcher's local rank and size."""
        mode = mode if mode is not None else os.environ.get("SELFZOO_CACHE") or "no"
        if mode not in MODES:
            raise UserError(f"cache is {mode!r}; it is one of {', '.join(MODES)} (SELFZOO_CACHE or cache=)")
        if share is None:
            size = _number("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", 1)
            share = (_number("LOCAL_RANK", "SLURM_LOCALID", 0) if size > 1 else 0, size)  # no size told: all for itself
        if not 0 <= share[0] < share[1]:
            raise UserError(f"share {share}: process {share[0]} of {share[1]} does not exist")
        return cls(mode, share)


def _number(torchrun: str, slurm: str, default: int) -> int:
    value = os.environ.get(torchrun) or os.environ.get(slurm) or ""
    return int(value) if value.isdigit() else default
