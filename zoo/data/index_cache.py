"""Listings kept between runs, so that a million files are not listed again: NumPy arrays in the user's cache folder.

An index is used only while the thing it lists has not changed: an archive by its size and time stamp, a folder tree by
the time stamps of all its folders (adding, removing or renaming a file changes them) and the sizes of a sample of its
files.  A file overwritten in place with other bytes of the same length is not noticed; ``data check`` always lists anew.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import whole
from .paths import user_cache

WORTH = 20_000  # files; listing fewer takes a fraction of a second
RACY = 2e9  # ns; a stamp this young may not yet show a change made right after it
Arrays = dict[str, np.ndarray]


def remember(
    key: str, fresh: Callable[[Arrays], bool], build: Callable[[], Arrays], count: Callable[[Arrays], int]
) -> Arrays:
    """What ``build`` returned the last time for ``key`` if it is still ``fresh``, else what it returns now."""
    path = user_cache() / "index" / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
        if fresh(kept):
            return kept
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # no index, or one cut short: it is only a copy
    arrays = build()
    if count(arrays) >= WORTH and arrays["stamps"].max() < time.time_ns() - RACY:
        try:
            with whole(path) as part, part.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except (OSError, UserError):
            pass  # a full or read-only cache costs the next listing, nothing else
    return arrays


def stamp(path: str | Path) -> tuple[int, int]:
    """(size, modification time in ns); (-1, -1) when it is gone."""
    try:
        state = os.stat(path)
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def state(path: str | Path) -> tuple[int, int, int]:
    """(size, modification time, change of its entry) in bytes and ns: another triple once anything was done to the file."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1, -1
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def folder_stamps(root: str | Path, folders: Sequence[str]) -> np.ndarray:
    """Modification times of folders below ``root``, int64."""
    return np.array([stamp(os.path.join(root, f))[1] for f in folders], dtype=np.int64)


def sample(count: int) -> np.ndarray:
    """Up to 256 positions spread over ``count`` files."""
    return np.unique(np.linspace(0, count - 1, min(count, 256)).astype(np.int64))
