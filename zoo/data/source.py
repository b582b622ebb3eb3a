"""The contract of a data set (``Source``): numbered images, each with a label and a name, and one fingerprint for the whole.

Methods, evaluations and detection use nothing else. A source is picklable, holds no open file that a ``fork`` could share, and
gives the same item for the same index in every process. Names of millions of files are kept in two arrays (``Names``): cheap to
pickle and shared between forked workers, which a list of str is not, since counting references writes to its pages.
"""

from __future__ import annotations

import copy
import hashlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from PIL import Image

from ..errors import UserError
from . import index_cache
from .images import decode
from .images import pixels as decode_pixels

T = TypeVar("T")


def drawn(name: str, seed: str = "") -> bytes:
    """32 bytes that decide by an image's name: the same on every machine, whatever bytes the name has on disk."""
    return hashlib.sha256(f"{seed}{name}".encode("utf-8", "surrogateescape")).digest()


def held_out(source: Source) -> np.ndarray:
    """bool (N,): what is judged on where a set has no part for it: a fifth of each class (at least one image where there are two),
    those whose names hash lowest."""
    order = sorted(range(len(source)), key=lambda i: drawn(source.name(i)))
    labels = source.labels[order]
    chosen = np.zeros(len(source), bool)
    for label in np.unique(labels):
        members = np.asarray(order)[labels == label]
        chosen[members[: max(len(members) // HELD_OUT, int(len(members) > 1))]] = True
    return chosen


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


UNLABELLED = -1
HELD_OUT = 5  # one image of so many is held out of a set without a test part
OWN = ("folder", "images", "voc", "coco")  # data sets that are whatever lies in the folder that was named


class Source:
    """Base of all sources; a subclass gives ``labels``, ``image``, ``name``, ``_digest`` and ``_take``.

    dataset, split  the names under which it was opened (empty for a source made by hand)
    home            the folder in which it was found
    channels        3: ``image`` gives mode RGB; 1: mode L
    classes         class names; label k belongs to ``classes[k]``.  Empty when nothing is labelled
    named           False: the data number their classes without naming them; ``classes`` are the numbers as text
    labels          int64 (N,), -1 where there is no label (``labelled`` is False when there is none at all)
    targets         uint8 (N, C) with 1 present, 0 absent, 255 ignore; None for sources with one label per image
    """

    dataset = ""
    split = ""
    home = ""
    named = True
    targets: np.ndarray | None = None

    def __init__(self, labels: np.ndarray | None, classes: Sequence[str], channels: int, length: int = 0) -> None:
        self.classes = tuple(classes)
        self.channels = channels
        self._length = length if labels is None else len(labels)
        self._labels = None if labels is None else np.ascontiguousarray(labels, dtype=np.int64)
        if self._labels is None:
            return
        wrong = np.flatnonzero((self._labels < UNLABELLED) | (self._labels >= len(self.classes)))
        if len(wrong):
            i = int(wrong[0])
            raise UserError(
                f"{self.name(i)}: label {self._labels[i]} is out of range for {len(self.classes)} classes"
                f" ({len(wrong)} such images)"
            )

    def __len__(self) -> int:
        return self._length

    @property
    def labelled(self) -> bool:
        """True when images have one label each (``targets`` is the other way of being labelled)."""
        return self._labels is not None

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,); -1 throughout, in no memory at all, for a source without labels."""
        return np.broadcast_to(np.int64(UNLABELLED), (len(self),)) if self._labels is None else self._labels

    def image(self, i: int) -> Image.Image:
        """Image ``i`` as PIL, mode RGB or L by ``channels``.  Raises ImageError naming the file when it is unreadable."""
        raise NotImplementedError

    def pixels(self, i: int) -> np.ndarray:
        """Image ``i`` as uint8 (H, W, 3), or (H, W) when ``channels`` is 1: what workers should hand over."""
        return np.asarray(self.image(i))

    def label(self, i: int) -> int:
        """Class index, or -1 for an unlabelled image."""
        return int(self.labels[self._at(i)])

    def name(self, i: int) -> str:
        """A name that is unique within the source and the same on every machine."""
        raise NotImplementedError

    @property
    def array(self) -> np.ndarray | None:
        """All images, uint8 (N, H, W) or (N, H, W, 3), when they are held in memory anyway; else None."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over everything that identifies the items, in order: names, sizes and labels, or the pixels."""
        digest = hashlib.sha256(f"{self.channels}".encode())
        self._digest(digest)
        digest.update(b"unlabelled" if self._labels is None else self._labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    @cached_property
    def identity(self) -> str:
        """What records and kept features of these images are named by: ``fingerprint``, and of own files their bytes."""
        return self.fingerprint

    def subset(self, indices: Sequence[int] | np.ndarray) -> Source:
        """The items at ``indices``, in that order, as a source of its own.  A mask or an index outside 0..N-1 is an error."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise UserError(f"subset: expected a list of whole numbers, got shape {chosen.shape} of {chosen.dtype}")
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            bad = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise UserError(f"subset: index {bad} is outside 0..{len(self) - 1}")
        part = self._take(chosen.astype(np.int64))
        part.dataset, part.split, part.home, part.named = self.dataset, self.split, self.home, self.named
        return part

    def unlabelled(self) -> Source:
        """The same images, under the same fingerprint and identity, as a source that has no labels."""
        part = copy.copy(self)
        part.__dict__.update(fingerprint=self.fingerprint, identity=self.identity)
        part._labels, part.targets, part.classes, part.named = None, None, (), True
        return part

    @property
    def shown(self) -> np.ndarray:
        """bool (C,): the classes that at least one image has."""
        if self.targets is not None:
            return np.asarray((self.targets == 1).any(axis=0))
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes)) > 0

    def renumbered(self, classes: Sequence[str], numbers: np.ndarray) -> Source:
        """The same images with other class numbers: what is class k here is class ``numbers[k]`` of ``classes``.

        numbers  int64 (C,); -1 for a class that no image has.  ``targets`` of classes that are not known here become 255
        """
        part = copy.copy(self)
        for derived in ("fingerprint", "identity"):
            part.__dict__.pop(derived, None)
        part.classes, part.named = tuple(classes), True
        if self._labels is not None and len(numbers):
            part._labels = np.where(self._labels < 0, UNLABELLED, numbers[self._labels])
        if self.targets is not None:
            part.targets = np.full((len(self), len(part.classes)), 255, dtype=np.uint8)
            part.targets[:, numbers[numbers >= 0]] = self.targets[:, numbers >= 0]
        return part

    def _at(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside 0..{len(self) - 1}")
        return int(i)

    def _digest(self, digest: Any) -> None:
        raise NotImplementedError

    def _take(self, indices: np.ndarray) -> Source:
        raise NotImplementedError

    def __repr__(self) -> str:
        what = f"{self.dataset}/{self.split}" if self.dataset else type(self).__name__
        return f"<{what}: {len(self):,} images, {len(self.classes)} classes, {self.fingerprint[:10]}>"


class ArraySource(Source):
    """A small set held in memory.  array: uint8 (N, H, W) or (N, H, W, 3); positions: original numbers, for the names."""

    def __init__(
        self,
        array: np.ndarray,
        labels: np.ndarray | None,
        classes: Sequence[str],
        prefix: str,
        positions: np.ndarray | None = None,
    ) -> None:
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or labels is not None and len(array) != len(labels):
            raise ValueError(f"array {array.shape} {array.dtype} with {0 if labels is None else len(labels)} labels")
        self._array = np.ascontiguousarray(array)
        self._prefix = prefix
        self._positions = np.arange(len(array)) if positions is None else positions
        super().__init__(labels, classes, channels=1 if array.ndim == 3 else 3, length=len(array))

    @property
    def array(self) -> np.ndarray:
        return self._array

    def pixels(self, i: int) -> np.ndarray:
        return self._array[self._at(i)]

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels(i))

    def name(self, i: int) -> str:
        return f"{self._prefix}-{self._positions[i]:06d}"

    def _digest(self, digest: Any) -> None:
        digest.update(f"array {self._array.shape}".encode())
        digest.update(self._array.data)

    def _take(self, indices: np.ndarray) -> Source:
        where = self._positions[indices]
        labels = None if self._labels is None else self._labels[indices]
        return ArraySource(self._array[indices], labels, self.classes, self._prefix, where)


class Store(Protocol):
    """Where the compressed bytes of numbered files are; every method may be called in any process or thread."""

    def read(self, i: int) -> bytes: ...
    def where(self, i: int) -> str: ...
    def stamp(self, i: int) -> tuple[int, int, int]: ...  # indexes.state of the file, or of the archive it is in
    def take(self, indices: np.ndarray) -> Store: ...


class FileSource(Source):
    """Compressed images in a store (folder, zip, tar shards), decoded when asked for.

    names   unique relative names; sizes: int64 (N,) bytes of each file
    lenient decode truncated files as far as they go instead of refusing them (YFCC100M is read so)
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: np.ndarray,
        labels: np.ndarray | None,
        classes: Sequence[str],
        store: Store,
        channels: int = 3,
        lenient: bool = False,
    ) -> None:
        self.names: Any = names if hasattr(names, "take") else Names(names)
        self.sizes = np.ascontiguousarray(sizes, dtype=np.int64)
        self.store = store
        self.lenient = lenient
        super().__init__(labels, classes, channels, len(self.names))

    def raw(self, i: int) -> bytes:
        """The compressed file as it is stored."""
        return self.store.read(self._at(i))

    def image(self, i: int) -> Image.Image:
        return self._opened(self.decoded, i)

    def pixels(self, i: int) -> np.ndarray:
        return self._opened(lambda i: decode_pixels(self.raw(i), self.channels, lambda: self.where(i), self.lenient), i)

    def decoded(self, i: int) -> Image.Image:
        """``image(i)``, whose error says nothing but what is wrong with the file."""
        return decode(self.raw(i), self.channels, lambda: self.where(i), self.lenient)

    def _opened(self, read: Callable[[int], T], i: int) -> T:
        try:
            return read(i)
        except UserError as error:
            place = [word for word in (self.dataset, self.home) if word and word != "folder"] or ["NAME", "PATH"]
            raise type(error)(
                f"{error}; max_bad=N leaves out up to N unreadable images, `python -m zoo data check {shlex.join(place)}` lists them"
            ) from None

    def where(self, i: int) -> str:
        """The place of image ``i`` on this machine, for messages."""
        return self.store.where(self._at(i))

    def name(self, i: int) -> str:
        return str(self.names[i])

    @cached_property
    def identity(self) -> str:
        """32 hex digits: the fingerprint, and for images that anybody may edit (OWN) the bytes of every file, which are read
        once (zoo/data/content.py).  Published sets are known by the names and sizes of their files, at no cost."""
        if self.dataset not in OWN:
            return self.fingerprint
        from .content import digests

        return hashlib.sha256(self.fingerprint.encode() + digests(self).tobytes()).hexdigest()[:32]

    def _digest(self, digest: Any) -> None:
        # Layouts share a fingerprint when they hold the same files in the same order: folder, zip and shards.
        digest.update(b"files")
        self.names.digest(digest) if isinstance(self.names, Names) else digest.update("\0".join(self.names).encode())
        digest.update(self.sizes.astype("<i8").tobytes())

    def _take(self, indices: np.ndarray) -> Source:
        names = self.names.take(indices)
        store, labels = self.store.take(indices), None if self._labels is None else self._labels[indices]
        return FileSource(names, self.sizes[indices], labels, self.classes, store, self.channels, self.lenient)


class FolderStore:
    """Plain files below one folder."""

    def __init__(self, root: Path, names: Names) -> None:
        self.root = str(root)
        self.names = names

    def read(self, i: int) -> bytes:
        try:
            with open(self.where(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise UserError(f"{self.where(i)}: cannot be read: {error.strerror}") from None

    def where(self, i: int) -> str:
        return f"{self.root}/{self.names[i]}"

    def stamp(self, i: int) -> tuple[int, int, int]:
        return index_cache.state(self.where(i))

    def take(self, indices: np.ndarray) -> FolderStore:
        return FolderStore(Path(self.root), self.names.take(indices))
