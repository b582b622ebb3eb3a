"""Counts of operations, copies and waits on a device, taken on torch's `meta` device: nothing is computed there, and reading a value is an error."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::equal",
    "aten::item",
}


class Watched(TorchDispatchMode):
    """Within it: operations that run on the device (by name), bytes copied to it, and operations that make the host wait for it.

    device  its type; "cpu" counts the same things where they can be computed, so that a test sees what would wait.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device, self.launches, self.waits, self.bytes = device, dict[str, int](), list[str](), 0

    @property
    def count(self) -> int:
        return sum(self.launches.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, given)) if isinstance(a, torch.Tensor)]
        there = [t for t in tensors if t.device.type == self.device]
        name, target = function._schema.name, torch.device(given.get("device") or "cpu").type
        copied = name == "aten::_to_copy"
        arrives = copied and target == self.device and not there
        leaves = copied and there and torch.device(given.get("device") or self.device).type != self.device
        index = name.startswith("aten::index")
        elsewhere = there and index and any(t.device.type != self.device for t in tensors)
        masked = index and any(t.dtype == torch.bool for t in there if t is not args[0])
        blocking = arrives and tensors[0].numel() and not given.get("non_blocking")
        if blocking or elsewhere or (there and (name in WAITS or masked or leaves)):
            self.waits.append(name)
        out = function(*args, **given)
        if arrives:
            self.bytes += out.numel() * out.element_size()
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        on_device = there or any(t.device.type == self.device for t in made)
        if on_device and not arrives and not function.is_view and name != "aten::squeeze_":
            self.launches[name] = self.launches.get(name, 0) + 1
        return out
