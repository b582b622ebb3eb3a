"""Fast, Faster and Mask R-CNN on a pre-trained network, trained with boxes (and masks).

Protocols  detect_voc0712_c4, detect_voc07_fpn, detect_coco_c4_1x, detect_coco_fpn_1x, voc07_detection_all, detect_scenes
Metrics    ap, ap50, ap75, aps, apm, apl (COCO); mask_ap, mask_ap50, …; or, with head.score=voc, ap, ap50, ap75 by VOC's
           eleven points and the same with _area; map: ap50 under the name that VOC07's tables have
The detectors and what differs from detectron2: evaluations/detection/rcnn.py. Sizes and views: detection/views.py; groups: detection/data.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.schema import Strict

from ..detection import average_precision as scores
from ..detection import optional, rcnn, running
from ..detection.data import Group, Items
from ..detection.proposals import SelectiveSearch
from ..detection.train import detect
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
    metric="ap",
    forms=("faithful",),
    layers="none",
)
check = running.check
PRECISIONS = ("float32", "bfloat16", "float16")


class Kept(Strict):
    """Proposals of an image before and after non-maximum suppression."""

    training: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [2000, 1000])
    testing: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [1000, 1000])


class Head(Strict):
    """The detector and its training.

    detector    fpn, c4 (ResNets), fast (VGG-16, AlexNet); masks: Mask R-CNN
    levels      fpn: layers of the pyramid; null: the last four
    proposals   rpn, or selective_search: the .mat files that come with Fast R-CNN, beside the data
    norm        batch norms of the network: frozen, batch (each process for itself) or sync; extra_norm: MoCo's behind res5;
                pyramid_norm: batch norms in the pyramid; precise_norm: steps whose statistics replace the running ones
    freeze      last layer that does not train (by network where one name does not fit all), "last": none trains, null: all do
    fc          fast: fc6 and fc7 train as they come, stay frozen, or start fresh
    batch       images of a step, in groups of ``group``; null: as many as one process has in a step
    iterations  0: the untrained detector
    warmup      iterations from ``warmup_start`` times the rate; milestones: iterations after which it is times ``factor``
    difficult   VOC's difficult objects are learned; empty: images without objects are shown
    rounded     VOC scores of rounded boxes and scores, as detectron2's evaluator has them
    kept        proposals before and after non-maximum suppression; regions: that a head learns from, per image
    """

    detector: Literal["fpn", "c4", "fast"] = "fpn"
    levels: list[str] | None = None
    masks: bool = False
    proposals: Literal["rpn", "selective_search"] = "rpn"
    score: Literal["coco", "voc"] = "coco"
    rounded: bool = False
    norm: Literal["frozen", "batch", "sync"] = "frozen"
    extra_norm: bool = False
    pyramid_norm: bool = False
    precise_norm: Annotated[int, Field(ge=0)] = 0
    freeze: str | dict[str, str] | None = None
    fc: Literal["train", "frozen", "fresh"] = "train"
    iterations: Annotated[int, Field(ge=0)] = 90000
    batch: Count = 16
    group: Count | None = 2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    warmup: Annotated[int, Field(ge=0)] = 1000
    warmup_start: Annotated[float, Field(gt=0, le=1)] = 0.001
    milestones: list[int] = Field(default_factory=lambda: [60000, 80000])
    factor: float = 0.1
    clip: Annotated[float, Field(gt=0)] | None = None
    decay_norms: bool = False
    caffe_biases: bool = False
    difficult: bool = True
    empty: bool = False
    views: Views = Field(default_factory=lambda: Views(short=[640, 672, 704, 736, 768, 800], cap=1333, test_short=800))
    anchors: list[list[int]] = Field(default_factory=lambda: [[32], [64], [128], [256], [512]])
    ratios: list[float] = Field(default_factory=lambda: [0.5, 1.0, 2.0])
    canonical: Count = 224
    channels: Count = 256
    box_features: Count = 1024
    kept: Kept = Field(default_factory=Kept)
    regions: Count = 512
    positive: Annotated[float, Field(gt=0, le=1)] = 0.25
    score_threshold: float = 0.05
    nms: float = 0.5
    detections: Count = 100
    test_group: Count = 1


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    """Nothing is kept: it trains on images. Raises UserError when the detector does not fit the network, or a library lacks."""
    if head_of(protocol).score == "coco":
        optional("faster_coco_eval", protocol.id)
    if head_of(protocol).masks:
        optional("pycocotools", protocol.id)
    with torch.device("meta"):
        rcnn.build(model.blank, 2, head_of(protocol), running.freeze_of(head_of(protocol).freeze, model))
    return []


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    return running.run(protocol, features, seed, Kind(protocol, features))


def estimate(measurement: Any) -> tuple[str, float]:
    return running.estimate(measurement, Kind)


class Kind(running.Kind):
    """What is particular to this family of detectors."""

    divisor = 32

    def __init__(self, protocol: Protocol, features: Features) -> None:
        super().__init__(protocol, features)
        self.want = "masks" if self.head.masks else "boxes"

    def build(self, classes: int) -> nn.Module:
        freeze = running.freeze_of(self.head.freeze, self.features.model)
        return rcnn.build(self.features.model.backbone, classes, self.head, freeze)

    def items(self, split: str, seed: int = 0) -> Items:
        found = super().items(split, seed)
        if self.head.proposals == "selective_search":
            found.proposals = SelectiveSearch(found.source, split)
        return found

    def losses(self, network: nn.Module, part: Group) -> tuple[Tensor, Mapping[str, Any]]:
        targets = [{**t, "labels": t["labels"] + 1} for t in part.targets]
        _, found = network(self.images(part), part.sizes, targets, regions_of(part))
        return torch.stack(list(found.values())).sum(), {name: value.detach() for name, value in found.items()}

    def parameter_groups(self, network: nn.Module, cell: Mapping[str, float]) -> list[dict[str, Any]]:
        """Norms are not decayed unless ``decay_norms``; caffe_biases: twice the rate, no decay."""
        norms = {
            id(p) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()
        }
        plain, still, biases = [], [], []
        for name, p in network.named_parameters():
            if not p.requires_grad:
                continue
            if id(p) in norms and not self.head.decay_norms:
                still.append(p)
            elif self.head.caffe_biases and name.endswith("bias"):
                biases.append(p)
            else:
                plain.append(p)
        return [
            {"params": plain},
            {"params": still, "weight_decay": 0.0},
            {"params": biases, "weight_decay": 0.0, "lr_scale": 2.0},
        ]

    def recipe(self, cell: Mapping[str, float], steps_per_epoch: int) -> dict[str, Any]:
        return running.sgd_by_iterations(self.head, cell, steps_per_epoch)

    def measure(self, network: nn.Module, split: str) -> tuple[scores.Score, Any]:
        items = self.items(split)
        found = detect(network, lambda part: self.answer(network, part), items, self.head.test_group, self.features)
        return self.score(items.source, found), found.table

    def score_kept(self, source: Any, kept: np.ndarray) -> scores.Score:
        return self.score(source, scores.Detections.of(kept), masks=False)

    def answer(self, network: nn.Module, part: Group) -> Sequence[Mapping[str, Any]]:
        found, _ = network(self.images(part), part.sizes, None, regions_of(part))
        rows = []
        for one, size, file in zip(found, part.sizes, part.files, strict=True):
            scale = one["boxes"].new_tensor([file[1] / size[1], file[0] / size[0]] * 2)
            row: dict[str, Any] = {"boxes": one["boxes"] * scale, "scores": one["scores"], "labels": one["labels"] - 1}
            if "masks" in one:
                row["masks"] = rcnn.pasted(one["masks"], row["boxes"], file)
            rows.append(row)
        return rows

    def score(self, source: Any, found: scores.Detections, masks: bool = True) -> scores.Score:
        if self.head.score == "voc":
            objects = [source.objects(i) for i in range(len(source))]
            voc = scores.voc_score(objects, found, len(source.classes), rounded=self.head.rounded)
            return lambda rows: named_for_voc07(voc(rows))
        boxes = scores.coco_score(scores.coco_truth(source), scores.coco_results(found))
        if not (self.head.masks and masks):
            return boxes
        truth = scores.coco_truth(source, masks=True)
        of_masks = scores.coco_score(truth, scores.coco_results(found, masks=True), "segm")
        return lambda rows: boxes(rows) | {f"mask_{name}": value for name, value in of_masks(rows).items()}


def named_for_voc07(values: dict[str, float]) -> dict[str, float]:
    """``map``: AP50 under the name that VOC07's tables have for it."""
    return values | ({"map": values["ap50"]} if "ap50" in values else {})


def regions_of(part: Group) -> list[Tensor] | None:
    return [t["proposals"] for t in part.targets] if part.targets and "proposals" in part.targets[0] else None
