"""Batch norm folded into the convolution before it: the same function in evaluation mode with fewer passes over memory.

The last bits of the output change, so whoever folds says so in the key of what he computes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import layout
from .errors import UserError

APART = 1e-3  # of the largest output; rounding makes some 1e-6 of it


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``network`` in evaluation mode in which a batch norm that follows a convolution is part of it.

    images  (B, C, H, W): a forward pass of these shows which module follows which, another one that the output is still the same
    The convolutions are kept in the order in memory that ``layout`` permits. Raises UserError for a network that also uses what
    a convolution gives in other places.
    """
    network = copy.deepcopy(network).eval()
    pairs, before = _pairs(network, images)
    names = {module: name for name, module in network.named_modules()}
    for convolution, norm in pairs:
        _replace(network, names[convolution], fuse_conv_bn_eval(convolution, norm))
        _replace(network, names[norm], nn.Identity())
    network = network.to(memory_format=layout.memory_format(network))  # type: ignore[call-overload]
    if (network(images) - before).abs().max() > APART * before.abs().max():
        raise UserError(
            "batch norm cannot be folded into the convolutions of this network; leave -folded out of precision="
        )
    return network


def _pairs(network: nn.Module, images: Tensor) -> tuple[list[tuple[Any, Any]], Tensor]:
    """(convolution, batch norm) wherever each is used once and the norm is given what the convolution returned; the output."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # outputs are held, so that no other tensor can have their id
    used: dict[nn.Module, int] = {}
    found: list[tuple[nn.Module, nn.Module]] = []

    def after(module: nn.Module, given: Any, out: Tensor) -> None:
        made[id(out)] = module, out
        used[module] = used.get(module, 0) + 1

    def before(module: nn.Module, given: Any) -> None:
        used[module] = used.get(module, 0) + 1
        if id(given[0]) in made:
            found.append((made[id(given[0])][0], module))

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before))
    output = network(images)
    for hook in hooks:
        hook.remove()
    return [pair for pair in found if used[pair[0]] == used[pair[1]] == 1], output


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
