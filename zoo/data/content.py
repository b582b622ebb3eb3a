"""The bytes of every image file of a set, hashed once and remembered with the state of each file on disk."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..files import whole
from . import index_cache
from .bad_images import in_order
from .paths import user_cache

if TYPE_CHECKING:
    from .source import FileSource

SIZE = 16  # bytes of a digest


def digests(source: FileSource) -> np.ndarray:
    """uint8 (N, 16): BLAKE2b of each file's bytes.

    Cost: every file is read once, with a progress bar; later only those whose size, modification time or entry has changed
    since (or that of the archive that holds them), at one ``stat`` each. Raises UserError for a file that cannot be read.
    """
    if not len(source):
        return np.zeros((0, SIZE), np.uint8)
    place = f"{source.fingerprint} {os.path.abspath(source.where(0))}".encode("utf-8", "surrogateescape")
    record = user_cache() / "content" / f"{hashlib.sha256(place).hexdigest()[:32]}.npz"
    stamps = np.array([source.store.stamp(i) for i in range(len(source))], dtype=np.int64)
    known, found = _remembered(record, stamps)

    def work(i: int) -> tuple[int, bytes]:
        return i, hashlib.blake2b(source.raw(i), digest_size=SIZE).digest()

    left = np.flatnonzero(~known)
    if not len(left):
        return found
    for i, digest in in_order(work, left.tolist(), f"{source.dataset}/{source.split}: hashing every image"):
        found[i] = np.frombuffer(digest, np.uint8)
    # A stamp this young, or of an unknown file, may not show a change made right after the reading.
    stamps[(stamps[:, 1:].max(axis=1) > time.time_ns() - index_cache.RACY) | (stamps[:, 0] < 0)] = 0
    try:
        with whole(record) as part, part.open("wb") as file:
            np.savez(file, stamps=stamps, digests=found)
    except (OSError, UserError):
        pass  # a full or read-only cache costs the next reading, nothing else
    return found


def _remembered(record: Path, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bool (N,): files that are as they were when they were read; uint8 (N, 16): their digests)."""
    fresh = np.zeros(len(stamps), bool), np.zeros((len(stamps), SIZE), np.uint8)
    try:
        with np.load(record, allow_pickle=False) as file:
            before, digests = file["stamps"], file["digests"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return fresh
    if before.shape != stamps.shape or digests.shape != fresh[1].shape:
        return fresh
    return (before == stamps).all(axis=1) & (stamps[:, 0] >= 0), digests
