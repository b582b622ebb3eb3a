"""Small data sets that fit in memory: scikit-learn's digits, MNIST's IDX format, and sets that torchvision downloads."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import index_cache
from .source import ArraySource
from .specs import DatasetSpec

LARGEST = 2**30  # bytes; all of EMNIST has half of that
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def parse(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file.  Raises UserError for a wrong magic number, another type or a wrong length."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            sides = file.read(4 * head[3]) if head[:3] == b"\0\0\x08" and len(head) == 4 and 1 <= head[3] <= 4 else b""
            if not sides or len(sides) < 4 * head[3]:
                raise UserError(f"{path}: not an IDX file of bytes (first four bytes: {head.hex(' ') or 'none'})")
            shape = struct.unpack(f">{head[3]}I", sides)
            wanted = math.prod(shape)
            if wanted > LARGEST:
                raise UserError(f"{path}: shape {shape} needs {wanted:,} bytes, more than any set of this kind has")
            values = np.frombuffer(
                file.read(wanted + 1), dtype=np.uint8
            )  # no more than was announced, whatever follows
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if values.size < wanted:
        raise UserError(f"{path}: shape {shape} needs {wanted} bytes, the file holds {values.size}: truncated?")
    if values.size > wanted:
        raise UserError(f"{path}: shape {shape} needs {wanted} bytes, the file holds more")
    return values.reshape(shape)


def write(path: Path, array: np.ndarray) -> None:
    """Write uint8 ``array`` as an IDX file, compressed when the name ends in .gz (with no time stamp inside)."""
    data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_idx(spec: DatasetSpec, root: Path, part: str) -> ArraySource:
    """The ``train`` or ``test`` part of an MNIST-like set below ``root`` (also in torchvision's <Name>/raw)."""
    images, labels = (_find(root, name) for name in FILES[part])
    pixels, numbers = (_parsed(path, index_cache.stamp(path)) for path in (images, labels))
    if pixels.ndim != 3 or numbers.ndim != 1 or len(pixels) != len(numbers):
        raise UserError(f"{images}: {pixels.shape} images do not go with {numbers.shape} labels in {labels.name}")
    classes = spec.classes if isinstance(spec.classes, list) else [str(k) for k in range(spec.classes or 10)]
    if len(numbers) and numbers.max() >= len(classes):
        at = int(numbers.argmax())
        raise UserError(f"{labels}: label {numbers[at]} of image {at} is out of range for {len(classes)} classes")
    return ArraySource(pixels, numbers.astype(np.int64), classes, prefix=part)


@lru_cache(maxsize=4)
def _parsed(path: Path, stamp: tuple[int, int]) -> np.ndarray:
    """``parse(path)``, once for all splits that are cut from one file; ``stamp`` is its size and time."""
    return parse(path)


def _find(root: Path, name: str) -> Path:
    folders = [root, root / "raw", *sorted(root.glob("*/raw"))]
    for folder in folders:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise UserError(f"{root}: no {name}.gz or {name} in it or in its raw folder")


def read_digits(spec: DatasetSpec, root: Path | None, part: str) -> ArraySource:
    """All images, scaled from 0..16 to 0..255."""
    values = _table()
    pixels = (values[:, :64].reshape(-1, 8, 8) * 255 + 8) // 16
    return ArraySource(pixels.astype(np.uint8), values[:, 64], [str(k) for k in range(10)], prefix="digits")


def _table() -> np.ndarray:
    """int64 (1797, 65): 64 pixels and the digit, from the file inside scikit-learn; importing all of it takes seconds."""
    package = find_spec("sklearn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz" if package and package.origin else None
    if path is not None and path.is_file():
        rows = gzip.decompress(path.read_bytes()).split()
        return np.array([row.split(b",") for row in rows], dtype=np.float64).astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.int64)


def download_torchvision(spec: DatasetSpec, folder: Path) -> None:
    """Fill ``folder`` with every part, each file checked against its MD5."""
    for part in sorted({str(rule.read) for rule in spec.splits.values() if rule.read}):
        _dataset(spec, folder, part, download=True)


def _dataset(spec: DatasetSpec, root: Path, part: str, download: bool = False) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, str(spec.options["torchvision"]))
    how = {"split": part} if spec.options.get("by") == "split" else {"train": part == "train"}
    root = (
        root.parent if root.name == getattr(kind, "base_folder", None) else root
    )  # the unpacked folder itself is fine too
    return kind(str(root), download=download, **how)


def read_torchvision(spec: DatasetSpec, root: Path, part: str) -> ArraySource:
    """All images of ``part`` in memory.  torchvision checks the files' MD5."""
    try:
        found = _dataset(spec, root, part)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{root}: {spec.name}: {' '.join(str(error).split())}; {spec.prepare}") from None
    pixels = np.asarray(found.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[3] != 3:  # SVHN and STL-10 keep colours first
        pixels = pixels.transpose(0, 2, 3, 1)
    numbers = getattr(found, "targets", None)
    labels = np.asarray(found.labels if numbers is None else numbers, dtype=np.int64)
    classes = spec.classes if isinstance(spec.classes, list) else list(getattr(found, "classes", []))
    unlabelled = labels.size and labels.max() < 0
    return ArraySource(
        np.ascontiguousarray(pixels), None if unlabelled else labels, [] if unlabelled else classes, prefix=part
    )
