"""Sets that torchvision downloads and unpacks: CIFAR-10/100, SVHN, STL-10; and the download of Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .source import ArraySource
from .specs import DatasetSpec


def download(spec: DatasetSpec, folder: Path) -> None:
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


def read(spec: DatasetSpec, root: Path, part: str) -> ArraySource:
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
