"""SeLa's pre-activation ResNet-50: batch norm and ReLU come before each convolution, and none at the very end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from .common import Backbone
from .resnet import check_sizes, conv


class PreactBottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        outputs = 4 * planes
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, planes, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), conv(planes, outputs, 1)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv1(y)
        y = self.conv2(self.bn2(y).relu())
        return self.conv3(self.bn3(y).relu()) + shortcut


class PreactResNet(Backbone):
    """Layers ``res2`` .. ``res5``: the raw sums, no ReLU follows them; output the last one averaged, (B, 2048).

    The 7x7 stem has neither batch norm nor ReLU.  Keys as torchvision's, with ``shortcut.0`` for ``downsample``.
    """

    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3)):
        super().__init__()
        check_sizes(blocks=blocks)
        self.conv1, self.maxpool = conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)
        channels, self.dims = 64, {}
        for i, depth in enumerate(blocks):
            planes, stage = 64 * 2**i, list[nn.Module]()
            for j in range(depth):
                stage.append(PreactBottleneck(channels, planes, 2 if i and not j else 1))
                channels = 4 * planes
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            self.dims[f"res{i + 2}"] = channels
        self.layers, self.dim = tuple(self.dims), channels

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.maxpool(self.conv1(x))
        for i, name in enumerate(self.layers, 1):
            x = getattr(self, f"layer{i}")(x)
            yield name, x
