"""Batch normalisation over the batches of all processes, and one process's running statistics for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import dist
from .errors import UserError


class _NormalizeTogether(torch.autograd.Function):
    """y = (x - mean) * rstd * weight + bias, where mean and rstd came from the x of all processes of `group`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, count: Tensor, group: Any
    ):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        ctx.save_for_backward(x, weight, mean, rstd, count)
        ctx.group, ctx.shape = group, shape
        scale = rstd * weight
        return (x.float() * scale.view(shape) + (bias - mean * scale).view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, weight, mean, rstd, count = ctx.saved_tensors
        shape, dims = ctx.shape, [0, *range(2, x.ndim)]
        grad32 = grad.float()
        normal = (x.float() - mean.view(shape)) * rstd.view(shape)
        sums = torch.stack([grad32.sum(dims), (grad32 * normal).sum(dims)])
        local = sums.clone()
        dist.all_reduce_(sums, processes=ctx.group or "dist")
        sums = sums / count
        inner = grad32 - sums[0].view(shape) - normal * sums[1].view(shape)
        return (inner * (rstd * weight).view(shape)).to(x.dtype), local[1], local[0], None, None, None, None


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes (or of `group`), for 2-d to 5-d input on any device.

    torch's own refuses the CPU. Statistics are gathered as (mean, sum of squared deviations, count) and combined as
    Chan et al. do, in float32, so unequal local batches, empty ones too, are right and nothing cancels. In evaluation
    mode, and in one process, this is ordinary batch normalisation.
    """

    group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch normalisation needs (B, C) or more dimensions, got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        use_batch = self.training or self.running_mean is None
        if not use_batch or dist.world_size() == 1 or (self.group is not None and dist.world_size(self.group) == 1):
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, count = self._statistics(input.detach())
        if self.training and self.track_running_stats:
            self._update(mean, variance, count)
        weight = self.weight if self.weight is not None else torch.ones_like(mean)
        bias = self.bias if self.bias is not None else torch.zeros_like(mean)
        return _NormalizeTogether.apply(
            input, weight, bias, mean, (variance + self.eps).rsqrt(), count, self.group
        )  # fmt: skip

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        if len(x):
            variance, mean = torch.var_mean(x.float(), dim=[0, *range(2, x.ndim)], correction=0)
            count = x.numel() // channels
            mine = torch.cat([mean, variance * count, mean.new_tensor([count])])
        else:  # no rows here, and so no statistics: of no weight, where NaN would spread
            mine = torch.zeros(2 * channels + 1, device=x.device)
        parts = dist.all_gather(mine[None], self.group)
        means, deviations, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        return mean, (deviations + counts * (means - mean) ** 2).sum(0) / total, total

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


def convert_sync_bn(
    module: nn.Module, group_size: int | None = None, *, device: torch.device | None = None
) -> nn.Module:
    """Every BatchNorm inside becomes a SyncBatchNorm holding the same parameters and buffers; the names stay.

    group_size  processes that share statistics (SwAV's scripts: 8); None or 0: all. It must divide the world.
    device      on a GPU torch's own SyncBatchNorm is taken, which is faster there.
    Returns the module (a new one when `module` itself is a BatchNorm). One process: returned as it is.
    """
    size = dist.world_size()
    if size == 1:
        return module
    group = None
    if group_size and group_size != size:
        if size % group_size:
            raise UserError(f"sync_bn_group={group_size} does not divide the {size} processes")
        neighbours = tuple(tuple(range(first, first + group_size)) for first in range(0, size, group_size))
        group = dist.groups(neighbours)[dist.rank() // group_size]
    if device is not None and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
    return _convert(module, group)


def _convert(module: nn.Module, group: Any) -> nn.Module:
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        new = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )  # fmt: skip
        new.weight, new.bias = module.weight, module.bias
        new.running_mean, new.running_var = module.running_mean, module.running_var
        new.num_batches_tracked = module.num_batches_tracked
        new.train(module.training)
        new.group = group
        return new
    for name, child in module.named_children():
        converted = _convert(child, group)
        if converted is not child:
            module.add_module(name, converted)
    return module


@torch.no_grad()
def broadcast_batchnorm_(module: nn.Module) -> None:
    """Process 0's running statistics for everyone: without synchronised batch norm each process gathers its own."""
    if dist.world_size() == 1:
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            for buffer in layer.buffers(recurse=False):
                dist.broadcast_(buffer)
