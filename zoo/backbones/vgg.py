"""VGG-16 with batch norm as DeepCluster, DeeperCluster and their RotNet use it, with or without Sobel in front.

``features`` and ``classifier`` are numbered as in the released files: convolutions 0, 3, 7, 10, 14, ..., 40, linear 0 and 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .base import Backbone, Vacant
from .sobel import Stem, merged_kernel

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: max-pool


class Vgg16(Backbone):
    """Layers conv1 .. conv13 (after the ReLU), pool5, fc6, fc7; output fc7, (B, 4096), for 224-pixel images.

    stem       rgb | deepercluster_rgb | deepercluster_sobel | deepcluster_sobel (see sobel.py), or merged: RGB with the
               Sobel filters inside a 5x5 first convolution;  auto: DeeperCluster's, with Sobel or not as the file says
    last_relu  False: the output is fc7 before its ReLU, what both methods cluster (``classifier_input`` applies it)
    ``classifier[6] = nn.Linear(4096, 7)`` and ``classifier = …`` make a classifier, as in torchvision; ``fc`` does too.
    """

    replaceable = ("fc", "classifier")

    def __init__(self, stem: str = "rgb", last_relu: bool = True):
        super().__init__()
        kind = {"auto": "deepercluster_rgb", "merged": "rgb"}.get(stem, stem)
        self.stem, merged = Stem(kind), stem == "merged"
        channels, blocks = self.stem.channels, list[nn.Module]()
        for i, width in enumerate(WIDTHS):
            if not width:
                blocks.append(nn.MaxPool2d(2, 2))
                continue
            kernel, padding = (5, 3) if merged and i == 0 else (3, 1)
            blocks += [
                nn.Conv2d(channels, width, kernel, padding=padding),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*blocks)
        fc = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, 4096)]
        self.classifier: nn.Module = nn.Sequential(*fc, nn.ReLU(inplace=True), nn.Dropout(0.5), Vacant())
        self.last_relu, self.map_shape = last_relu, (512, 7, 7)
        convs = [width for width in WIDTHS if width]
        self.dims = {f"conv{i}": width for i, width in enumerate(convs, 1)} | {"pool5": 512, "fc6": 4096, "fc7": 4096}
        self.layers, self.dim = tuple(self.dims), 4096
        start(self, linear=stem == "deepcluster_sobel")

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x, number = self.stem(x), 0
        for block in self.features:
            x = block(x)
            if isinstance(block, nn.ReLU):
                number += 1
                yield f"conv{number}", x
        yield "pool5", x
        yield from fully_connected(x, self.classifier, self.map_shape, self.last_relu, self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) normalised RGB -> (B, 4096)."""
        [(_, last)] = deque(self.stages(x), maxlen=1)
        return self.answer(last.flatten(1))


def fully_connected(
    x: Tensor, classifier: Any, shape: tuple[int, ...], last_relu: bool, width: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """fc6 and fc7 after their ReLU, as (B, D, 1, 1), and last the network's output, which may lack that ReLU.

    What a caller puts behind the second ReLU (``classifier[6] = …``) is applied to fc7 after it; layers of his own that do
    not end in ``width`` features (``classifier = …``) are a classifier, whose output stays as it is.
    """
    if tuple(x.shape[1:]) != shape:
        raise UserError(
            f"the fully connected layers need a {shape[1]}x{shape[2]} map, which 224-pixel images give; this image gives "
            f"{x.shape[2]}x{x.shape[3]}. Use forward_layers for the convolutions"
        )
    x, name = x.flatten(1), "fc6"
    layers = iter(classifier if isinstance(classifier, nn.Sequential) else [classifier])
    for layer in layers:
        if isinstance(layer, nn.ReLU) and name == "fc7":
            break
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            yield "fc6", x[:, :, None, None]
            name = "fc7"
    positive, behind = x.relu(), [*layers]
    if behind and not isinstance(behind[-1], Vacant):
        yield "fc7", positive[:, :, None, None]
        for layer in behind:
            positive = layer(positive)
        yield "output", positive
    elif width not in (None, x.shape[1]):
        yield "output", x
    else:
        yield "fc7", positive[:, :, None, None]
        yield "output", positive if last_relu else x


def start(module: nn.Module, linear: bool) -> None:
    """Convolutions N(0, 2 / (k k out)), no bias; ``linear``: fully connected ones N(0, 0.01), no bias, else PyTorch's."""
    for m in module.modules():
        if not isinstance(m, (nn.Conv2d, nn.Linear)) or m.weight.is_meta:
            continue
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif linear:
            nn.init.normal_(m.weight, 0, 0.01)
        else:
            continue
        if m.bias is not None:
            nn.init.zeros_(m.bias)


@torch.no_grad()
def sobel_to_rgb(net: Vgg16) -> Vgg16:
    """The same function of an image without Sobel in front: its first convolution becomes 5x5 on RGB (``stem: merged``).

    Exact for DeeperCluster's Sobel.  DeepCluster's own pads the grey image, so no convolution equals it at the borders.
    """
    if net.stem.inner != 0:
        raise UserError("only networks with stem deepercluster_sobel can be merged exactly: others see other borders")
    with torch.device("meta"):
        made = Vgg16("merged", net.last_relu)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state["features.0.weight"] = merged_kernel(state["features.0.weight"])
    made.load_state_dict(state, assign=True)
    return made.train(net.training)
