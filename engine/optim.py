"""Optimisers and learning-rate schedules: SwAV's LARC, PIC's LARS, SGD, AdamW; every schedule is a plain array."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, choices


class _Uncompiled:
    """torch's methods without the wrapper that hides them from torch.compile: its first call imports torch._dynamo, 1.4 s of CPU in
    every process that trains, and nothing here is compiled. The arithmetic is torch's, to the bit."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class SGD(_Uncompiled, torch.optim.SGD):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class AdamW(_Uncompiled, torch.optim.AdamW):
    """torch's, by its fused kernel where there is one: a quarter of the time of the loop over tensors on small networks (benchmarks/adamw.py), and other last bits."""

    def __init__(self, params: Any, lr: float, **settings: Any) -> None:
        super().__init__(params, lr=lr, **settings)
        tensors = [p for group in self.param_groups for p in group["params"]]
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in tensors)
        for group in self.param_groups:
            group["fused"] = fused

    _step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One step. The fused kernel walks through memory and reads no strides: gradients and moments take their parameter's layout first."""
        for group in self.param_groups:
            for p in group["params"] if group["fused"] else ():
                if p.grad is not None and p.grad.stride() != p.stride():
                    p.grad = torch.empty_like(p).copy_(p.grad)
                state = self.state.get(p, {})
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in state and state[name].stride() != p.stride():
                        state[name] = torch.empty_like(p).copy_(state[name])
        return self._step(closure)


