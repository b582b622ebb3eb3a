"""COCO's masks, polygons or run lengths, by pycocotools: the code with which COCO itself draws and scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError


def decode(shape: Mapping[str, Any] | Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """bool (height, width) of a COCO ``segmentation``: a list of polygons x0, y0, x1, y1, …, whose union it is, or
    ``{counts, size}`` with run lengths down the columns, background first, as a list or as COCO's compressed text.

    Raises ValueError for what is no mask of this image: pycocotools itself reads some of it as a smaller one.
    """
    library = _pycocotools()
    if not isinstance(shape, Mapping):
        if not shape:
            return np.zeros((height, width), dtype=bool)
        for polygon in shape:
            points = np.array(polygon, dtype=np.float64)
            if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
                raise ValueError(f"a polygon needs at least three pairs of numbers, found {len(points)} numbers")
        return library.decode(library.merge(library.frPyObjects(list(shape), height, width))).astype(bool)
    counts, size = shape["counts"], list(shape.get("size", [height, width]))
    if size != [height, width]:
        raise ValueError(f"run lengths of {size}, the image is {height} x {width}")
    if isinstance(counts, (str, bytes)):
        return library.decode({"counts": counts, "size": size}).astype(bool)
    runs = np.array(counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths cover {runs.sum()} pixels, the image has {height * width}")
    return library.decode(library.frPyObjects({"counts": runs.tolist(), "size": size}, height, width)).astype(bool)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """``{counts, size}`` of bool (H, W): compressed run lengths as text, fit for JSON."""
    found = _pycocotools().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"counts": found["counts"].decode("ascii"), "size": [int(n) for n in found["size"]]}


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError("COCO's masks need pycocotools: pip install 'selfzoo[detection]'") from None
    return mask
