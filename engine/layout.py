"""Which memory order of images a network can be given: channels_last only where torch computes it correctly.

oneDNN, with which torch convolves on a CPU, writes past the end of the gradient when it goes backward through a strided
1x1 convolution in channels_last whose input channels do not fill one vector register: 8 float32 under AVX2, 16 under
AVX-512. The process dies, or goes on with damaged memory. In contiguous (NCHW) order the same layers are computed
correctly, so a network that has one such layer is given contiguous images, on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDEST = 16  # float32 numbers in the widest vector register of a CPU


def narrow_strided(network: nn.Module) -> list[str]:
    """Names of the layers of `network` that make channels_last unsafe, each with its shape; [] for nearly every network."""
    return [
        f"{name or 'itself'} ({layer.in_channels} -> {layer.out_channels} channels, stride {max(layer.stride)})"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d)
        and tuple(layer.kernel_size) == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < WIDEST
    ]


def memory_format(network: nn.Module, channels_last: bool = True) -> torch.memory_format:
    """The order in which `network` and its images are kept: channels_last if asked for and safe, else contiguous."""
    safe = channels_last and not narrow_strided(network)
    return torch.channels_last if safe else torch.contiguous_format


def arranged(images: Tensor, network: nn.Module, device: torch.device | str) -> Tensor:
    """`images` (B, C, H, W) on `device`, in channels_last order where `network` may have it."""
    return images.to(device, memory_format=memory_format(network))
