"""Semantic segmentation on a pre-trained network: torchvision's FCN, trained with label maps.

Protocols  segment_voc12, segment_scenes
Metrics    miou, pixel_accuracy: over all pixels of the split at the size of their files, those marked 255 left out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from engine import dist
from zoo.schema import Strict

from ..detection import running, segmentation
from ..detection.average_precision import Score
from ..detection.data import Group
from ..detection.train import autocast, shown
from ..detection.views import Count, Views
from ..inputs.features import FeatureRequest, Features
from ..inputs.models import Model
from ..protocol import Kind as Takes
from ..protocol import NotNegative, Positive, Protocol, head_of
from ..result import Result

KIND = Takes(
    classifies=True,
    grid={"lr": Positive, "weight_decay": NotNegative},
    needed=("lr",),
    selects=("none", "val"),
    metric="miou",
    forms=("faithful",),
    layers="none",
)
check = running.check
PRECISIONS = ("float32", "bfloat16", "float16")


class Head(Strict):
    """The head and its training.

    layer     whose map it reads; null: the last (of VGG-16 and AlexNet the last convolution)
    dilated   stages of a ResNet whose stride becomes dilation; norm, freeze, warmup: as in rcnn.py
    """

    layer: str | None = None
    dilated: Annotated[int, Field(ge=0, le=3)] = 2
    norm: Literal["frozen", "batch", "sync"] = "sync"
    freeze: str | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    iterations: Annotated[int, Field(ge=0)] = 30000
    batch: Count = 16
    group: Count | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    warmup: Annotated[int, Field(ge=0)] = 0
    warmup_start: Annotated[float, Field(gt=0, le=1)] = 0.001
    milestones: list[int] = Field(default_factory=lambda: [21000, 27000])
    factor: float = 0.1
    clip: Annotated[float, Field(gt=0)] | None = None
    views: Views = Field(default_factory=lambda: Views(short=list(range(256, 769, 64)), cap=1024, test_short=512))
    test_group: Count = 1


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    """Nothing is kept: it trains on images. Raises UserError when the network does not fit."""
    with torch.device("meta"):
        segmenter(model.blank, 2, head_of(protocol), model)
    return []


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    return running.run(protocol, features, seed, Kind(protocol, features))


def estimate(measurement: Any) -> tuple[str, float]:
    return running.estimate(measurement, Kind)


def segmenter(network: Any, classes: int, head: Any, model: Model) -> nn.Module:
    convolutions = [name for name in network.layers if not name.startswith(("fc", "pool"))]
    layer = head.layer or convolutions[-1]
    freeze = running.freeze_of(head.freeze, model)
    return segmentation.Segmenter(network, layer, classes, head.norm, freeze, head.dilated, head.dropout)


class Kind(running.Kind):
    """What is particular to segmentation."""

    want = "map"

    def build(self, classes: int) -> nn.Module:
        return segmenter(self.features.model.backbone, classes, self.head, self.features.model)

    def losses(self, network: nn.Module, part: Group) -> tuple[Tensor, Mapping[str, Any]]:
        maps = torch.stack([t["map"] for t in part.targets])
        return segmentation.pixel_loss(network(self.images(part)), maps, part.objects), {}

    def parameter_groups(self, network: nn.Module, cell: Mapping[str, float]) -> list[dict[str, Any]]:
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]

    def recipe(self, cell: Mapping[str, float], steps_per_epoch: int) -> dict[str, Any]:
        return running.sgd_by_iterations(self.head, cell, steps_per_epoch)

    @torch.no_grad()
    def measure(self, network: nn.Module, split: str) -> tuple[Score, Any]:
        network.eval()
        items = self.items(split)
        classes = len(items.source.classes) + 1
        tables = torch.zeros(len(items.source), classes, classes, dtype=torch.int64)
        for part in shown(items, self.head.test_group, self.features):
            with autocast(self.features.compute):
                logits = network(self.images(part.to(self.features.compute.device))).float()
            for row, (position, (height, width), file) in enumerate(
                zip(part.index, part.sizes, part.files, strict=True)
            ):
                own = F.interpolate(
                    logits[row : row + 1, :, :height, :width], size=file, mode="bilinear", align_corners=False
                )
                guess = own[0].argmax(0).cpu().numpy()
                truth = np.asarray(items.source.segmentation(position))
                tables[position] = torch.from_numpy(segmentation.confusion(truth, guess, classes))
        kept = dist.all_reduce_(tables).numpy()
        return self.score_kept(items.source, kept), kept

    def score_kept(self, source: Any, kept: np.ndarray) -> Score:
        """kept: int64 (images, classes + 1, classes + 1), confusions with the background first."""
        return segmentation.mean_iou(kept)
