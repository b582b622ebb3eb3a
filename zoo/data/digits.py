"""scikit-learn's digits: 1,797 gray images of 8x8, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .source import ArraySource
from .specs import DatasetSpec


def read(spec: DatasetSpec, root: Path | None, part: str) -> ArraySource:
    """All images, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    return ArraySource(pixels.astype(np.uint8), digits.target, [str(k) for k in range(10)], prefix="digits")
