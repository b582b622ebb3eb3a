"""DETR (Carion et al. 2020) on a backbone of the zoo: transformers' model, matcher and losses with the authors' settings.

What transformers 5 does otherwise by default, and is set or done here as in facebookresearch/detr: auxiliary losses; dropout
of attention weights and inside the feed-forward layers; Xavier initialisation of the transformer, N(0, 1) queries and PyTorch's
own of the heads; states of inner decoder layers that are normalised for the heads only (transformers passes them on to the
next layer normalised); the number of objects averaged over all images of a step; no threshold on detections.
Deviates   classes are numbered 0..K-1 without holes (the authors keep COCO's 91 raw ids, of which 11 are never used)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from . import optional
from .backbones import Body

COSTS = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2}
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
NO_OBJECT = 0.1


class _Features(nn.Module):
    """What transformers' DETR asks of its backbone: (pixels, mask) -> [(map, mask at the map's size)]."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        (found,) = self.body(pixels).values()
        small = nn.functional.interpolate(mask[None].float(), size=found.shape[-2:])[0].bool()
        return [(found, small)]


class Detr(nn.Module):
    """Normalised images (B, C, H, W), padded at the right and the bottom, and their mask (B, H, W), True on the image ->
    logits (L, B, Q, K + 1) and boxes (L, B, Q, 4), cxcywh as fractions of the unpadded image, of every decoder layer, the
    last one being the prediction. The last class is "no object".

    size   d_model, encoder_layers, decoder_layers, heads, ffn, queries, dropout
    """

    def __init__(self, body: Body, classes: int, size: Mapping[str, Any]) -> None:
        super().__init__()
        library = optional("transformers", "DETR")
        channels = body.dims[body.layers[-1]]
        stub = library.ResNetConfig(
            embedding_size=8, hidden_sizes=[channels], depths=[1], layer_type="basic", out_features=["stage1"]
        )
        config = library.DetrConfig(
            backbone_config=stub,
            num_labels=classes,
            num_queries=size["queries"],
            d_model=size["d_model"],
            encoder_layers=size["encoder_layers"],
            decoder_layers=size["decoder_layers"],
            encoder_attention_heads=size["heads"],
            decoder_attention_heads=size["heads"],
            encoder_ffn_dim=size["ffn"],
            decoder_ffn_dim=size["ffn"],
            dropout=size["dropout"],
            attention_dropout=size["dropout"],
            activation_dropout=size["dropout"],
            **COSTS,
        )
        self.net = library.DetrForObjectDetection(config)
        self.net.model.backbone = _Features(body)
        self.classes = classes
        self._states: list[Tensor] = []
        for layer in self.net.model.decoder.layers:
            layer.register_forward_hook(lambda module, given, out: self._states.append(_first(out)))
        initialise(self.net)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self._states.clear()
        self.net.model(pixel_values=images, pixel_mask=mask)
        states = self.net.model.decoder.layernorm(torch.stack(self._states))
        self._states.clear()
        return self.net.class_labels_classifier(states), self.net.bbox_predictor(states).sigmoid()


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def initialise(net: Any) -> None:
    """The authors' initial values. q, k and v are drawn as the one matrix (3d, d) that they are in torch's attention."""
    if net.class_labels_classifier.weight.is_meta:
        return
    model = net.model
    for part in (model.encoder, model.decoder, model.input_projection, net.class_labels_classifier, net.bbox_predictor):
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    model.query_position_embeddings.reset_parameters()  # N(0, 1)
    inner = [*model.encoder.modules(), *model.decoder.modules()]
    for module in inner:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for attention in (module for module in inner if hasattr(module, "q_proj")):
        width = attention.q_proj.in_features
        drawn = nn.init.xavier_uniform_(torch.empty(3 * width, width))
        for name, rows in zip(("q_proj", "k_proj", "v_proj"), drawn.split(width), strict=True):
            getattr(attention, name).weight.copy_(rows)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            nn.init.zeros_(getattr(attention, name).bias)


class Criterion(nn.Module):
    """The set loss: every decoder layer matched by itself, and the same losses of each, added up.

    class  cross entropy over all queries, "no object" weighing 0.1, divided by the sum of the weights
    boxes  5 L1 (cxcywh) + 2 (1 - GIoU) of matched pairs, divided by ``objects``
    """

    def __init__(self, classes: int, costs: Sequence[float] = (1, 5, 2), no_object: float = NO_OBJECT) -> None:
        super().__init__()
        losses = optional("transformers.loss.loss_for_object_detection", "DETR")
        self.matcher = losses.HungarianMatcher(*costs)
        self.losses = losses.ImageLoss(self.matcher, classes, no_object, ["labels", "boxes"])

    def forward(
        self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], objects: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be trained on, and the unweighted losses by name; inner layers' have their number behind it.

        logits (L, B, Q, K + 1), boxes (L, B, Q, 4); targets: class_labels (n,), boxes (n, 4) of each image
        objects   objects per group of images, averaged over the groups of the step, at least 1
        """
        found: dict[str, Tensor] = {}
        last = len(logits) - 1
        for layer, (scores, places) in enumerate(zip(logits.float(), boxes.float(), strict=True)):
            outputs = {"logits": scores, "pred_boxes": places}
            pairs = self.matcher(outputs, targets)
            own = self.losses.loss_labels(outputs, targets, pairs, objects)
            own |= self.losses.loss_boxes(outputs, targets, pairs, objects)
            if layer == last:
                found["class_error"] = class_error(scores, targets, pairs)
                found |= self.losses.loss_cardinality(outputs, targets, pairs, objects)
            found |= {name if layer == last else f"{name}_{layer}": value for name, value in own.items()}
        total = sum(WEIGHTS[kind] * v for name, v in found.items() if (kind := name.rstrip("_0123456789")) in WEIGHTS)
        assert isinstance(total, Tensor)
        return total, found


@torch.no_grad()
def class_error(scores: Tensor, targets: list[dict[str, Tensor]], pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Percent of matched queries whose best class is not their object's; 100 where there is no object."""
    right = [scores[i, q].argmax(-1) == targets[i]["class_labels"][o] for i, (q, o) in enumerate(pairs)]
    hits = torch.cat(right).float()
    return 100 - 100 * (hits.mean() if len(hits) else hits.new_zeros(()))


def predictions(logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, Q), classes (B, Q) and corners (B, Q, 4) in pixels of each query of the last layer: every query is kept,
    nothing is clipped. logits (B, Q, K + 1), boxes (B, Q, 4), sizes (B, 2): height, width of the image files."""
    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)
    scale = sizes.flip(1).repeat(1, 2)[:, None].to(boxes)
    return scores, labels, box_convert(boxes.float(), "cxcywh", "xyxy") * scale
