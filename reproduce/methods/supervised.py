"""Supervised training: the reference row that uses the labels.

Recipe    zoo/methods/supervised.yaml
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.method import Method, Needs, Numbers, embed, full
from zoo.backbones.base import Backbone


class Supervised(Method):
    """Backbone and one linear layer over the classes; every view of an image has its label."""

    needs = Needs(labels=True, classes=True, divisible=True)
    remedies: ClassVar = {"collapse": ("optimizer.lr=0.01",)}

    def __init__(self, backbone: Backbone, *, classes: int) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(backbone.dim, classes)

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        logits = full(self.head(self.classifier_input(embed(self.backbone, batch.views))))
        labels = batch.labels.repeat(len(batch.views))
        hits = (logits.detach().argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels), {"accuracy": hits}

    def exported(self) -> dict[str, Tensor]:
        return {**super().exported(), **{f"head.{k}": v.detach().cpu() for k, v in self.head.state_dict().items()}}
