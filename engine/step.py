"""One update of the weights: forward, backward, the average over processes, the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from . import apart, batchnorm, dist, layout, optim
from .dist import World

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Update:
    """A method with its optimiser, on its device, in its memory order and precision.

    recipe   read here: optimizer, precision, channels_last, sync_bn, sync_bn_group
    """

    def __init__(self, method: Any, recipe: Mapping[str, Any], world: World) -> None:
        self.method, self.recipe, self.world = method, recipe, world
        self.scaler = apart.scaler(method, world.device.type, enabled=recipe["precision"] == "float16")
        self._optimizer: torch.optim.Optimizer | None = None
        self._generation: int | None = None
        self._place()

    def __call__(self, batch: Any, step: int, rate: float) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Update the weights with the learning rate of this step; returns this process's loss and its numbers for the log."""
        optimizer = self.optimizer
        optim.set_lr(optimizer, rate)
        loss, logs = self._backward(batch, step)
        self.scaler.unscale_(optimizer)  # before LARC and LARS, which look at the size of gradients
        self.method.after_backward(step)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss, logs

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Rebuilt when the method says that its parameters are others; those that stayed keep their momentum."""
        if self._optimizer is None or self._generation != self.method.generation:
            old = {} if self._optimizer is None else self._optimizer.state
            self._generation = self.method.generation
            self._place()
            self._optimizer = optim.build(self.recipe["optimizer"], self.method.param_groups())
            kept = [p for group in self._optimizer.param_groups for p in group["params"] if p in old]
            self._optimizer.state.update({p: old[p] for p in kept})
            unused = getattr(getattr(self.method, "needs", None), "unused_parameters", False)
            others = [f"method.{name}" for name in sorted(apart.names(self.method))]
            self.objective = dist.data_parallel(_Objective(self.method), unused_parameters=unused, apart=others)
        return self._optimizer

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: model, optimizer, scaler; complete on process 0. Called on every process."""
        model, optimizer = apart.whole(self.method, self.optimizer)
        return {"model": model, "optimizer": optimizer, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        apart.take_model(self.method, state["model"])
        apart.take_optimizer(self.method, self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _place(self) -> None:
        """The method, its new parts included, on its device, in its memory order, normalising as the recipe says."""
        if self.recipe["sync_bn"]:
            batchnorm.convert_sync_bn(self.method, self.recipe.get("sync_bn_group"), device=self.world.device)
        self.memory = layout.memory_format(self.method, self.recipe["channels_last"])
        self.method.to(self.world.device, memory_format=self.memory).train()

    def _backward(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Gradients of this process's loss, and the loss. A batch with ``parts`` is computed one part after the other, so
        that only one is held in memory: the loss is the mean over them, gradients meet the other processes' with the last.
        """
        parts = getattr(batch, "parts", None) or [batch]
        losses, logs = [], []
        for number, part in enumerate(parts, 1):
            part = part.to(self.world.device, channels_last=self.memory is torch.channels_last)
            with nullcontext() if number == len(parts) else dist.unsynchronised(self.objective):
                with self._autocast():
                    loss, found = self.objective(part, step)
                share = loss if len(parts) == 1 else loss / len(parts)
                self.scaler.scale(share).backward()
            losses.append(loss.detach())
            logs.append(found)
        if len(parts) == 1:
            return losses[0], logs[0]
        means = {name: sum(found[name] for found in logs) / len(logs) for name in logs[0]}
        return torch.stack([loss.float() for loss in losses]).mean(), means

    def _autocast(self) -> Any:
        kind = PRECISIONS[self.recipe["precision"]]
        return nullcontext() if kind is torch.float32 else torch.autocast(self.world.device.type, kind)


class _Objective(nn.Module):
    """A method whose forward is its loss, as DistributedDataParallel wants it."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        return self.method.loss(batch, step)
