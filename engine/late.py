"""Numbers of the training device that the host reads a step later, when they have long been there: it never waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Late:
    """Holds the numbers of one step until they are read, or until those of the next step come."""

    def __init__(self) -> None:
        self._held: tuple[int, Tensor, Any] | None = None

    def put(self, step: int, values: Tensor) -> tuple[int, list[float]] | None:
        """Keep `values` (n,) of `step`; returns those of the step before, as `read` does."""
        host, arrived = values, None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        before, self._held = self.read(), (step, host, arrived)
        return before

    def read(self) -> tuple[int, list[float]] | None:
        """(step, values) of what is held, once; None if nothing is."""
        if self._held is None:
            return None
        (step, values, arrived), self._held = self._held, None
        if arrived is not None:
            arrived.synchronize()
        return step, values.tolist()
