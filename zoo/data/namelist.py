"""A million file names in two arrays: cheap to pickle, and shared between forked workers (lists of str are not,
since counting references writes to their pages)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np


def drawn(name: str, seed: str = "") -> bytes:
    """32 bytes that decide by an image's name: the same on every machine, whatever bytes the name has on disk."""
    return hashlib.sha256(f"{seed}{name}".encode("utf-8", "surrogateescape")).digest()


class Names(Sequence[str]):
    """An immutable list of str.  Names that are not UTF-8 on disk survive as surrogate escapes."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [n.encode("utf-8", "surrogateescape") for n in names]
        self.blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

    @classmethod
    def of(cls, blob: np.ndarray, ends: np.ndarray) -> Names:
        """Names from the two arrays of another one (as an index file keeps them)."""
        self = cls.__new__(cls)
        self.blob, self.ends = blob, ends
        return self

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside 0..{len(self) - 1}")
        start = self.ends[i - 1] if i else 0
        return self.blob[start : self.ends[i]].tobytes().decode("utf-8", "surrogateescape")

    def take(self, indices: np.ndarray) -> Names:
        return Names(self[int(i)] for i in indices)

    def digest(self, digest: Any) -> None:
        """Feed all names to a hash; the ends make it unambiguous."""
        digest.update(self.ends.astype("<i8").tobytes())
        digest.update(self.blob.data)
