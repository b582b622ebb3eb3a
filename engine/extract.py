"""Features of a whole data set: in memory while they are few, in a memory-mapped file when they are many.

Every process collects the rows of its own share into its own file, so the shares together are a sharded memory map. A
collection that was killed goes on where it was, if it is asked for again with the same key.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint, mapped
from .progress import counter

IN_MEMORY = 2**30  # bytes per process up to which no file is made
_NOTE = 30.0  # seconds of work that a kill may cost


@torch.no_grad()
def collect(
    compute: Callable[[int, int], Tensor],
    rows: int,
    *,
    path: Path | None = None,
    key: str = "",
    block: int = 512,
    in_memory: int = IN_MEMORY,
    name: str = "features",
    quiet: bool = True,
) -> Tensor:
    """(rows, D) float32 on the CPU, from compute(start, stop) -> (stop - start, D) for consecutive blocks.

    path       file to use when the features exceed `in_memory` bytes; None: always in memory
    key        says what the rows are (weights, view, epoch, share): another key in the file means to start over
    name, quiet   for the line that shows progress on stderr
    The tensor of a file is a private view: changing it changes neither the file nor another process's view. A later
    collection under the same path does not disturb a tensor that is still in use. Raises UserError when the disk has no room
    for the file.
    """
    target, done = (None, 0) if path is None else _earlier(path, key, rows)
    bar, noted = counter(name, rows, start=done, quiet=quiet), time.monotonic()
    while target is None or done < rows:
        stop = min(done + block, rows)
        part = compute(done, stop).detach().float().cpu().numpy()
        if target is None:
            target = _allocate(path, rows, part.shape[1], in_memory)
        target[done:stop] = part
        bar.update(stop - done)
        done = stop
        if path is not None and isinstance(target, np.memmap) and (done == rows or time.monotonic() - noted > _NOTE):
            target.flush()
            checkpoint.write_json(_note(path), {"key": key, "rows": done})
            noted = time.monotonic()
    bar.close()
    if path is not None and isinstance(target, np.memmap):
        target = np.load(path, mmap_mode="c")  # copy on write: torch wants a writable array, the file stays as it is
    return torch.from_numpy(target)


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _earlier(path: Path, key: str, rows: int) -> tuple[np.ndarray | None, int]:
    """The file of a collection with this key and how many of its rows are there; (None, 0) if there is none."""
    try:
        note = checkpoint.read_json(_note(path))
        target = np.load(path, mmap_mode="r+")
        if note.get("key") != key or len(target) != rows:
            return None, 0
        mapped.reserve(path)  # a copied file may have lost the blocks of the rows to come
    except (OSError, ValueError, checkpoint.CheckpointError):
        return None, 0
    return target, note["rows"]


def _allocate(path: Path | None, rows: int, dim: int, in_memory: int) -> np.ndarray:
    if path is None or rows * dim * 4 <= in_memory:
        return np.empty((rows, dim), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (_note(path), path):
        old.unlink(missing_ok=True)  # a new file: whoever still reads the old one keeps it
    return mapped.create(path, (rows, dim))


def fingerprint(module: nn.Module, *more: Any) -> str:
    """16 hexadecimal digits over every parameter and buffer of `module`, and over whatever else the features depend on."""
    digest = hashlib.blake2b(repr(more).encode(), digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
