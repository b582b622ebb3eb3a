"""Network in Network of RotNet on CIFAR: blocks of a k x k and two 1 x 1 convolutions, each with batch norm and ReLU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn

from .base import Backbone, check_sizes
from .vgg import start


class Nin(Backbone):
    """Layers conv1 .. conv<blocks>: a block's output after its pooling; output their last, averaged, (B, 192).

    Block 1 is 5x5 192-160-96 with max-pool 3/2, block 2 is 5x5 192 three times with average-pool 3/2, the others 3x3
    without pooling.  Key ``blocks.B.C.conv.weight``: block B, its convolution C from 1.
    """

    def __init__(self, blocks: int = 4, in_channels: int = 3):
        super().__init__()
        check_sizes(blocks=blocks, in_channels=in_channels)
        self.in_channels, self.dims = in_channels, {}
        self.blocks, channels = nn.ModuleList(), in_channels
        for number in range(1, blocks + 1):
            widths, kernel = ((192, 160, 96) if number == 1 else (192, 192, 192)), (5 if number < 3 else 3)
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            for i, width in enumerate(widths, 1):
                size = kernel if i == 1 else 1
                conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
                norm = nn.BatchNorm2d(width)
                parts[str(i)] = nn.Sequential(OrderedDict(conv=conv, bn=norm, relu=nn.ReLU(inplace=True)))
                channels = width
            if number < 3:
                pool = nn.MaxPool2d if number == 1 else nn.AvgPool2d
                parts["pool"] = pool(3, 2, 1)
            self.blocks.append(nn.Sequential(parts))
            self.dims[f"conv{number}"] = channels
        self.layers, self.dim = tuple(self.dims), channels
        start(self, linear=False)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, block in zip(self.layers, self.blocks, strict=True):
            x = block(x)
            yield name, x
