"""Fast, Faster and Mask R-CNN on a backbone of the zoo: torchvision's proposals, heads and losses, set as in detectron2.

From detectron2 (whose numbers the papers print): anchors that are not rounded, L1 instead of smooth L1, both losses of the
proposals divided by 256 per image, region pooling with the half-pixel shift and adaptive sampling, initial values.
Three detectors: ``fpn`` (pyramid and two-layer head), ``c4`` (res5 on 14x14 regions of res4 as the head), ``fast`` (the fully
connected layers of VGG-16 or AlexNet on regions of their last convolution).
Deviates   from detectron2: class 0 is the background (one row more in box and mask predictors); the mask loss sees
           interpolated masks; images are padded to a multiple of 32 in C4 too; mixed aspect ratios share a group.
           From Fast R-CNN's code (voc07_detection_all): background regions have an IoU below 0.5 with every object, there
           0.1 to 0.5; one region in four of a step shows an object in both
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss, paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from zoo.backbones.base import Backbone
from zoo.backbones.resnet import PreactResNet, ResNet
from zoo.data import rle
from zoo.errors import UserError

from .backbones import Body, parts
from .regions import Anchors, Proposals, Regions, proposals_of


class Heads(RoIHeads):
    """torchvision's matching, sampling and choice of detections, with L1 on boxes, and masks that may share the box head's
    features (``shared``: C4)."""

    shared = False

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        scores, places = self.box_predictor(
            self._flat(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        )
        boxes, values, labels = self.postprocess_detections(scores.float(), places.float(), proposals, image_shapes)
        found = [{"boxes": b, "scores": s, "labels": k} for b, s, k in zip(boxes, values, labels, strict=True)]
        if self.has_mask():
            logits = self.mask_predictor(self._mask_regions(features, boxes, image_shapes)).float()
            for one, mask in zip(found, maskrcnn_inference(logits, labels), strict=True):
                one["masks"] = mask
        return found, {}

    def _losses(self, features: Any, proposals: Any, shapes: Any, targets: Any) -> dict[str, Tensor]:
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        regions = self.box_head(self.box_roi_pool(features, proposals, shapes))
        scores, places = (out.float() for out in self.box_predictor(self._flat(regions)))
        truth = torch.cat(labels)
        losses = {"loss_classifier": F.cross_entropy(scores, truth), "loss_box_reg": box_loss(places, truth, wanted)}
        if self.has_mask():
            inside = [k > 0 for k in labels]
            chosen = [boxes[keep] for boxes, keep in zip(proposals, inside, strict=True)]
            maps = regions[torch.cat(inside)] if self.shared else self._mask_regions(features, chosen, shapes)
            logits, masks = self.mask_predictor(maps).float(), [t["masks"] for t in targets]
            own = [m[keep] for m, keep in zip(matched, inside, strict=True)]
            losses["loss_mask"] = maskrcnn_loss(logits, chosen, masks, [t["labels"] for t in targets], own)
        return losses

    def _mask_regions(self, features: Any, boxes: Any, shapes: Any) -> Tensor:
        pool, head = (self.box_roi_pool, self.box_head) if self.shared else (self.mask_roi_pool, self.mask_head)
        return head(pool(features, boxes, shapes))

    @staticmethod
    def _flat(regions: Tensor) -> Tensor:
        return regions.mean((2, 3)) if regions.ndim == 4 else regions


def box_loss(places: Tensor, labels: Tensor, wanted: Sequence[Tensor]) -> Tensor:
    """L1 of the own class's box of regions with an object, divided by all regions. places (n, 4 (K + 1))."""
    inside = torch.where(labels > 0)[0]
    own = places.view(len(labels), -1, 4)[inside, labels[inside]]
    return F.l1_loss(own, torch.cat(list(wanted))[inside], reduction="sum") / max(len(labels), 1)


# ---------------------------------------------------------------- the three detectors


class Pyramid(nn.Module):
    """Body and feature pyramid: levels res2 .. res5 as the body has them, and one more of half the resolution."""

    def __init__(self, body: Body, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.body = body
        widths = [body.dims[name] for name in body.layers]
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), nn.BatchNorm2d if norm else None)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict(self.body(x)))


class Detector(nn.Module):
    """Losses of a group in training, detections otherwise. ``trunk``: images -> maps by level."""

    def __init__(self, trunk: nn.Module, rpn: Proposals | None, heads: Heads) -> None:
        super().__init__()
        self.trunk, self.rpn, self.heads = trunk, rpn, heads

    def forward(
        self,
        images: Tensor,
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
        proposals: list[Tensor] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """images (B, C, H, W) normalised; sizes: height and width of each in it; targets: boxes (n, 4) xyxy, labels (n,)
        from 1, masks (n, H, W); proposals: boxes by image where there is no ``rpn``."""
        maps = {name: m.float() for name, m in self.trunk(images).items()}
        losses: dict[str, Tensor] = {}
        if self.rpn is not None:
            proposals, losses = self.rpn(ImageList(images, sizes), maps, targets)
        found, more = self.heads(maps, proposals, sizes, targets)
        return found, {**losses, **more}


class Residual(nn.Module):
    """C4's head: the last stage on the regions (stride 2: 14 -> 7 cells), and MoCo's norm behind its last ReLU if ``extra``."""

    def __init__(self, stage: nn.Module, channels: int, extra: bool) -> None:
        super().__init__()
        self.stage = stage
        self.norm = nn.BatchNorm2d(channels) if extra else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stage(x))


