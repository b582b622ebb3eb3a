"""Residual networks with torchvision's parameter names: ImageNet depths, SwAV's widths, variants of PIC and SeLa, small images.

Stride is on the 3x3 convolution (v1.5). Convolutions start Kaiming-normal (fan out), batch norms at 1 and 0.
SwAV multiplies the stem and every stage by its width, inner widths too; it pads by 1 and convolves with padding 2 where
torchvision pads by 3, which is the same function. SeLa's pre-activation ResNet-50 has batch norm and ReLU before each
convolution, and none at the very end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from .base import Backbone, check_sizes

Norm = Callable[[int], nn.Module]  # channels -> the layer after a convolution


def conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None, dilation: int = 1
) -> nn.Conv2d:
    around = dilation * (kernel // 2) if padding is None else padding
    return nn.Conv2d(inputs, outputs, kernel, stride, around, dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None, norm: Norm, dilation: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 3, stride, dilation=dilation), norm(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, dilation=dilation), norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None, norm: Norm, dilation: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 1), norm(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride, dilation=dilation), norm(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), norm(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def downsample(inputs: int, outputs: int, stride: int, average: bool, norm: Norm) -> nn.Sequential:
    """The shortcut of a block that changes width or resolution; ``average`` pools first (ResNet-D)."""
    if average:
        pool = nn.AvgPool2d(stride, stride)
        return nn.Sequential(pool, conv(inputs, outputs, 1), norm(outputs))
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))


class ResNet(Backbone):
    """Layers ``res1`` (stem, before the max-pool) and ``res2``, ``res3``, ...: one per entry of ``blocks``.

    width           channels of the first stage's 3x3 convolutions and, if ``stem_width`` is not given, of the stem
    stem_*          7x7, stride 2 and a max-pool by default; 3x3, stride 1 and none for images of 8 to 32 pixels
    deep_stem       three 3x3 convolutions in place of the 7x7;  average_shortcut  pool before the 1x1 of a shortcut
    zero_last_gamma start every residual branch at zero
    norm_layer      what stands for batch norm, called with the number of channels, as torchvision's FrozenBatchNorm2d
    replace_stride_with_dilation   for each stage after the first: keep the resolution and dilate instead, as torchvision does
    """

    def __init__(
        self,
        blocks: Sequence[int],
        bottleneck: bool = True,
        width: int = 64,
        in_channels: int = 3,
        stem_width: int | None = None,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        stem_padding: int | None = None,
        max_pool: bool = True,
        deep_stem: bool = False,
        average_shortcut: bool = False,
        zero_last_gamma: bool = False,
        norm_layer: Norm | None = None,
        replace_stride_with_dilation: Sequence[bool] | None = None,
    ):
        super().__init__()
        norm = norm_layer or nn.BatchNorm2d
        if not callable(norm):
            raise UserError(
                f"norm_layer={norm_layer!r}: a function of the number of channels is expected, such as nn.BatchNorm2d"
            )
        check_sizes(blocks=blocks, width=width, in_channels=in_channels, stem_width=stem_width or width)
        dilate = [False, *check_dilation(replace_stride_with_dilation, len(blocks) - 1)]
        block: type[BasicBlock | Bottleneck] = Bottleneck if bottleneck else BasicBlock
        channels = stem_width or width
        if deep_stem:
            half = channels // 2
            steps = [(in_channels, half, stem_stride), (half, half, 1)]
            triples = [nn.Sequential(conv(i, o, 3, s), norm(o), nn.ReLU(inplace=True)) for i, o, s in steps]
            self.conv1: nn.Module = nn.Sequential(*triples, conv(half, channels, 3))
        else:
            self.conv1 = conv(in_channels, channels, stem_kernel, stem_stride, stem_padding)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if max_pool else nn.Identity()
        self.in_channels, self.dims = in_channels, {"res1": channels}
        dilation = 1
        for i, depth in enumerate(blocks):
            planes, stage, first = width * 2**i, [], dilation  # a stage's first block keeps the dilation before it
            dilation *= 2 if dilate[i] else 1
            for j in range(depth):
                stride, outputs = (2 if i and not j and not dilate[i] else 1), planes * block.expansion
                changes = stride != 1 or channels != outputs
                shortcut = downsample(channels, outputs, stride, average_shortcut, norm) if changes else None
                stage.append(block(channels, planes, stride, shortcut, norm, dilation if j else first))
                channels = outputs
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            self.dims[f"res{i + 2}"] = channels
        self.layers, self.dim = tuple(self.dims), channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # drawing without memory loads the compiler
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_last_gamma and isinstance(module, (BasicBlock, Bottleneck)):
                last: Any = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.weight)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.relu(self.bn1(self.conv1(x)))
        yield "res1", x
        x = self.maxpool(x)
        for i, name in enumerate(self.layers[1:], 1):
            x = getattr(self, f"layer{i}")(x)
            yield name, x


def check_dilation(given: Sequence[bool] | None, stages: int) -> list[bool]:
    """One truth value for each stage after the first; none given: no stage is dilated."""
    values = [False] * stages if given is None else given
    if not isinstance(values, (list, tuple)) or len(values) != stages or not all(isinstance(v, bool) for v in values):
        raise UserError(
            f"replace_stride_with_dilation={given!r}: {stages} times true or false, one for each stage after the first"
        )
    return list(values)


def tiny_resnet(
    width: int = 16, blocks: Sequence[int] = (1, 1, 1), stem_stride: int = 1, in_channels: int = 1
) -> ResNet:
    """Basic blocks for images of 8 to 32 pixels: 3x3 stem, no max-pool, ``width`` channels doubling per stage."""
    check_sizes(stem_stride=stem_stride)
    return ResNet(blocks, False, width, in_channels, stem_kernel=3, stem_stride=stem_stride, max_pool=False)


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
