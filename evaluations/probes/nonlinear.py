"""Classifiers of more than one layer on a frozen map: RotNet's, beside the linear probe (faithful form of linear.py).

mlp            the map made flat, two fully connected layers of 20 units per class (2048 at most), and the classifier
nin_block      a 3x3 and two 1x1 convolutions of 192 channels as in the network's third block, mean over positions, classifier
alexnet_conv5  what AlexNet has after conv5: pooling, two fully connected layers of 4096, classifier
alexnet_conv4  the same behind a fresh conv5

Every hidden layer has batch norm and a ReLU; convolutions of the block and hidden fully connected layers have no bias.
Source    gidariss/FeatureLearningRotNet; batch norm's scales start at 1 (in AlexNet's fully connected layers the authors'
          PyTorch drew them from 0 to 1)
"""

from __future__ import annotations

import math

from torch import nn

from zoo.errors import UserError

NAMES = ("mlp", "nin_block", "alexnet_conv4", "alexnet_conv5")


def build(name: str, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """A classifier by one of ``NAMES`` on maps (B, *shape), shape (C, h, w) -> (B, classes)."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    if name == "mlp":
        units = min(20 * classes, 2048)
        layers += [nn.Flatten(), *_full(channels * height * width, units), *_full(units, units)]
    elif name == "nin_block":
        for kernel, inputs in ((3, channels), (1, 192), (1, 192)):
            layers += [nn.Conv2d(inputs, 192, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(192), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        units = 192
    else:
        if min(height, width) < 3:
            raise UserError(f"classifier {name}: needs a map of at least 3x3 pixels, this one is {height}x{width}")
        if name == "alexnet_conv4":
            layers += [nn.Conv2d(channels, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU()]
            channels = 256
        pooled = channels * ((height - 3) // 2 + 1) * ((width - 3) // 2 + 1)
        units = 4096
        layers += [nn.MaxPool2d(3, 2), nn.Flatten(), *_full(pooled, units), *_full(units, units)]
    found = nn.Sequential(*layers, nn.Linear(units, classes))
    for m in found.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, 0, math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0, math.sqrt(2 / m.out_features))
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return found


def _full(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