class FullyConnected(nn.Module):
    """The network's own fc6 and fc7 on pooled regions, ending in a ReLU as the authors' classifiers do."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))


def build(network: Backbone, classes: int, head: Any, freeze: str | None) -> Detector:
    """A detector for ``classes`` classes (without the background). head: the settings of evaluations/kinds/rcnn.py."""
    known, split = list(parts(network)), list(network.layers)
    if head.detector == "fast":
        if not hasattr(network, "classifier"):
            raise UserError(
                "head.detector=fast needs fully connected layers (VGG-16, AlexNet); fpn and c4 take ResNets"
            )
        last = [name for name in known if name.startswith("conv")][-1:]
        body = Body(network, last, head.norm, freeze)
    elif not isinstance(network, (ResNet, PreactResNet)):
        raise UserError(f"head.detector={head.detector} needs a ResNet; VGG-16 and AlexNet: head.detector=fast")
    elif head.detector == "c4":
        body = Body(network, split[-2:-1], head.norm, freeze)
    else:
        body = Body(network, head.levels or split[-4:], head.norm, freeze)
    strides = body.strides()
    if head.detector == "fpn":
        trunk: nn.Module = Pyramid(body, head.channels, head.pyramid_norm)
        width, levels = head.channels, dict(zip(map(str, body.layers), strides, strict=True))
        strides = [*strides, 2 * strides[-1]]
        regions = Regions(levels, 7, canonical=head.canonical)
        box_head: nn.Module = TwoMLPHead(width * 49, head.box_features)
        for layer in (box_head.fc6, box_head.fc7):
            _uniform(layer)
        features = head.box_features
    else:
        trunk, levels = body, {body.layers[0]: strides[0]}
        width = body.dims[body.layers[0]]
        if head.detector == "c4":
            regions = Regions(levels, 14)
            features = network.dims[split[-1]]
            box_head = Residual(body.take(f"layer{len(split) - ('res1' in split)}"), features, head.extra_norm)
        else:
            side, features = int(body.network.map_shape[1]), network.dims["fc7"]
            regions = Regions(levels, side, "pool")
            box_head = FullyConnected(_own_layers(body.take("classifier"), head.fc))
    rpn = None
    if head.proposals == "rpn":
        if len(head.anchors) != len(strides) or len({len(sizes) for sizes in head.anchors}) > 1:
            raise UserError(
                f"head.anchors={head.anchors}: this detector needs {len(strides)} lists of equally many sizes"
            )
        rpn = proposals_of(width, Anchors(head.anchors, head.ratios, strides), head.kept.model_dump())
    heads = Heads(
        regions, box_head, FastRCNNPredictor(features, classes + 1), 0.5, 0.5, head.regions, head.positive,
        None, head.score_threshold, head.nms, head.detections,
    )  # fmt: skip
    if head.masks:
        _add_masks(heads, levels, width, features, classes, head)
    initialise(heads)
    return Detector(trunk, rpn, heads)


def _add_masks(heads: Heads, levels: dict[str, int], width: int, features: int, classes: int, head: Any) -> None:
    if head.detector == "fast":
        raise UserError("head.masks: there is no Mask R-CNN on fully connected layers; use fpn or c4")
    if head.detector == "c4":
        heads.mask_roi_pool, heads.mask_head, heads.shared = nn.Identity(), nn.Identity(), True
        heads.mask_predictor = MaskRCNNPredictor(features, 256, classes + 1)
    else:
        heads.mask_roi_pool = Regions(levels, 14, canonical=head.canonical)
        heads.mask_head = MaskRCNNHeads(width, (256,) * 4, 1)
        heads.mask_predictor = MaskRCNNPredictor(256, 256, classes + 1)


def _own_layers(classifier: nn.Module, what: str) -> nn.Module:
    """fc6 and fc7 as they were learned and trained on, frozen, or fresh (N(0, 0.01), bias 0.1)."""
    classifier.requires_grad_(what != "frozen")
    for layer in classifier.modules():
        if what == "fresh" and isinstance(layer, nn.Linear) and not layer.weight.is_meta:
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.1)
    return classifier


def _uniform(layer: Any) -> None:
    """detectron2's c2_xavier_fill."""
    if not layer.weight.is_meta:
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Run lengths of the masks (n, 1, m, m) that a head gave for its boxes (n, 4), in an image of (height, width)."""
    whole = paste_masks_in_image(masks.float().cpu(), boxes.float().cpu(), size)[:, 0] >= 0.5
    return [rle.encode(mask) for mask in whole.numpy()]


def initialise(heads: Heads) -> None:
    """detectron2's initial values of the last layers: class N(0, 0.01), box N(0, 0.001), mask N(0, 0.001)."""
    pairs = [(heads.box_predictor.cls_score, 0.01), (heads.box_predictor.bbox_pred, 0.001)]
    if heads.has_mask():
        pairs.append((heads.mask_predictor.mask_fcn_logits, 0.001))
    for layer, std in pairs:
        if not layer.weight.is_meta:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
