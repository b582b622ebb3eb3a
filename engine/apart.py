"""Parameters that only some processes hold: a checkpoint has all of them, and each process takes back its own.

A method names them (``held_apart``), over all processes. Their gradients are not averaged over all processes; they and what the
optimiser remembers of them are brought to process 0, one tensor at a time, when a checkpoint is written. Since a checkpoint does not
depend on who held what, any number of processes can go on from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn

from . import dist


def names(method: Any) -> frozenset[str]:
    """Of ``method``: empty for most."""
    found = getattr(method, "held_apart", None)
    return frozenset() if found is None else found()


def whole(method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of the method and of its optimiser, complete on process 0, as if it held everything. Called on every process.

    Without parameters apart, both are torch's own; with them, the optimiser's has its tensors by name, since positions differ.
    """
    model, inner, held_apart = method.state_dict(), optimizer.state_dict(), names(method)
    if not held_apart:
        return model, inner
    flat = _order(method, optimizer)
    own = {flat[position]: tensors for position, tensors in inner["state"].items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in inner["param_groups"]]
    return (
        {**model, **gathered(model, held_apart)},
        {"named": {**own, **gathered(own, held_apart)}, "param_groups": groups},
    )


def take_model(method: nn.Module, model: Mapping[str, Any]) -> None:
    """Give a method what it holds here of the first that ``whole`` returned."""
    others = names(method) - method.state_dict().keys()
    method.load_state_dict({name: value for name, value in model.items() if name not in others})


def take_optimizer(method: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give the optimiser of a method what belongs to its parameters of the second that ``whole`` returned."""
    if names(method):
        groups, first = [], 0
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
            groups.append({**saved, "params": list(range(first, first + len(group["params"])))})
            first += len(group["params"])
        order, named = _order(method, optimizer), state["named"]
        state = {"state": {i: named[name] for i, name in enumerate(order) if name in named}, "param_groups": groups}
    optimizer.load_state_dict(dict(state))


def _order(method: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters, by position."""
    known = {id(parameter): name for name, parameter in method.named_parameters()}
    return [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def gathered(values: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """On process 0 the values of ``wanted`` names, each from the first process that has it, on the CPU if from another; else {}.

    values  of this process: tensors, or dicts of tensors and plain values. Names that no process has are left out.
    """
    wanted, rank = sorted(wanted), dist.rank()
    if dist.world_size() == 1:
        return {name: values[name] for name in wanted if name in values}
    held: list[list[str]] = [[] for _ in range(dist.world_size())]
    td.all_gather_object(held, [name for name in wanted if name in values])
    found = {}
    for name in wanted:
        holder = next((r for r, has in enumerate(held) if name in has), None)
        if holder is None:
            continue
        if rank == holder == 0:
            found[name] = values[name]
        elif rank == holder:
            _send(values[name])
        elif rank == 0:
            found[name] = _receive(holder)
    return found


def _send(value: Any) -> None:
    parts = {"": value} if isinstance(value, Tensor) else dict(value)
    plain = {k: (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else [v] for k, v in parts.items()}
    td.send_object_list([plain], dst=0)
    for part in parts.values():
        if isinstance(part, Tensor):
            td.send(part.detach().cpu().contiguous(), dst=0)


def _receive(source: int) -> Any:
    box: list[Any] = [None]
    td.recv_object_list(box, src=source)
    parts: dict[str, Any] = {}
    for key, said in box[0].items():
        if isinstance(said, list):
            (parts[key],) = said
        else:
            parts[key] = torch.empty(said[0], dtype=said[1])
            td.recv(parts[key], src=source)
    return parts.get("", parts)


def scaler(method: Any, device: str, *, enabled: bool) -> torch.amp.GradScaler:
    """A scaler of losses; where processes hold different parameters, one that skips a step on all of them or on none."""
    if enabled and dist.world_size() > 1 and names(method):
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device)
    return torch.amp.GradScaler(device, enabled=enabled)
