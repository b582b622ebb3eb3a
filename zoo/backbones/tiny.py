"""``pixels``: no network at all, the row that every learned feature has to beat."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..errors import UserError
from .common import Backbone
from .resnet import check_sizes


class Pixels(Backbone):
    """The normalised image itself, flattened to (B, dim); layer ``pixels`` is the image.  It has no parameters."""

    def __init__(self, dim: int = 64, in_channels: int = 1):
        super().__init__()
        check_sizes(dim=dim, in_channels=in_channels)
        self.dim, self.in_channels = dim, in_channels
        self.layers, self.dims = ("pixels",), {"pixels": in_channels}

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "pixels", x

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.dim:
            raise UserError(
                f"pixels: images of {tuple(x.shape[1:])} have {flat.shape[1]} values; set backbone.options.dim to it"
            )
        return self.answer(flat)
