"""Classifier heads on a backbone: a linear classifier, or the heads that a weight file brings, rebuilt from their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Backbone
from .errors import UserError


class Classifier(nn.Module):
    """``fc`` on a backbone's classifier input: images (B, C, H, W) -> (B, classes)."""

    def __init__(self, backbone: Backbone, classes: int):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone.classifier_input(self.backbone(x)))


class Maps(nn.Module):
    """A ResNet's maps at several scales, for detection and segmentation: (B, 3, H, W) -> a list of (B, C, H / r, W / r).

    layers, channels, reductions   name, C and r of each map, in the order of the list
    """

    def __init__(self, backbone: Backbone, indices: Sequence[int] | None = None):
        super().__init__()
        if not all(name.startswith("res") for name in backbone.layers):
            raise UserError(
                f"features_only=True: the maps of a {type(backbone).__name__} have no pyramid of scales; "
                "model.forward_layers(images, names) gives them by name"
            )
        count = len(backbone.layers)
        chosen = range(count) if indices is None else indices
        if not chosen or not all(isinstance(i, int) and -count <= i < count for i in chosen):
            raise UserError(f"out_indices={indices!r}: numbers from 0 to {count - 1}, for {', '.join(backbone.layers)}")
        self.backbone = backbone
        self.layers = tuple(backbone.layers[i] for i in chosen)
        self.channels = tuple(backbone.dims[name] for name in self.layers)
        self.reductions = self._reductions()

    @torch.no_grad()
    def _reductions(self, side: int = 128) -> tuple[int, ...]:
        training = self.backbone.training
        maps = self.backbone.eval().forward_layers(
            torch.zeros(1, self.backbone.in_channels, side, side, device="cpu"), self.layers
        )
        self.backbone.train(training)
        return tuple(side // maps[name].shape[-1] for name in self.layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = self.backbone.forward_layers(x, self.layers)
        return [found[name] for name in self.layers]


class Several(nn.ModuleList):
    """Heads side by side on the same input: (B, D) -> a list of (B, K_h), in the file's order."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(x) for head in self]


class Bank(nn.Module):
    """Tensors of a file that are no layer (queues, memory banks, class matrices), kept as buffers under their names."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name.replace(".", "_"), value.detach().clone())


class Full(nn.Module):
    """A backbone with the heads of its file: images -> {"features": (B, D), <head>: its output}.

    A head continues the one before it where the widths agree (prototypes after a projection), else it takes the
    features: a projection as they are, a classifier as ``Backbone.classifier_input`` gives them. A linear head without
    bias compares directions: its input is brought to unit length, as SwAV does.
    """

    def __init__(self, backbone: Backbone, groups: Mapping[str, Mapping[str, str]], tensors: Mapping[str, Tensor]):
        super().__init__()
        if not groups:
            raise UserError('part="full": this file has no heads that its layout names')
        self.backbone = backbone
        named = {name: {key: tensors[source] for key, source in keys.items()} for name, keys in groups.items()}
        self.heads = nn.ModuleDict({name: build(values) for name, values in named.items()})

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.backbone(x)
        found: dict[str, Any] = {"features": features}
        before: Tensor | None = None
        for name, head in self.heads.items():
            first = next((m for m in head.modules() if isinstance(m, nn.Linear)), None)
            if first is None:
                continue
            if before is not None and first.in_features == before.shape[1]:
                value = before
            else:
                value = features if name == "projection" else self.backbone.classifier_input(features)
            if first.in_features != value.shape[1]:
                raise UserError(f"head {name} expects {first.in_features} values, the features have {value.shape[1]}")
            found[name] = head(F.normalize(value, dim=1) if first.bias is None else value)
            if isinstance(found[name], Tensor):
                before = found[name]
        return found


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module that a group of tensors describes, filled with them.

    ``head.0.*, head.1.*, head.3.*``: a sequence, numbers left out are ReLUs. ``fc1.*, fc2.*``: linear, ReLU, linear.
    ``top_layer0.*, top_layer1.*``: heads side by side. ``fc.*``: one layer. Anything else: a Bank.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        place, _, last = key.rpartition(".")
        layers.setdefault(place, {})[last] = value
    modules = {place: _layer(values) for place, values in layers.items()}
    if any(module is None for module in modules.values()):
        return Bank(tensors)
    found = {place: module for place, module in modules.items() if module is not None}
    numbered = {place: re.search(r"(^|\.|\D)(\d+)$", place) for place in found}
    if len(found) == 1 or not all(numbered.values()):
        return next(iter(found.values())) if len(found) == 1 else Bank(tensors)
    order = sorted(found, key=lambda place: int(numbered[place].group(2)))  # type: ignore[union-attr]
    numbers = [int(numbered[place].group(2)) for place in order]  # type: ignore[union-attr]
    suffix = all(numbered[place].group(1) not in ("", ".") for place in order)  # type: ignore[union-attr]
    if suffix and numbers[0] == 0:
        return Several(found[place] for place in order)
    sequence: list[nn.Module] = []
    for place, number, previous in zip(order, numbers, [numbers[0] - 1, *numbers], strict=False):
        gap = 1 if suffix and sequence else number - previous - 1
        sequence += [nn.ReLU() for _ in range(gap)] + [found[place]]
    return nn.Sequential(*sequence)


def _layer(values: Mapping[str, Tensor]) -> nn.Module | None:
    """Linear or BatchNorm1d from the names and shapes of its tensors; None when it is neither."""
    weight, bias = values.get("weight"), values.get("bias")
    if weight is None:
        return None
    if weight.ndim == 2 and set(values) <= {"weight", "bias"}:
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    elif weight.ndim == 1 and {"running_mean", "running_var"} <= set(values):
        layer = nn.BatchNorm1d(weight.shape[0], track_running_stats=True)
    else:
        return None
    state = {name: value.detach().clone() for name, value in values.items()}
    try:
        layer.load_state_dict(
            state, strict="num_batches_tracked" in values or isinstance(layer, nn.Linear), assign=True
        )
    except RuntimeError as error:
        raise UserError(f"a head does not fit together: {str(error).splitlines()[-1].strip()}") from None
    return layer
