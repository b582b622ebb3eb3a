"""What a run takes of each device, of disks and of hours, from shapes and published running times: nothing is allocated or timed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from engine import extract
from reproduce.method import Method
from zoo.backbones.dry_run import dry_run
from zoo.errors import UserError

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATES = {"sgd": 1, "larc": 1, "lars": 1, "adamw": 2}  # tensors of the parameter's size that the optimiser keeps
_IMAGENET = 1_281_167
# (methods, backbone, crops) -> images of an epoch, its seconds, GPUs, and where that is published
_TIMES: tuple[tuple[tuple[str, ...], str, tuple[tuple[int, int], ...], int, float, int, str], ...] = (
    (("swav",), "resnet50", ((2, 224), (6, 96)), _IMAGENET, 220, 64, "SwAV's README: 3 min 40 s an epoch on 64 V100"),
    (
        ("deepclusterv2", "selav2"),
        "resnet50",
        ((2, 160), (4, 96)),
        _IMAGENET,
        193,
        64,
        "SwAV's README, DeepCluster-v2: 3 min 13 s an epoch on 64 V100",
    ),
    (("mocov2",), "resnet50", ((2, 224),), _IMAGENET, 53 * 18, 8, "MoCo's README: 53 hours for 200 epochs on 8 V100"),
)


def parameters(method: Method, alone: Method) -> str:
    """Of a process, and of all processes together where each holds some of them. alone: the method of one process."""
    here, whole = numel(method), numel(alone)
    if here == whole:
        return f"{here:,}"
    own = sum(p.numel() for name, p in method.named_parameters() if name in method.held_apart())
    return f"{here:,} a process, {own:,} of them held with its group only; {whole:,} in all"


def memory(recipe: Any, method: Method, augment: Any, world: int) -> str:
    """Weights, gradients, optimiser and the outputs of all layers for one process's batch: an estimate from shapes alone."""
    trained = {name: p.numel() for name, p in method.named_parameters() if p.requires_grad}
    count = sum(trained.values())
    averaged = sum(n for name, n in trained.items() if name not in method.held_apart()) if world > 1 else 0
    states = _STATES[recipe.optimizer.name]
    activations = 0
    for side, crops in Counter(crop.size for crop in augment.crops).items():
        activations += crops * outputs(method.backbone, recipe.input.channels, side)
    batch = activations * (recipe.batch // world // (recipe.accumulate or 1)) * _BYTES[recipe.precision]
    parts = [("weights", 4 * count), ("gradients", 4 * count), ("optimiser", 4 * count * states)]
    parts += [("buckets of gradients", 4 * averaged)] if averaged else []
    total = batch + sum(n for _, n in parts)
    return (
        f"about {size(total)} a process ({', '.join(f'{size(n)} {name}' for name, n in parts)}, {size(batch)} activations, "
        "estimated from shapes)"
    )


def disk(recipe: Any, method: Method, alone: Method, images: int | None, world: int) -> str:
    """Checkpoints, and features that are kept while clusters or labels are found. images: None where nobody knows."""
    whole = 4 * numel(alone) * (1 + _STATES[recipe.optimizer.name])
    text = f"{size(3 * whole)} for checkpoints (two are kept, one is written)"
    if method.extracted and images is not None:
        each = 4 * method.extracted * math.ceil(images / world)
        where = "on disk" if each > extract.IN_MEMORY else "in memory"
        text += f"; features {where} while labels are found: {size(each)} a process, {size(each * world)} in all"
    return text


def groups(recipe: Any, method: Method, world: int) -> str:
    """Who speaks with whom."""
    lines = ["gradients over all"]
    if recipe.sync_bn:
        together = recipe.sync_bn_group if recipe.sync_bn_group and recipe.sync_bn_group < world else None
        lines.append(f"batch norm over groups of {together}" if together else "batch norm over all")
    return "; ".join([*lines, *method.groups()])


def hours(recipe: Any, crops: Sequence[Any], images: int, world: int) -> str | None:
    """By a published running time of the same network and crops; None where there is none."""
    given = tuple(sorted(Counter(crop.size for crop in crops).items(), reverse=True))
    for known, backbone, views, epoch, seconds, gpus, source in _TIMES:
        if recipe.method in known and recipe.backbone.name == backbone and given == tuple((s, n) for n, s in views):
            rate = epoch / seconds / gpus
            found = images / rate / world / 3600
            return f"about {found:,.3g} hours on {world} V100, by {rate:.0f} images/s of each ({source}); not measured here"
    return None


def numel(method: nn.Module) -> int:
    return sum(p.numel() for p in method.parameters())


def outputs(backbone: nn.Module, channels: int, side: int) -> int:
    """Numbers that all layers together give out for one image; a layer that writes over its input gives out none."""
    total = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor) and not getattr(module, "inplace", False):
            total += output.numel()

    hooks = [m.register_forward_hook(count) for m in backbone.modules() if not list(m.children())]
    try:
        dry_run(backbone, channels, side)
    finally:
        for hook in hooks:
            hook.remove()
    return total // 2


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1024
    raise UserError("no size")
