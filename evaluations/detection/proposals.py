"""Region proposals from files: selective search on VOC, as Fast R-CNN's authors distribute it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import UserError

FOLDER = "selective_search_data"


class SelectiveSearch:
    """``boxes(i)``: float32 (n, 4) xyxy of image ``i``, from voc_<year>_<part>.mat in a folder ``selective_search_data`` beside
    the images, or anywhere above them. Its boxes are y0, x0, y1, x1, counted from 1 with both ends included."""

    def __init__(self, source: Any, part: str) -> None:
        image = Path(source.where(0)).resolve()
        year = next((p.name[3:] for p in image.parents if p.name.startswith("VOC2")), "2007")
        name = f"voc_{year}_{part}.mat"
        found = [p / FOLDER / name for p in image.parents if (p / FOLDER / name).is_file()]
        if not found:
            raise UserError(
                f"{image.parents[1] / FOLDER / name}: no such file of proposals; unpack Fast R-CNN's selective_search_data "
                "there, or go without: head.proposals=rpn"
            )
        from scipy.io import loadmat

        content = loadmat(found[0])
        stems = [str(np.squeeze(entry)) for entry in content["images"].ravel()]
        self._row = {stem: number for number, stem in enumerate(stems)}
        self._boxes, self._file = content["boxes"].ravel(), found[0]
        self._stems = list(source.image_ids)
        missing = [stem for stem in self._stems if stem not in self._row]
        if missing:
            raise UserError(f"{found[0]}: no proposals for image {missing[0]} ({len(missing)} such images)")

    def boxes(self, i: int) -> np.ndarray:
        found = np.asarray(self._boxes[self._row[self._stems[i]]], dtype=np.float32).reshape(-1, 4)
        return found[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], dtype=np.float32)
