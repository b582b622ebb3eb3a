"""DETR on a pre-trained network (Carion et al. 2020; SwAV's and Un-Mix's transfer).

Protocols  detr_coco (SwAV's settings: 300 epochs, 64 images a step, rates 1e-4 and 5e-5), detr_scenes
Metrics    ap, ap50, ap75, aps, apm, apl and recalls (COCO), all queries of every image, no threshold
The network is the zoo's, its batch norms are constants, stem and first stage stay as they are. Model, losses and what differs
from transformers' defaults: evaluations/detection/detr.py. Views: detection/views.py; groups: detection/data.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import box_convert

from zoo.schema import Strict

from ..detection import average_precision as scores
from ..detection import detr, optional, running
from ..detection.backbones import Body
from ..detection.data import Group
from ..detection.train import detect
from ..detection.views import Count, Crop, Views
from ..inputs.features import FeatureRequest, Features
from ..inputs.models import Model
from ..protocol import Kind as Takes
from ..protocol import NotNegative, Positive, Protocol, head_of
from ..result import Result

KIND = Takes(
    classifies=True,
    grid={"lr": Positive, "lr_backbone": NotNegative, "weight_decay": NotNegative},
    needed=("lr",),
    selects=("none", "val"),
    metric="ap",
    forms=("faithful",),
    layers="none",
)
check = running.check
PRECISIONS = ("float32", "bfloat16", "float16")


class Head(Strict):
    """The transformer and its training.

    batch    images of a step, in groups of ``group``: each has the losses of one device of the authors
    freeze   last layer that does not train, "last": none trains, null: all do; norm: as in rcnn.py
    milestones   epochs after which the rates are times ``factor``
    """

    d_model: Count = 256
    encoder_layers: Count = 6
    decoder_layers: Count = 6
    heads: Count = 8
    ffn: Count = 2048
    queries: Count = 100
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    freeze: str | None = "res2"
    epochs: Annotated[int, Field(ge=0)] = 300
    milestones: list[int] = Field(default_factory=lambda: [200])
    factor: float = 0.1
    batch: Count = 64
    group: Count = 4
    clip: Annotated[float, Field(gt=0)] | None = 0.1
    views: Views = Field(
        default_factory=lambda: Views(
            short=list(range(480, 801, 32)), cap=1333, test_short=800, crop=Crop(), rounding="detr"
        )
    )
    test_group: Count = 1


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    """Nothing is kept: it trains on images. Raises UserError when transformers is missing or the network does not fit."""
    head = head_of(protocol)
    for module in ("transformers", "faster_coco_eval"):
        optional(module, protocol.id)
    with torch.device("meta"):
        Body(model.blank, model.blank.layers[-1:], "frozen", running.freeze_of(head.freeze, model))
    return []


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    return running.run(protocol, features, seed, Kind(protocol, features))


def estimate(measurement: Any) -> tuple[str, float]:
    return running.estimate(measurement, Kind)


class Kind(running.Kind):
    """What is particular to DETR."""

    def __init__(self, protocol: Protocol, features: Features) -> None:
        super().__init__(protocol, features)
        self.criterion: detr.Criterion | None = None

    def build(self, classes: int) -> nn.Module:
        network = self.features.model.backbone
        body = Body(network, network.layers[-1:], "frozen", running.freeze_of(self.head.freeze, self.features.model))
        self.criterion = detr.Criterion(classes).to(self.features.compute.device)
        return detr.Detr(body, classes, self.head.model_dump())

    def losses(self, network: nn.Module, part: Group) -> tuple[Tensor, Mapping[str, Any]]:
        assert self.criterion is not None
        logits, boxes = network(self.images(part), part.mask)
        total, found = self.criterion(
            logits, boxes, [fractions(t, s) for t, s in zip(part.targets, part.sizes, strict=True)], part.objects
        )
        return total, {name: value.detach() for name, value in found.items()}

    def parameter_groups(self, network: nn.Module, cell: Mapping[str, float]) -> list[dict[str, Any]]:
        """The backbone has a rate of its own; everything that trains is decayed, norms and biases too."""
        body = {id(p) for m in network.modules() if isinstance(m, Body) for p in m.parameters()}
        trained = [p for p in network.parameters() if p.requires_grad]
        share = cell.get("lr_backbone", cell["lr"]) / cell["lr"]
        return [
            {"params": [p for p in trained if id(p) not in body]},
            {"params": [p for p in trained if id(p) in body], "lr_scale": share},
        ]

    def recipe(self, cell: Mapping[str, float], steps_per_epoch: int) -> dict[str, Any]:
        return {
            "optimizer": {"name": "adamw", "lr": cell["lr"], "weight_decay": cell["weight_decay"]},
            "schedule": {"name": "step", "milestones": list(self.head.milestones), "factor": self.head.factor},
        }

    def measure(self, network: nn.Module, split: str) -> tuple[scores.Score, Any]:
        items = self.items(split)
        found = detect(network, lambda part: self.answer(network, part), items, self.head.test_group, self.features)
        return self.score_kept(items.source, found.table), found.table

    def score_kept(self, source: Any, kept: np.ndarray) -> scores.Score:
        return scores.coco_score(scores.coco_truth(source), scores.coco_results(scores.Detections.of(kept)))

    def answer(self, network: nn.Module, part: Group) -> Sequence[Mapping[str, Any]]:
        logits, boxes = network(self.images(part), part.mask)
        sizes = torch.tensor(part.files, device=logits.device)
        found = zip(*detr.predictions(logits[-1], boxes[-1], sizes), strict=True)
        return [{"scores": s, "labels": k, "boxes": b} for s, k, b in found]


def fractions(target: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """DETR's form of a target: centre, width and height as fractions of the image (height, width)."""
    scale = target["boxes"].new_tensor([size[1], size[0]] * 2)
    return {"class_labels": target["labels"], "boxes": box_convert(target["boxes"] / scale, "xyxy", "cxcywh")}
