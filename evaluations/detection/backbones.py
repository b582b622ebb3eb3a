"""Detector backbones from networks of the zoo: which feature maps are used, what is frozen, which normalisation.

Frozen batch norm applies the checkpoint's running statistics, scales and shifts as constants (eps 1e-5): nothing of it is a
parameter and nothing moves, as in DETR and detectron2's FrozenBN.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from zoo.backbones.alexnet import AlexNet
from zoo.backbones.base import Backbone
from zoo.backbones.resnet import PreactResNet, ResNet
from zoo.backbones.vgg import Vgg16
from zoo.errors import UserError, suggest

Norm = Literal["frozen", "batch", "sync"]


class FrozenBatchNorm1d(FrozenBatchNorm2d):
    """The same constants on (N, C), for fully connected layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, None, None])[:, :, 0, 0]


def freeze_norms(module: nn.Module) -> nn.Module:
    """Every batch norm inside becomes constants of the same names; a batch norm itself is returned as another module."""
    if isinstance(module, _BatchNorm):
        kind = FrozenBatchNorm1d if isinstance(module, nn.BatchNorm1d) else FrozenBatchNorm2d
        with torch.device(module.running_mean.device if module.running_mean is not None else "cpu"):
            frozen = kind(module.num_features, eps=module.eps)
        state = {key: value for key, value in module.state_dict().items() if key != "num_batches_tracked"}
        if not frozen.weight.is_meta:
            frozen.load_state_dict(state)
        return frozen
    for name, child in module.named_children():
        made = freeze_norms(child)
        if made is not child:
            setattr(module, name, made)
    return module


def parts(network: Backbone) -> dict[str, list[nn.Module]]:
    """Layer name -> the modules that lead from the layer before to it. Raises UserError for networks that no detector fits."""
    if isinstance(network, (ResNet, PreactResNet)):
        stem = [getattr(network, name) for name in ("conv1", "bn1") if hasattr(network, name)]
        stages = [[getattr(network, f"layer{i}")] for i in range(1, sum(n != "res1" for n in network.layers) + 1)]
        if "res1" not in network.layers:
            stages[0] = [*stem, *stages[0]]
            return dict(zip(network.layers, stages, strict=True))
        return dict(zip(network.layers, [stem, *stages], strict=True))
    if isinstance(network, (Vgg16, AlexNet)):
        found: dict[str, list[nn.Module]] = {}
        sequences: list[tuple[str, Any, int]] = [("conv", network.features, 1), ("fc", network.classifier, 6)]
        for prefix, sequence, first in sequences:
            for module in sequence:
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    name = f"{prefix}{first + sum(k.startswith(prefix) for k in found)}"
                    found[name] = []
                if module.state_dict():
                    found[name].append(module)
        return found
    raise UserError(f"{type(network).__name__} is no detector's backbone: ResNets, VGG-16 and AlexNet are")


class Body(nn.Module):
    """(B, C, H, W) -> {layer: map} for ``layers``. The network's tensors keep their names below ``network``.

    norm     frozen: constants (see above); batch: trained, statistics of each process; sync: trained, of all processes
    freeze   name of the last layer that does not train (its batch norms are frozen whatever ``norm`` says); None: all train;
             "all": none does
    """

    def __init__(
        self, network: Backbone, layers: Sequence[str], norm: Norm = "frozen", freeze: str | None = None
    ) -> None:
        super().__init__()
        self.network: Any = copy.deepcopy(network).requires_grad_(True)
        known = parts(self.network)
        for name in [*layers, *([freeze] if freeze not in (None, "all") else [])]:
            if name not in known:
                raise UserError(f"no layer {name!r}{suggest(str(name), known)} (layers: {', '.join(known)})")
        self.layers, self.dims = tuple(layers), {name: network.dims[name] for name in layers}
        still = freeze is not None
        for name, modules in known.items():
            for module in modules:
                if still:
                    module.requires_grad_(False)
            if still or norm == "frozen":
                self._freeze(modules)
            still = still and name != freeze

    def _freeze(self, modules: list[nn.Module]) -> None:
        for module in modules:
            made = freeze_norms(module)
            if made is not module:
                owner, key = next(
                    (parent, key)
                    for parent in self.network.modules()
                    for key, child in parent.named_children()
                    if child is module
                )
                setattr(owner, key, made)

    def take(self, name: str) -> Any:
        """A part of the network that becomes a detector's head (``layer4``, ``classifier``); it goes from here."""
        part = getattr(self.network, name)
        setattr(self.network, name, nn.Identity())
        return part

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.network.forward_layers(x, self.layers)

    def strides(self) -> list[int]:
        """Pixels of the input per cell of each map, a power of two, asked of the network itself."""
        side, channels = 256, int(self.network.in_channels)
        with torch.no_grad():
            maps = copy.deepcopy(self).to("meta")(torch.zeros(1, channels, side, side, device="meta"))
        return [2 ** round(math.log2(side / found.shape[-1])) for found in maps.values()]
