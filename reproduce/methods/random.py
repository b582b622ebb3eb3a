"""Random: the backbone as it was initialised. The reference row that training has to beat.

Recipe    zoo/methods/random.yaml, zero epochs
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reproduce.limits import Limit
from reproduce.method import Method, Numbers
from zoo.errors import UserError


class Random(Method):
    """A backbone and nothing to learn."""

    limits = tuple(
        Limit(f"schedule.{budget}", "is", 0, because="a reference row is not trained")
        for budget in ("epochs", "images")
    )

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        raise UserError("random is the untrained reference row: schedule.epochs must be 0")
