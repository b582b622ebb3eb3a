"""Semantic segmentation: torchvision's fully convolutional head on the last map of a network, and mean IoU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from zoo.backbones.base import Backbone
from zoo.backbones.resnet import ResNet
from zoo.errors import UserError

from .average_precision import Score
from .backbones import Body, Norm
from .data import IGNORED


def dilate(network: Any, stages: int) -> None:
    """The last ``stages`` of a ResNet keep their resolution: what follows a stride is dilated in its place, as torchvision
    does it, so that every second (fourth, …) position holds what the strided network computes."""
    if stages and not isinstance(network, ResNet):
        raise UserError(f"head.dilated={stages}: only ResNets have strides to dilate; head.dilated=0")
    total = len(network.layers) - 1
    dilation = 1
    for number in range(total - stages + 1, total + 1):
        for module in getattr(network, f"layer{number}").modules():
            if isinstance(module, nn.Conv2d):
                if module.kernel_size == (3, 3):
                    own = dilation if module.stride == (2, 2) else 2 * dilation
                    module.dilation = module.padding = (own, own)
                module.stride = (1, 1)
            elif isinstance(module, nn.AvgPool2d):
                module.kernel_size = module.stride = 1
        dilation *= 2


class Segmenter(nn.Module):
    """(B, C, H, W) normalised -> logits (B, classes + 1, H, W), class 0 the background."""

    def __init__(
        self,
        network: Backbone,
        layer: str,
        classes: int,
        norm: Norm,
        freeze: str | None,
        dilated: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.body = Body(network, [layer], norm, freeze)
        dilate(self.body.network, dilated)
        if hasattr(self.body.network, "classifier"):
            self.body.take("classifier")
        self.head = FCNHead(self.body.dims[layer], classes + 1)
        for module in self.head.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def forward(self, x: Tensor) -> Tensor:
        (found,) = self.body(x).values()
        return F.interpolate(self.head(found), size=x.shape[-2:], mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, maps: Tensor, counted: float) -> Tensor:
    """Cross entropy of the pixels that count, divided by ``counted``. logits (B, K, H, W), maps (B, H, W), 255 where none does."""
    return F.cross_entropy(logits.float(), maps.long(), ignore_index=IGNORED, reduction="sum") / counted


def confusion(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): pixels by true and guessed class; 255 in ``truth`` is left out."""
    kept = truth != IGNORED
    pairs = truth[kept].astype(np.int64) * classes + guess[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(tables: np.ndarray) -> Score:
    """miou and pixel accuracy in percent from confusions (N, C, C) by image: pixels of all images are counted together, and the
    mean is over the classes that occur, in truth or guess."""

    def score(positions: np.ndarray) -> dict[str, float]:
        total = tables[positions].sum(0).astype(np.float64)
        hits = np.diag(total)
        union = total.sum(0) + total.sum(1) - hits
        seen = union > 0
        if not seen.any():
            return {}
        return {
            "miou": 100 * float((hits[seen] / union[seen]).mean()),
            "pixel_accuracy": 100 * float(hits.sum() / total.sum()),
        }

    return score
