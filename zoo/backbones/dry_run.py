"""Forward passes that compute shapes alone, without memory and without torch's compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SAME = (torch.nn.functional.batch_norm, torch.nn.functional.relu, torch.relu, torch.relu_)
_SUMS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)


class ShapesOnly(TorchFunctionMode):
    """Batch norm, ReLU, sums and means of meta tensors as empty tensors of the right shape; everything else as torch does it.

    torch's own rules for these on the meta device import torch._dynamo: 0.7 s of CPU in every plan. Shapes that cannot be added raise
    RuntimeError, as in torch.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if tensors and tensors[0].is_meta:
            if function in _SAME:
                return torch.empty_like(tensors[0])
            if function in _SUMS and len(tensors) == 2:
                return torch.empty(torch.broadcast_shapes(*(t.shape for t in tensors)), device="meta")
            if function is Tensor.mean and len(args) == 2 and isinstance(args[1], tuple):
                return torch.empty([n for i, n in enumerate(tensors[0].shape) if i not in args[1]], device="meta")
        return function(*args, **(kwargs or {}))


def dry_run(network: torch.nn.Module, channels: int, side: int) -> Tensor:
    """What ``network``, whose parameters are on the meta device, gives out for two images (2, channels, side, side).

    Raises RuntimeError where the network cannot take such images.
    """
    with torch.no_grad(), ShapesOnly():
        output: Tensor = network(torch.empty(2, channels, side, side, device="meta"))
    return output
