"""A training batch as the loop hands it to a method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def on(t: Tensor, device: torch.device | str) -> Tensor:
    """`t` on `device`; from main memory to a GPU through pinned memory, so that the host goes on while it is copied."""
    if t.device.type == "cpu" and torch.device(device).type == "cuda":
        t = t.pin_memory()
    return t.to(device, non_blocking=True) if t.device.type == "cpu" else t.to(device)


@dataclass
class Batch:
    """This process's part of a global batch.

    index   (B,) int64 positions in the data set, always in main memory, where tables that are asked by position are
    views   one (B, C, H, W) tensor per crop, large crops first; row b of every view shows image index[b]
    labels  (B,) int64 or None; methods that learn without labels never look
    epoch   the epoch that these views were drawn for
    parts   the same batch in pieces of equal size, to be computed one after the other; None: at once
    """

    index: Tensor
    views: list[Tensor] = field(default_factory=list)
    labels: Tensor | None = None
    epoch: int = 0
    parts: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def divided(self, count: int) -> Batch:
        """The same batch, with ``parts``: ``count`` of them, which must divide its length."""
        rows = [slice(at, at + len(self) // count) for at in range(0, len(self), len(self) // count)]
        pieces = [
            replace(
                self,
                index=self.index[r],
                views=[v[r] for v in self.views],
                labels=None if self.labels is None else self.labels[r],
            )
            for r in rows
        ]
        return replace(self, parts=pieces)

    def to(self, device: torch.device | str, channels_last: bool = False) -> Batch:
        """The same batch, views and labels on `device`; 4-d views in channels-last memory order if asked, else in contiguous order."""
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def move(t: Tensor) -> Tensor:
            return on(t, device).to(memory_format=layout if t.ndim == 4 else torch.preserve_format)

        labels = None if self.labels is None else on(self.labels, device)
        return replace(self, views=[move(v) for v in self.views], labels=labels)