class LARC(SGD):
    """SGD whose gradients are scaled tensor by tensor (You et al. 2017, as apex's LARC with clip=False, which SwAV uses).

    g <- a (g + wd p) with a = trust |p| / (|g| + wd |p| + eps). Where |p| or |g| is 0 the gradient is left alone and not
    decayed. Parameters without a gradient are skipped. Groups with `no_adapt` take plain SGD with weight decay.
    Gradients are changed in place; under a GradScaler they must be unscaled before.
    """

    def __init__(self, params: Any, lr: float, *, trust: float = 0.001, eps: float = 1e-8, **sgd: Any) -> None:
        super().__init__(params, lr=lr, **sgd)
        self.trust, self.eps = trust, eps

    def _selected(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors to be scaled, and tensors that are neither scaled nor decayed."""
        return ([] if group.get("no_adapt") else [p for p in group["params"] if p.grad is not None]), []

    def _factors(self, p: list[Tensor], g: list[Tensor], decay: float) -> tuple[Tensor, Tensor]:
        """Per tensor: the factor of (g + decay p), and whether it applies."""
        p_norm, g_norm = (torch.stack([n.float() for n in torch._foreach_norm(ts)]) for ts in (p, g))
        return self.trust * p_norm / (g_norm + decay * p_norm + self.eps), (p_norm > 0) & (g_norm > 0)

    def _scale(self, params: list[Tensor], decay: float) -> None:
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        factor, applies = self._factors(params, grads, decay)
        # (g + decay p) a where it applies, g elsewhere; as multipliers, so that no tensor waits for the host.
        on_g = torch.where(applies, factor, torch.ones_like(factor))
        on_p = torch.where(applies, factor * decay, torch.zeros_like(factor))
        torch._foreach_mul_(grads, list(on_g.unbind()))
        if decay:
            torch._foreach_add_(grads, torch._foreach_mul(params, list(on_p.unbind())))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            params, plain = self._selected(group)
            if params:
                self._scale(params, group["weight_decay"])
            if params or plain:
                group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


class LARS(LARC):
    """LARC's relative as PIC and SimCLR use it: decay first, then a trust ratio on the decayed gradient.

    g <- g + wd p, then g <- g trust |p| / (|g| + eps) if neither norm is 0. One-dimensional parameters (biases, batch
    norm) are neither decayed nor scaled, whatever their group says.
    """

    def _selected(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        with_grad = [p for p in group["params"] if p.grad is not None]
        if group.get("no_adapt"):
            return [], []
        return [p for p in with_grad if p.ndim > 1], [p for p in with_grad if p.ndim <= 1]

    def _scale(self, params: list[Tensor], decay: float) -> None:
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        if decay:
            torch._foreach_add_(grads, params, alpha=decay)
        factor, applies = self._factors(params, grads, 0.0)
        torch._foreach_mul_(grads, list(torch.where(applies, factor, torch.ones_like(factor)).unbind()))


_OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], tuple[str, ...]]] = {
    "sgd": (SGD, ("momentum", "weight_decay", "nesterov")),
    "larc": (LARC, ("momentum", "weight_decay", "nesterov", "trust", "eps")),
    "lars": (LARS, ("momentum", "weight_decay", "nesterov", "trust", "eps")),
    "adamw": (AdamW, ("betas", "weight_decay", "eps")),
}


def build(spec: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that `spec` names, over parameter groups.

    spec    {name: sgd|larc|lars|adamw, lr, and that optimiser's settings}; null means the optimiser's default.
    groups  {params, and optionally: lr_scale (factor on the scheduled rate), no_adapt (no LARC/LARS scaling), weight_decay,
            momentum, nesterov}. Empty groups are dropped.
    Raises UserError for an unknown name or a setting that this optimiser does not have.
    """
    name = spec.get("name")
    if name not in _OPTIMIZERS:
        raise UserError(f"optimizer.name={name}: unknown{choices(str(name), _OPTIMIZERS)}")
    kind, known = _OPTIMIZERS[name]
    settings = {key: value for key, value in spec.items() if key not in ("name", "lr") and value is not None}
    for key in settings:
        if key not in known:
            raise UserError(f"optimizer.{key}: {name} has no such setting{choices(key, known)}")
    lr = float(spec["lr"])
    filled = [{"lr_scale": 1.0, "no_adapt": False, **group, "params": list(group["params"])} for group in groups]
    filled = [group for group in filled if group["params"]]
    for group in filled:
        unknown = set(group) - {"params", "lr_scale", "no_adapt", "weight_decay", "momentum", "nesterov"}
        if unknown:
            raise ValueError(f"a parameter group has unknown entries {sorted(unknown)}")
    return kind(filled, lr=lr, **settings)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The scheduled rate times each group's lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = float(lr) * group.get("lr_scale", 1.0)


# -- laws of a rate over positions (steps, or epochs): for schedules here, and for many heads at once in evaluations/probes ------


def _warmup(per_epoch: int, total: int, warmup_epochs: float) -> int:
    return min(round(warmup_epochs * per_epoch), total)


def half_cosine(at: np.ndarray, steps: int, lr: Any, final_lr: float = 0.0) -> np.ndarray:
    """The rate at positions `at` of half a cosine from lr towards final_lr, which position `steps` would have."""
    return final_lr + 0.5 * (lr - final_lr) * (1 + np.cos(math.pi * at / max(steps, 1)))


def falling(at: np.ndarray, edges: Sequence[float], lr: Any, factor: float) -> np.ndarray:
    """The rate at positions `at`: lr times factor to the number of edges reached."""
    reached = np.searchsorted(np.asarray(edges, dtype=np.float64), at, side="right")
    return lr * np.power(float(factor), reached.astype(np.float64))


def decaying(at: np.ndarray, lr: Any, weight_decay: Any) -> np.ndarray:
    """lr / sqrt(1 + lr wd t) at steps t (Bottou's SGD)."""
    return lr / np.sqrt(1 + lr * weight_decay * at)


def listed(at: np.ndarray, edges: Sequence[float], rates: Sequence[float]) -> np.ndarray:
    """rates[i] at positions `at` before edges[i], the last rate from the last edge on."""
    return np.asarray(rates, dtype=np.float64)[np.searchsorted(np.asarray(edges, dtype=np.float64), at, side="right")]


# -- schedules: each returns float64 (total,), the rate of every step. `per_epoch` is the number of steps of an epoch ------


def constant(per_epoch: int, total: int, *, lr: float) -> np.ndarray:
    """The same rate throughout (DeepCluster, DeeperCluster)."""
    return np.full(total, lr, dtype=np.float64)


def warmup_cosine(
    per_epoch: int, total: int, *, lr: float, warmup_epochs: float = 0, start_lr: float = 0.0, final_lr: float = 0.0
) -> np.ndarray:
    """SwAV: a line from start_lr to lr, end included, then half a cosine; so lr is used twice."""
    warm = _warmup(per_epoch, total, warmup_epochs)
    return np.concatenate(
        [np.linspace(start_lr, lr, warm), half_cosine(np.arange(total - warm), total - warm, lr, final_lr)]
    )


def multiplied_cosine(
    per_epoch: int,
    total: int,
    *,
    lr: float,
    warmup_epochs: float = 0,
    warmup_multiplier: float = 100.0,
    final_lr: float = 1e-6,
) -> np.ndarray:
    """PIC: a line from lr / warmup_multiplier, which reaches lr where half a cosine begins."""
    warm = _warmup(per_epoch, total, warmup_epochs)
    line = np.linspace(lr / warmup_multiplier, lr, warm, endpoint=False)
    return np.concatenate([line, half_cosine(np.arange(total - warm), total - warm, lr, final_lr)])


def step(
    per_epoch: int,
    total: int,
    *,
    lr: float,
    milestones: Sequence[float],
    factor: float = 0.1,
    warmup_epochs: float = 0,
    warmup_multiplier: float = 100.0,
) -> np.ndarray:
    """lr times factor to the number of milestones (epochs from the start) reached; before it PIC's warm-up, if any."""
    rates = falling(np.arange(total), [round(epoch * per_epoch) for epoch in milestones], lr, factor)
    warm = _warmup(per_epoch, total, warmup_epochs)
    rates[:warm] = np.linspace(lr / warmup_multiplier, lr, warm, endpoint=False)
    return rates


def epoch_cosine(per_epoch: int, total: int, *, lr: float, final_lr: float = 0.0) -> np.ndarray:
    """Half a cosine that moves between epochs only (MoCo v2, SwAV's linear probe)."""
    epochs = math.ceil(total / per_epoch)
    return np.repeat(half_cosine(np.arange(epochs), epochs, lr, final_lr), per_epoch)[:total]


def table(
    per_epoch: int, total: int, *, lr: float, milestones: Sequence[float], rates: Sequence[float]
) -> np.ndarray:  # fmt: skip
    """RotNet: rates[i] until epoch milestones[i], the last rate ever after; lr itself is not used."""
    return listed(np.arange(total), [round(epoch * per_epoch) for epoch in milestones[:-1]], rates)


def bottou(per_epoch: int, total: int, *, lr: float, weight_decay: float) -> np.ndarray:
    """lr / sqrt(1 + lr wd t), t = step: the linear probes of DeepCluster and DeeperCluster."""
    return decaying(np.arange(total, dtype=np.float64), lr, weight_decay)


_SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    law.__name__: law for law in (constant, warmup_cosine, multiplied_cosine, epoch_cosine, step, table, bottou)
}
_LENGTH = ("name", "epochs", "images")  # how long to train: whoever counts the steps reads these


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a schedule with their defaults, None where it has none: its signature, but for the rate."""
    own = inspect.signature(function).parameters.values()
    return {
        p.name: None if p.default is p.empty else p.default for p in own if p.kind is p.KEYWORD_ONLY and p.name != "lr"
    }


def schedule(spec: Mapping[str, Any], steps_per_epoch: int, total_steps: int, *, lr: float) -> np.ndarray:
    """float64 (total_steps,): the learning rate of each step.

    spec  {name, epochs | images (not read here), and that schedule's settings}; null means the schedule's default.
    lr    the optimiser's base rate.
    Raises UserError for an unknown name, a missing setting, or one that this schedule does not have.
    """
    name = spec.get("name")
    if name not in _SCHEDULES:
        raise UserError(f"schedule.name={name}: unknown{choices(str(name), _SCHEDULES)}")
    function = _SCHEDULES[name]
    known = settings_of(function)
    settings = {key: value for key, value in spec.items() if key not in _LENGTH and value is not None}
    for key in settings:
        if key not in known:
            raise UserError(f"schedule.{key}: {name} has no such setting{choices(key, known)}")
    for key, default in known.items():
        if default is None and key not in settings:
            raise UserError(f"schedule.{key}: {name} needs it")
    return function(steps_per_epoch, total_steps, lr=lr, **settings)


def gentler(recipe: Mapping[str, Any], paths: Sequence[str], steps_per_epoch: int, total_steps: int) -> list[str]:
    """`path=value` words for a run that diverged: a tenth of the learning rates at `paths`, a longer warm-up, full precision."""
    words = []
    for path in paths:
        value: Any = recipe
        for name in path.split("."):
            value = value[name]
        words += [f"{path}={value / 10:g}"] if value else []
    warmup = recipe["schedule"].get("warmup_epochs")
    longer = 2 * warmup if warmup else 1
    if warmup is not None and longer * steps_per_epoch < total_steps:
        words.append(f"schedule.warmup_epochs={longer:g}")
    return words + ([] if recipe["precision"] == "float32" else ["precision=float32"])
