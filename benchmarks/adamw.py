"""A step of AdamW on a small network: torch's loop over tensors, against its fused kernel as engine.optim takes it.

python -m benchmarks.adamw [--rounds 7] [--seconds 40]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import _frame
from engine.optim import AdamW

SETTINGS = {"lr": 0.003, "weight_decay": 0.01}
SHAPES = [
    (16, 1, 3, 3),
    *[(16,), (16,), (16, 16, 3, 3)] * 3,
    *[(32,), (32,), (32, 32, 3, 3)] * 3,
    *[(64, 64), (64,)] * 3,
    (50, 64),
]


def stepping(make: Callable[..., Any], steps: int) -> Callable[[], list[Tensor]]:
    """A function that takes so many steps from the same start with the same gradients, and returns the parameters."""

    def work() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimiser = make(params, **SETTINGS)
        for _ in range(steps):
            optimiser.step()
        return [p.detach() for p in params]

    return work


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    steps = 5 if options.small else 300

    def loop(params: list[Tensor], **settings: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW(params, foreach=False, **settings)

    found = _frame.interleave({"reference": stepping(loop, steps), "here": stepping(AdamW, steps)}, options)
    pairs = zip(found["reference"].result, found["here"].result, strict=True)
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    yield _frame.row(
        found,
        work="AdamW",
        size=f"{len(SHAPES)} tensors, {sum(torch.Size(s).numel() for s in SHAPES):,} parameters",
        reference="torch, loop over tensors",
        here="engine.optim.AdamW, fused",
        unit="step",
        per=steps,
        equal=(apart <= 1e-4, f"greatest difference of a parameter {apart:.1e} after {steps} steps"),
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
