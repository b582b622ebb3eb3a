"""RotNet: predict by how many quarter turns an image was rotated.

Paper     https://arxiv.org/abs/1803.07728
Recipe    zoo/methods/rotnet.yaml: the authors' CIFAR-10 and ImageNet settings; rotnet_digits and rotnet_fashion_mnist
Expect    loss from ln 4 = 1.386 downwards within a hundred steps. On digits it learns its task and little else: 0, 6, 8 and 9
          look alike when turned
Deviates  see DEVIATIONS
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.health import embeddings
from reproduce.method import Deviation, Method, Needs, Numbers, full
from zoo.backbones.base import Backbone

DEVIATIONS = (
    Deviation(
        "rotnet-nominal-lr",
        "a learning rate of 0.1",
        "on ImageNet a table overrides it from the first epoch: 0.01, 0.001, …",
        "the recipe holds the rates that were used",
    ),
)


def rotations(images: Tensor, angles: int = 4) -> Tensor:
    """(B, C, S, S) -> (angles * B, C, S, S): all images turned by 0, then by 360 / angles degrees counter-clockwise, and so on.

    angles 2 or 4, so that nothing is resampled: torch.rot90 only moves pixels.
    """
    return torch.cat([torch.rot90(images, k * 4 // angles, (-2, -1)) for k in range(angles)])


def rotation_loss(logits: Tensor) -> Tensor:
    """Cross entropy of the turn; logits (A * B, A) of images in the order of `rotations`."""
    batch, angles = len(logits) // logits.shape[1], logits.shape[1]
    return F.cross_entropy(logits, torch.arange(angles, device=logits.device).repeat_interleave(batch))


class RotNet(Method):
    """Backbone and one linear layer over the turns; every view appears in all of them.

    angles   4 (quarter turns) or 2 (upright or upside down)
    """

    needs = Needs(divisible=True)
    deviations = DEVIATIONS
    remedies: ClassVar = {"collapse": ("optimizer.lr=0.01", "views.crops.0.scale=[0.7, 1.0]", "views.rotate=0")}

    def __init__(self, backbone: Backbone, *, angles: int = 4) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(backbone.dim, angles)
        self.angles, self.collapsed_loss = angles, math.log(angles)
        self._seen: Tensor | None = None

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        turned = [rotations(view, self.angles) for view in batch.views]
        features = [self.classifier_input(self.backbone(view)) for view in turned]
        self._seen = features[0][: len(batch.views[0])].detach()  # of upright images
        logits = [full(self.head(x)) for x in features]
        return torch.stack([rotation_loss(x) for x in logits]).mean(), {}

    def health(self) -> dict[str, float]:
        return embeddings(None if self._seen is None else F.normalize(self._seen.float(), dim=1))

    def exported(self) -> dict[str, Tensor]:
        return {**super().exported(), **{f"head.{k}": v.detach().cpu() for k, v in self.head.state_dict().items()}}
