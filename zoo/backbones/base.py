"""The contract of a backbone: named layers, widths, pooled features and feature maps. ``pixels`` is no network at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import UserError, suggest

HEADS = ("fc", "classifier", "head", "heads", "top_layer", "last_linear")  # where libraries keep their classifiers


class Vacant(nn.Identity):
    """The place of a classifier: passes features on, has no tensors, and knows their width as ``nn.Linear`` does."""

    in_features = out_features = 0


class Backbone(nn.Module):
    """An image network without its task head.

    layers  names as in the papers, input to output;  dims  channels of each;  dim  width D of ``forward``.
    A subclass sets these three and writes ``stages``; networks that end in a pooled map need nothing else.
    last_relu  False: ``forward`` ends before the ReLU of its last layer, the form that DeepCluster clusters
    ``fc`` is the last thing that ``forward`` calls: ``model.fc = nn.Linear(model.fc.in_features, 7)`` makes a classifier.
    """

    layers: tuple[str, ...]
    dims: dict[str, int]
    in_channels: int = 3
    last_relu: bool = True
    replaceable: tuple[str, ...] = ("fc",)  # places of a classifier that ``forward`` calls

    def __init__(self) -> None:
        super().__init__()
        self.fc: nn.Module = Vacant()

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self._width

    @dim.setter
    def dim(self, width: int) -> None:
        self._width = width
        self._modules["fc"] = self._modules.pop("fc")  # the last child, as it is the last one called
        for place in self.modules():
            if isinstance(place, Vacant):
                place.in_features = place.out_features = width

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and name in HEADS and name not in self.replaceable:
            places = " or ".join(f"model.{place}" for place in self.replaceable)
            raise UserError(
                f"model.{name}: forward of {type(self).__name__} never calls it; its classifier stands in {places}"
            )
        super().__setattr__(name, value)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each layer's name and its map (B, C, H, W) after the ReLU, in order, computing only as far as asked."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the last map, averaged over positions; or what a replaced ``fc`` makes of it."""
        [(_, last)] = deque(self.stages(x), maxlen=1)
        return self.answer(last.mean((2, 3)))

    def answer(self, features: Tensor) -> Tensor:
        """(B, D) features through ``fc``; a classifier in its place reads them after the last ReLU."""
        return self.fc(features if isinstance(self.fc, Vacant) else self.classifier_input(features))

    def classifier_input(self, features: Tensor) -> Tensor:
        """What ``forward`` gives, (B, D) -> what a classifier on this network takes, (B, D): after the last ReLU.

        The one place where that ReLU is put back. DeepCluster, DeeperCluster and their RotNet cluster fc7 before its ReLU
        and classify after it (DeeperCluster: eval_voc_classif.py, eval_pretrain.py); SeLa's and RotNet's AlexNet end in it.
        """
        return features if self.last_relu else features.relu()

    def forward_layers(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """The maps (B, C, H, W) of the named layers in one pass that stops at the deepest of them."""
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in self.layers:
                raise UserError(
                    f"this {type(self).__name__} has no layer {name!r}{suggest(name, self.layers)} "
                    f"(layers: {', '.join(self.layers)})"
                )
        found: dict[str, Tensor] = {}
        for name, value in self.stages(x):
            if name in wanted:
                found[name] = value
            if len(found) == len(wanted):
                break
        gone = [name for name in wanted if name not in found]
        if gone:
            raise UserError(f"{type(self).__name__}: layer {gone[0]} went with the classifier that was replaced")
        return {name: found[name] for name in wanted}


def check_sizes(**sizes: Any) -> None:
    """Every value is a positive whole number, or a list of such."""
    for name, value in sizes.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
            raise UserError(f"backbone option {name}={value!r}: positive whole numbers are expected")


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
                f"pixels: it takes images of {self.dim} values, these of {' x '.join(map(str, x.shape[1:]))} have {flat.shape[1]}; "
                "an evaluation cuts them to size by transform.resize and transform.crop, a recipe says backbone.options.dim"
            )
        return self.answer(flat)
