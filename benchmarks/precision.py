"""The Fashion-MNIST profile's network, forward and backward, in the precision that its recipes run in here, against float32.

    python -m benchmarks.precision [--rounds 7] [--seconds 40]

Recipes ask for bfloat16, and run in it wherever the machine has its instructions (zoo/precision.py); the other precision's time stands
beside it, so that the page says where that is the slower choice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks import _frame
from zoo import backbones, precision
from zoo.schema import Backbone

NET = Backbone(name="tiny_resnet", options={"width": 24, "blocks": [1, 1, 1, 1], "stem_stride": 2, "in_channels": 1})


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    images = 8 if options.small else 512
    torch.manual_seed(0)
    net = backbones.build(NET).train().to(memory_format=torch.channels_last)
    x = torch.randn(images, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    runs = "bfloat16" if precision.has_bfloat16("cpu") else "float32"  # what as_run_here leaves of a recipe's bfloat16

    def step(kind: str) -> Callable[[], float]:
        def work() -> float:
            net.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
                out = net(x)
            loss = out.float().square().mean()
            loss.backward()
            return float(loss.detach())

        return work

    found = _frame.interleave({"reference": step("float32"), "here": step(runs)}, options)
    a, b = found["reference"].result, found["here"].result
    yield _frame.row(
        found,
        work="Fashion-MNIST step, precision of the recipe",
        size=f"{images} views of 32 pixels, forward and backward",
        reference="float32",
        here=f"as recipes run here: {runs}",
        unit="step",
        equal=(abs(a - b) <= 0.02 * abs(a), f"mean square of the features {a:.4g} and {b:.4g}"),
        goal=1,
        note=f"zoo.precision.fastest, by which precision=fast chooses for features, says {precision.fastest('cpu')} on this machine",
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
