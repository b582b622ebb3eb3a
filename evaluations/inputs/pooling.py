"""Maps (B, C, H, W) to rows (B, D): how a layer becomes the input of a linear classifier.

avg            mean over all positions
flat           every position
avg:K          average pooling with kernel and stride K, then flat (DeeperCluster: 18, 14, 9, 6, 3)
avg:K:S:P      kernel, stride, padding (padding counts as zeros, as PyTorch has it)
max:K:S:P      maximum pooling (SeLa's AlexNet probes)
adaptive_max:n adaptive maximum pooling to n x n (RotNet's probes);  adaptive_avg:n
below:N        average pooling with the smallest kernel that leaves fewer than N numbers
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError


def pooled(x: Tensor, pool: str) -> Tensor:
    """(B, C, H, W) -> (B, D) by one of the names above."""
    return pool_map(x, pool).flatten(1)


def pool_map(x: Tensor, pool: str) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w): the same before it is made flat."""
    name, _, rest = pool.partition(":")
    numbers = [int(n) for n in rest.split(":")] if rest and rest.replace(":", "").isdigit() else []
    if name == "avg" and not numbers:
        return x.mean((2, 3), keepdim=True)
    if name == "flat" and not rest:
        return x
    if name in ("avg", "max") and len(numbers) in (1, 2, 3):
        kernel, stride, padding = (numbers + [numbers[0], 0][len(numbers) - 1 :])[:3]
        if min(x.shape[2:]) + 2 * padding < kernel:
            raise UserError(
                f"pool {pool!r} needs a map of at least {kernel - 2 * padding} pixels, this one is {_size(x)}"
            )
        if name == "max":
            return F.max_pool2d(x, kernel, stride, padding)
        return F.avg_pool2d(x, kernel, stride, padding)
    if name == "adaptive_max" and len(numbers) == 1:
        return F.adaptive_max_pool2d(x, numbers[0])
    if name == "adaptive_avg" and len(numbers) == 1:
        return F.adaptive_avg_pool2d(x, numbers[0])
    if name == "below" and len(numbers) == 1:
        return F.avg_pool2d(x, kernel_below(x, numbers[0]))
    raise UserError(
        f"pool {pool!r}: not one of avg, flat, avg:K, avg:K:S:P, max:K:S:P, adaptive_max:n, adaptive_avg:n, below:N"
    )


def kernel_below(x: Tensor, limit: int) -> int:
    """The smallest kernel (= stride) whose average pooling leaves fewer than ``limit`` numbers of a map."""
    channels, height, width = x.shape[1:]
    for kernel in range(1, min(height, width) + 1):
        if channels * (height // kernel) * (width // kernel) < limit:
            return kernel
    raise UserError(f"a map of {channels} channels cannot be pooled below {limit} numbers")


def _size(x: Tensor) -> str:
    return "x".join(str(n) for n in x.shape[2:])
