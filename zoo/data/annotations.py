"""Annotations of detection and segmentation data sets: boxes with their flags, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .source import FileSource, Store

OUTSIDE = 1.0  # pixels by which a box may leave its image through rounding; it is clipped


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image; n may be 0.

    boxes      float64 (n, 4): x0, y0, x1, y1 in pixels, x1 - x0 is the width; 0, 0 is the image's upper left corner
    classes    int64 (n,): index into the source's ``classes``
    difficult  bool (n,): VOC: not counted, neither found nor missed
    crowd      bool (n,): COCO: one box around many; detections inside it are not counted as wrong
    area       float64 (n,): pixels of the mask where the set has one (COCO), else of the box
    ids        int64 (n,): the annotation's number in its file
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


class DetectionSource(FileSource):
    """Images with objects.  ``labels`` is -1 throughout; ``targets`` says which classes an image shows.

    targets     uint8 (N, C): 1 present, 0 absent, 255 not to be counted (VOC: only difficult objects)
    image_ids   the image's name or number in the annotation file, for writing results
    """

    image_ids: Sequence[str] | np.ndarray
    targets: np.ndarray

    def __init__(
        self, names: Sequence[str], sizes: np.ndarray, classes: Sequence[str], store: Store, targets: np.ndarray
    ) -> None:
        super().__init__(names, sizes, None, classes, store)
        self.targets = targets

    def objects(self, i: int) -> Objects:
        """The objects of image ``i``.  Raises UserError naming file and line for a box that makes no sense."""
        raise NotImplementedError

    def masks(self, i: int) -> np.ndarray:
        """bool (n, H, W), one per object, in the order of ``objects(i)``.  Raises UserError when the set has none."""
        raise NotImplementedError

    def segmentation(self, i: int) -> np.ndarray:
        """uint8 (H, W): 0 background, k + 1 for ``classes[k]``, 255 not to be counted."""
        raise NotImplementedError

    def _digest(self, digest: Any) -> None:
        super()._digest(digest)
        digest.update(b"targets")
        digest.update(np.ascontiguousarray(self.targets).data)


def checked_box(box: Sequence[float], width: int, height: int, where: str) -> tuple[float, float, float, float]:
    """``box`` (x0, y0, x1, y1) within its image.  Raises UserError when it is empty or lies more than a pixel outside."""
    x0, y0, x1, y1 = box
    if not all(np.isfinite(box)) or x1 <= x0 or y1 <= y0:
        raise UserError(f"{where}: box {_shown(box)} is empty")
    if min(x0, y0) < -OUTSIDE or x1 > width + OUTSIDE or y1 > height + OUTSIDE:
        raise UserError(f"{where}: box {_shown(box)} lies outside the image of {width} x {height}")
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def _shown(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"
