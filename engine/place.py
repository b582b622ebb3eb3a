"""Rank and number of processes as torchrun or srun give them in the environment; read without torch, so that errors are quick."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from .errors import UserError


class Place(NamedTuple):
    """Rank of ``size`` processes, and the number among those of this machine. ``bound``: Slurm may show each its own GPU only."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    bound: bool = False


def place(env: Mapping[str, str]) -> Place:
    """Read torchrun's variables, else those of a Slurm job step; RANK alone means nothing.

    Raises UserError when they are incomplete or no whole numbers.
    """
    try:
        if "WORLD_SIZE" in env:
            size = _number(env, "WORLD_SIZE")
            rank = _number(env, "RANK") if size > 1 else 0
            if not 0 <= rank < size:
                raise ValueError(f"RANK={rank} of WORLD_SIZE={size}")
            return Place(rank, size, _number(env, "LOCAL_RANK", "0"))
        # Only a job *step* (srun) has one process per task; in a plain batch script SLURM_NTASKS alone means nothing.
        if (size := _number(env, "SLURM_STEP_NUM_TASKS", "1")) > 1:
            return Place(_number(env, "SLURM_PROCID"), size, _number(env, "SLURM_LOCALID", "0"), bound=True)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the environment describes no complete set of processes ({str(error).strip(chr(39))}); start several with "
            "`torchrun --nproc_per_node=N -m ...` or `srun`, or unset WORLD_SIZE for one"
        ) from None
    return Place()


def who(env: Mapping[str, str]) -> str:
    """``"process 3 of 8: "`` before an error of a process that is not the first; empty for the first, or the only one."""
    try:
        here = place(env)
    except UserError:
        return ""  # the same environment is an error of its own, which every process tells
    return f"process {here.rank} of {here.size}: " if here.rank else ""


@contextmanager
def same_for_all() -> Iterator[None]:
    """Errors inside are the same on every process (a wrong word of the command line): the first process tells them for all."""
    try:
        yield
    except Exception as error:
        error.agreed = True  # type: ignore[attr-defined]
        raise


def _number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env[name] if default is None else env.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text}: not a whole number") from None
