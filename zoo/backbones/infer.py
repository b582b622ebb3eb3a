"""The ResNet that the shapes of some tensors describe: depth, width, stem and input channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NAMES: dict[tuple[tuple[int, ...], bool], str] = {  # blocks of each stage, and whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((2, 2, 2, 2), True): "resnet26",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
WIDE = {128: "resnet50w2", 256: "resnet50w4", 320: "resnet50w5"}


def resnet(shapes: Mapping[str, Sequence[int]], small: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """{"name", "options"} of the nearest ResNet by torchvision's names; None where there is no such network.

    small  options of the network where the first convolution is 3x3, beside a stride of 1 and no max-pooling
    Whether every tensor fits is for the caller to see: other networks have some of these names too.
    """
    stem, first = shapes.get("conv1.weight"), shapes.get("layer1.0.conv1.weight")
    if stem is None or first is None or len(stem) != 4 or len(first) != 4:
        return None
    places = [found for key in shapes if (found := re.match(r"layer(\d+)\.(\d+)\.", key))]
    blocks: list[int] = []
    while numbers := [int(p.group(2)) for p in places if int(p.group(1)) == len(blocks) + 1]:
        blocks.append(max(numbers) + 1)
    bottleneck, width = "layer1.0.conv3.weight" in shapes, int(first[0])
    options: dict[str, Any] = {}
    if stem[0] != width:
        options["stem_width"] = int(stem[0])
    if stem[1] != 3:
        options["in_channels"] = int(stem[1])
    name = NAMES.get((tuple(blocks), bottleneck))
    if name is None:
        if bottleneck or stem[2] != 3 or options.get("stem_width"):
            return None
        return {"name": "tiny_resnet", "options": {"width": width, "blocks": blocks, "in_channels": int(stem[1])}}
    if name == "resnet50" and width in WIDE:
        name = WIDE[width]
    elif width != 64:
        options["width"] = width
    if stem[2] == 3:
        options |= {"stem_kernel": 3, "stem_stride": 1, "max_pool": False, **(small or {})}
    elif stem[2] != 7:
        options["stem_kernel"] = int(stem[2])
    return {"name": name, "options": options}
