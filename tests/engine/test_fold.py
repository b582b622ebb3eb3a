"""A network with batch norm folded into its convolutions computes the same function, layer by layer, whatever the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import fold
from engine.errors import UserError
from zoo import backbones

NETWORKS = {  # a network, its input, how many batch norms follow a convolution
    "resnet50": ("resnet50", (3, 64, 64), 53),
    "alexnet": ("alexnet", (3, 224, 224), 5),
    "nin": ("nin", (3, 32, 32), None),
    "vgg16": ("vgg16", (3, 224, 224), 13),
    "small": ({"name": "tiny_resnet", "width": 16}, (1, 32, 32), None),
}


def with_statistics(network):
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


def norms(network):
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_every_backbone_is_the_same(name):
    description, shape, count = NETWORKS[name]
    network = with_statistics(backbones.build(description))
    images = torch.randn(2, *shape)
    folded = fold.folded(network, images[:1])
    if count is not None:
        assert norms(network) - norms(folded) == count
    assert norms(folded) == 0 < norms(network)
    with torch.no_grad():
        plain, ours = (net.forward_layers(images, list(network.layers)) for net in (network, folded))
        for layer, value in plain.items():
            a, b = value.flatten(1).double(), ours[layer].flatten(1).double()
            assert torch.cosine_similarity(a, b).min() > 1 - 1e-9  # goal: .999
            assert (a - b).abs().max() < 1e-4 * a.abs().max()


class Shared(nn.Module):
    """One convolution under two norms: neither may be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x.flip(3)))


class Leaking(nn.Module):
    """What the convolution gives is used beside the norm as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


def test_what_is_used_twice_is_left_alone_or_refused():
    images = torch.randn(2, 3, 12, 12)
    shared = with_statistics(Shared())
    folded = fold.folded(shared, images)
    assert norms(folded) == 2
    torch.testing.assert_close(folded(images), shared(images))  # another order in memory, and so another order of sums
    with pytest.raises(UserError, match="cannot be folded"):
        fold.folded(with_statistics(Leaking()), images)


def test_narrow_strided_layers_keep_their_order_in_memory():
    network = with_statistics(nn.Sequential(nn.Conv2d(8, 8, 1, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, 32, 3)))
    folded = fold.folded(network, torch.randn(1, 8, 9, 9))
    assert folded[2].weight.is_contiguous() and norms(folded) == 0
    wide = with_statistics(nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)))
    assert fold.folded(wide, torch.randn(1, 16, 9, 9))[0].weight.is_contiguous(memory_format=torch.channels_last)
