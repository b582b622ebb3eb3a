"""Pixels of a set as a network's input wants them, kept on disk once they were decoded: a second model reads them in a tenth of the time.

One file of bytes holds one view of one set, (N, H, W, C) uint8; its name is the hash of all that decides them: the images, the
geometry of the view, the decoder. Images are added as they are first decoded, so that there is no pass of its own, and a pass that
was killed loses a few seconds of it. The disk for all of them is reserved before the first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from engine import mapped
from zoo.data.images import decoder
from zoo.files import exclusive

NOTE = 5.0  # seconds of work that a kill may cost
GEOMETRY = ("pad", "resize", "crop", "interpolation", "channels")


class Decoded:
    """The centre view of every image of ``source``; the processes of a run, and other runs, share one file.

    folder     where the files lie; source: anything with ``identity`` and a length
    transform  the fields of a model's ``input``; its crop is the side of the pictures
    Raises UserError when the disk has no room for the file.
    """

    def __init__(self, folder: Path, source: Any, transform: Mapping[str, Any]) -> None:
        side, channels = transform["crop"], transform["channels"]
        held = {
            "images": source.identity,
            "geometry": {name: transform[name] for name in GEOMETRY},
            "decoder": f"{decoder()}, Pillow {PIL.__version__}",
        }
        name = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:32]
        self.path, self._marks = folder / f"{name}.npy", folder / f"{name}.done.npy"
        shape = len(source), side, side, channels
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f"{name}.lock"):
            pixels, done = _opened(self.path, shape), _opened(self._marks, shape[:1])
            if pixels is None or done is None:
                for path in (self._marks, self.path):
                    path.unlink(missing_ok=True)
                pixels, done = (
                    mapped.create(path, s, np.uint8) for path, s in ((self.path, shape), (self._marks, shape[:1]))
                )
                (folder / f"{name}.json").write_text(
                    json.dumps(held, indent=1, sort_keys=True) + "\n", encoding="utf-8"
                )
        self._pixels, self._done = pixels, done
        self._fresh: list[np.ndarray] = []
        self._noted = time.monotonic()

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` that were not decoded yet."""
        return rows[self._done[rows] == 0]

    def keep(self, rows: np.ndarray, pixels: Tensor) -> None:
        """pixels (B, H, W, C) uint8 of images ``rows``."""
        if not len(rows):
            return
        self._pixels[rows] = pixels.numpy()
        self._fresh.append(rows)
        if time.monotonic() - self._noted > NOTE:
            self.flush()

    def flush(self) -> None:
        """What was kept is there after a power cut too: a mark is written when its pixels have been."""
        if self._fresh:
            self._pixels.flush()
            self._done[np.concatenate(self._fresh)] = 1
            self._done.flush()
        self._fresh, self._noted = [], time.monotonic()

    def read(self, rows: np.ndarray) -> Tensor:
        """(B, H, W, C) uint8; of rows that were kept."""
        return torch.from_numpy(self._pixels[rows])


def _opened(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """The map of a file that is as it should be, else None."""
    try:
        np.load(path, mmap_mode="r")  # refuses a file that was cut short, which the next line would fill up with zeros
        found = np.load(path, mmap_mode="r+")
        mapped.reserve(path)  # a copied file may have lost the blocks of rows to come
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None
