"""ResNet-50 on a CPU: features of its five layers, and one training step of SwAV, beside the plain module in torch's own order.

python -m benchmarks.backbone [--rounds 7] [--seconds 40]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks import _frame
from engine import fold, layout
from evaluations.inputs.features import Compute, FeatureRequest, forward
from reproduce import methods
from zoo import backbones
from zoo.precision import fastest


def features(options: _frame.Options) -> _frame.Row:
    network: Any = backbones.build("resnet50").eval()
    layers = list(network.layers)
    images = torch.randn(2 if options.small else 16, 3, *(2 * [64 if options.small else 224]))
    requests, kind = [FeatureRequest("train", layer) for layer in layers], fastest("cpu")
    folded = fold.folded(network, images[:1])

    def here() -> list[Tensor]:
        found = forward(folded, images, requests, Compute(precision=kind, folded=True))
        return [found[request] for request in requests]

    @torch.no_grad()
    def reference() -> list[Tensor]:
        return [value.mean((2, 3)) for value in network.forward_layers(images, layers).values()]

    found = _frame.interleave({"reference": reference, "here": here}, options)
    cosine = min(
        float(torch.cosine_similarity(a, b).min())
        for a, b in zip(found["reference"].result, found["here"].result, strict=True)
    )
    return _frame.row(
        found,
        work="ResNet-50 features, five layers",
        size=f"{len(images)} images of {images.shape[-1]} pixels",
        reference="torch module, float32, NCHW",
        here=f"evaluations with precision=fast: {kind}, batch norm folded",
        equal=(cosine >= 0.999, f"least cosine of a layer {cosine:.7f}"),
        unit="image",
        per=len(images),
        goal=4.5 if kind == "bfloat16" else 1.1,
    )


def step(options: _frame.Options) -> _frame.Row:
    """SwAV's loss on 2 large and 6 small crops, forward and backward."""
    size, small, batch = (32, 16, 4) if options.small else (224, 96, 8)
    recipe = zoo.resolve("swav_800ep", {"batch": batch, "params.prototypes": 300})
    drawn = torch.Generator().manual_seed(0)
    crops = [torch.randn(batch, 3, n, n, generator=drawn) for n in (size, size, *[small] * 6)]

    def made(order: torch.memory_format) -> Any:
        torch.manual_seed(0)
        method = methods.build(recipe, backbones.build("resnet50"), instances=1000, classes=0)
        method.to(memory_format=order)
        return method.train()

    def trained(method: Any, order: torch.memory_format) -> float:
        batch_ = SimpleNamespace(
            views=[x.contiguous(memory_format=order) for x in crops], index=torch.arange(batch), epoch=0
        )
        method.zero_grad()
        loss, _ = method.loss(batch_, 10_000)
        loss.backward()
        return float(loss.detach())

    plain, ours = made(torch.contiguous_format), made(torch.channels_last)
    order = layout.memory_format(ours)
    found = _frame.interleave(
        {"reference": lambda: trained(plain, torch.contiguous_format), "here": lambda: trained(ours, order)}, options
    )
    a, b = (found[name].result for name in ("reference", "here"))
    return _frame.row(
        found,
        work="SwAV ResNet-50, forward and backward",
        size=f"{batch} images, 2x{size} + 6x{small}, 300 prototypes, float32",
        reference="NCHW",
        here="channels_last=true",
        equal=(abs(a - b) <= 1e-3 * abs(a), f"loss {a:.6f} and {b:.6f}"),
        unit="step",
        goal=1.1,
    )


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    yield features(options.share(0.4))
    yield step(options.share(0.6))


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
