"""A box of one image at another size: torch's uint8 kernel on a slice of an array, or Pillow; the same triangle filter.

torch resizes in a quarter of Pillow's time, but only a slice. A box that lies between pixels is therefore Pillow's, as is every box of
an image that is no array. What lies outside the box has no part in torch's result, as in torchvision, which crops
first; Pillow's filter reaches over the border of a box. Inside they differ by rounding.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def resized(
    image: Image.Image | np.ndarray,
    left: float,
    top: float,
    width: float,
    height: float,
    size: int,
    flip: bool = False,
) -> Tensor:
    """(C, size, size) uint8: the box with this corner and these extents, in pixels and within the image, antialiased.

    image   mode RGB or L, or uint8 (H, W, 3) or (H, W);  flip: left and right are exchanged afterwards
    """
    box = left, top, width, height
    found = _by_torch(image, *box, size) if isinstance(image, np.ndarray) else None
    if found is None:
        found = _by_pillow(image, *box, size)
    return torch.from_numpy(
        np.array(found[..., ::-1] if flip else found, order="C")
    )  # torch takes twice as long to copy it


def _by_torch(array: np.ndarray, left: float, top: float, width: float, height: float, size: int) -> np.ndarray | None:
    """(C, size, size); None for a box that is no slice."""
    x0, y0, w, h = (int(v) for v in (left, top, width, height))
    if (x0, y0, w, h) != (left, top, width, height):
        return None
    box = np.array(array[y0 : y0 + h, x0 : x0 + w])
    x = torch.from_numpy(box if box.ndim == 3 else box[..., None])[None].permute(
        0, 3, 1, 2
    )  # the kernel's fastest order
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)[0].numpy()


def _by_pillow(
    image: Image.Image | np.ndarray, left: float, top: float, width: float, height: float, size: int
) -> np.ndarray:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    box = (left, top, left + width, top + height)
    array = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
