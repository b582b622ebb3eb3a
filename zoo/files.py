"""Files that appear under their names only when they are whole, and locks that let one process at a time in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import writing


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A temporary name beside the file, given the real one only when everything has been written.

    engine.checkpoint.write_atomic does the same for what must survive a crash of the machine too.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
        yield part
        os.replace(part, file)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def exclusive(lock: Path, waiting: str = "") -> Iterator[None]:
    """One process at a time; the others wait, and say so with ``waiting``. The lock goes with its process, however it ends."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        if waiting:
            print(waiting, file=sys.stderr)
        held.acquire()
    try:
        yield
    finally:
        held.release()
