"""AlexNet with batch norm, without groups and LRN: DeepCluster's, SeLa's (big, small) and RotNet's.

``features`` are numbered as in DeepCluster's and SeLa's files: convolutions 0, 4, 8, 11, 14 (0, 3, 6, 8, 10 without
batch norm).  RotNet's fully connected layers have batch norm and no bias or dropout; its file is mapped by rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor, nn

from ..errors import UserError
from .base import Backbone, Vacant
from .sobel import Stem
from .vgg import fully_connected, start

FILTERS = {"big": (96, 256, 384, 384, 256), "small": (64, 192, 384, 256, 256)}
SHAPES = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))  # kernel, stride, padding
POOLED = (1, 2, 5)


class AlexNet(Backbone):
    """Layers conv1 .. conv5 (after the ReLU), pool5, fc6, fc7; output fc7, (B, 4096), for 224-pixel images.

    filters    big: 96 256 384 384 256 (DeepCluster, SeLa);  small: 64 192 384 256 256 (RotNet, SeLa's small one)
    stem       rgb, or deepcluster_sobel as DeepCluster's released network
    batchnorm  after each convolution
    fc         dropout: before each linear layer (DeepCluster, SeLa);  batchnorm: after it, without bias (RotNet)
    last_relu  False: the output is fc7 before its ReLU, what DeepCluster clusters (``classifier_input`` applies it)
    ``classifier[6] = nn.Linear(4096, 7)`` and ``classifier = …`` make a classifier, as in torchvision; ``fc`` does too.
    """

    replaceable = ("fc", "classifier")

    def __init__(
        self,
        filters: str = "big",
        stem: str = "rgb",
        batchnorm: bool = True,
        fc: str = "dropout",
        last_relu: bool = True,
    ):
        super().__init__()
        if filters not in FILTERS or fc not in ("dropout", "batchnorm"):
            raise UserError(f"alexnet: filters={filters!r} (big or small), fc={fc!r} (dropout or batchnorm)")
        self.stem = Stem(stem)
        channels, blocks = self.stem.channels, list[nn.Module]()
        for i, (width, shape) in enumerate(zip(FILTERS[filters], SHAPES, strict=True), 1):
            blocks.append(nn.Conv2d(channels, width, *shape))
            blocks += [nn.BatchNorm2d(width)] if batchnorm else []
            blocks += [nn.ReLU(inplace=True)] + ([nn.MaxPool2d(3, 2)] if i in POOLED else [])
            channels = width
        self.features = nn.Sequential(*blocks)
        layers = list[nn.Module]()
        for inputs in (256 * 6 * 6, 4096):
            if fc == "dropout":
                layers += [nn.Dropout(0.5), nn.Linear(inputs, 4096), nn.ReLU(inplace=True)]
            else:
                layers += [nn.Linear(inputs, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(inplace=True)]
        self.classifier: nn.Module = nn.Sequential(*layers, Vacant())
        self.last_relu, self.map_shape = last_relu, (256, 6, 6)
        convs = {f"conv{i}": width for i, width in enumerate(FILTERS[filters], 1)}
        self.dims = convs | {"pool5": 256, "fc6": 4096, "fc7": 4096}
        self.layers, self.dim = tuple(self.dims), 4096
        start(self, linear=fc == "dropout")

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
