"""YFCC100M as DeeperCluster lays it out: eight digits d1..d8 of an image's number name a zip and a file in it.

    <root>/d1d2/d3d4d5.zip, file d6d7d8.jpg        12345 -> 00/012.zip, 345.jpg

``flickr_unique_ids.npy`` lists the numbers of the usable images.  Without it, every image of every zip is used.  Truncated
images are decoded as far as they go, as the authors do: nobody can read a hundred million images to sort them out first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import index_cache
from .archives import PackStore, most_open, zip_members
from .images import ImageError
from .source import FileSource
from .specs import DatasetSpec

OPEN_ZIPS = 256  # per process at most; each keeps a handle and the positions of a thousand files
LIMIT = 100_000_000


def place(number: int) -> tuple[str, str]:
    """(zip, file in it) of image ``number``, 0..99,999,999."""
    if not 0 <= number < LIMIT:
        raise UserError(f"YFCC100M has no image {number}: numbers have eight digits")
    digits = f"{number:08d}"
    return f"{digits[:2]}/{digits[2:5]}.zip", f"{digits[5:]}.jpg"


def read(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """Every usable image, unlabelled, in the order of the list of numbers."""
    path = root / "flickr_unique_ids.npy"
    if path.is_file():
        try:
            numbers = np.load(path, mmap_mode="r", allow_pickle=False)  # the header may promise more than there is
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path}: not an array of numbers: {error}") from None
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise UserError(f"{path}: expected a list of whole numbers, found {numbers.dtype} {numbers.shape}")
    else:
        numbers = _present(root)
    outside = numbers[(numbers < 0) | (numbers >= LIMIT)]
    if len(outside):
        raise UserError(f"{path}: number {outside[0]} is not an image of YFCC100M (eight digits)")
    numbers = numbers.astype(np.int64)
    # The sizes would cost opening a hundred thousand zips: -1, unknown.
    sizes = np.broadcast_to(np.int64(-1), numbers.shape)
    return YfccSource(NumberNames(numbers), sizes, None, [], YfccStore(root, numbers), lenient=True)


def _present(root: Path) -> np.ndarray:
    found = []
    for path in sorted(root.glob("[0-9][0-9]/[0-9][0-9][0-9].zip")):
        names, _ = zip_members(path)
        found += [
            int(f"{path.parent.name}{path.stem}{name[:3]}")
            for name in names
            if name[:3].isdigit() and name[3:] == ".jpg"
        ]
    if not found:
        raise UserError(f"{root}: neither flickr_unique_ids.npy nor zips like 00/000.zip in it")
    return np.sort(np.array(found, dtype=np.int64))


class NumberNames(Sequence[str]):
    """The names of numbered images, made when asked for: eight bytes an image."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: Any) -> Any:
        return "/".join(place(int(self.numbers[i])))

    def take(self, indices: np.ndarray) -> NumberNames:
        return NumberNames(self.numbers[indices])


class YfccStore:
    """Files in the zips, of which the most recently used stay open."""

    def __init__(self, root: Path, numbers: np.ndarray) -> None:
        self.root, self.numbers = root, numbers
        self._zips: OrderedDict[str, tuple[PackStore, dict[str, int]]] = OrderedDict()

    def read(self, i: int) -> bytes:
        archive, member = place(int(self.numbers[i]))
        found = self._zips.pop(archive, None)
        if found is None:
            path = self.root / archive
            if not path.is_file():
                raise ImageError(f"{path}: missing; it should hold {member}")
            names, rows = zip_members(path)
            found = PackStore([str(path)], rows, names), {names[k]: k for k in range(len(names))}
            while len(self._zips) >= min(OPEN_ZIPS, most_open()):
                self._zips.popitem(last=False)
        self._zips[archive] = found
        store, where = found
        if member not in where:
            raise ImageError(f"{self.where(i)}: not in the zip")
        return store.read(where[member])

    def where(self, i: int) -> str:
        return "@/".join((f"{self.root}/{place(int(self.numbers[i]))[0]}", place(int(self.numbers[i]))[1]))

    def stamp(self, i: int) -> tuple[int, int, int]:
        return index_cache.state(self.root / place(int(self.numbers[i]))[0])

    def take(self, indices: np.ndarray) -> YfccStore:
        return YfccStore(self.root, self.numbers[indices])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zips": OrderedDict()}


class YfccSource(FileSource):
    """A hundred million images: identified by their numbers alone."""

    names: NumberNames

    def _digest(self, digest: Any) -> None:
        digest.update(b"yfcc100m")
        digest.update(self.names.numbers.astype("<i8").data)

    def _take(self, indices: np.ndarray) -> YfccSource:
        store = self.store.take(indices)
        return YfccSource(self.names.take(indices), self.sizes[indices], None, [], store, lenient=True)
