"""Grey and Sobel in front of a network (DeepCluster, DeeperCluster), and its exact merger into the first convolution.

The filters act on the normalised RGB image. They are constants, not weights: files may hold them, nothing reads them.
DeeperCluster pads the image by 2 zeros and convolves without padding, so a 224 image becomes a 226 map; DeepCluster
pads the grey image by 1. The borders differ, so a network must be given the one it was trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError

# name -> (channels of the map that the network sees, zeros around the image, zeros around the grey image or None)
STEMS: dict[str, tuple[int, int, int | None]] = {
    "rgb": (3, 0, None),
    "deepercluster_rgb": (3, 1, None),
    "deepercluster_sobel": (2, 2, 0),
    "deepcluster_sobel": (2, 0, 1),
}
FILTERS = [
    [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]],
    [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]],
]


class Stem(nn.Module):
    """What a network sees of an image (B, 3, H, W): itself, padded, or its two Sobel maps (B, 2, H', W')."""

    edges: Tensor

    def __init__(self, kind: str):
        super().__init__()
        if kind not in STEMS:
            raise UserError(f"backbone option stem={kind!r}: one of {', '.join(STEMS)}")
        self.channels, self.outer, self.inner = STEMS[kind]
        filters = torch.tensor(FILTERS, device="cpu").unsqueeze(1)
        self.register_buffer("edges", filters if self.inner is not None else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.outer:
            x = F.pad(x, [self.outer] * 4)
        return x if self.inner is None else sobel(x, self.edges, self.inner)


def sobel(x: Tensor, edges: Tensor, padding: int) -> Tensor:
    """(B, 3, H, W) -> (B, 2, H + 2 padding - 2, ...): the grey image's horizontal and vertical differences."""
    return F.conv2d(x.mean(1, keepdim=True), edges.to(x.dtype), padding=padding)


def merged_kernel(weight: Tensor) -> Tensor:
    """(O, 2, 3, 3) on DeeperCluster's Sobel maps -> (O, 3, 5, 5) on RGB: the full convolution of the two, shared by colours.

    The released helper fills only 9 of the 25 taps.  With 3 zeros around the image in all (2 of the stem, 1 of the
    convolution) the result is exact at the borders too, because Sobel of zeros is zero.
    """
    edges = torch.tensor(FILTERS, dtype=weight.dtype, device=weight.device)
    kernel = weight.new_zeros(weight.shape[0], 5, 5)
    for i in range(3):
        for j in range(3):
            kernel[:, i : i + 3, j : j + 3] += torch.einsum("oc,cij->oij", weight[:, :, i, j], edges)
    return (kernel / 3).unsqueeze(1).repeat(1, 3, 1, 1)
