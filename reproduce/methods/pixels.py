"""Pixels: no network at all. The reference row that every learned feature has to beat.

Recipe    zoo/methods/pixels.yaml, zero epochs, backbone `pixels`
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reproduce.limits import Limit
from reproduce.method import Method, Numbers
from zoo.errors import UserError


class Pixels(Method):
    """The flattened image; nothing to learn."""

    limits = tuple(
        Limit(f"schedule.{budget}", "is", 0, because="a reference row is not trained")
        for budget in ("epochs", "images")
    )

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        raise UserError("pixels is a reference row without parameters: schedule.epochs must be 0")
