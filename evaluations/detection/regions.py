"""Anchors, the region proposal network with its losses, and region features, as in detectron2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align, roi_pool

PER_IMAGE = 256  # anchors that the proposals learn from


class Anchors(AnchorGenerator):
    """Boxes around every cell of every level, corners not rounded, sizes before ratios; strides are given, not guessed."""

    def __init__(self, sizes: Sequence[Sequence[int]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        self.strides = tuple(strides)
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008  torchvision's signature
    ) -> Tensor:
        """(sizes * ratios, 4) around 0, 0; a ratio is height over width."""
        cells = []
        for size in scales:
            for ratio in aspect_ratios:
                width = (size**2 / ratio) ** 0.5
                cells.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
        return torch.tensor(cells, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        steps = [[torch.tensor(s, device=first.device)] * 2 for s in self.strides]
        each = torch.cat(self.grid_anchors([list(m.shape[-2:]) for m in feature_maps], steps))
        return [each] * len(image_list.image_sizes)


class Proposals(RegionProposalNetwork):
    """torchvision's, with detectron2's losses: sums over the sampled anchors, divided by 256 per image."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.where(torch.cat(found))[0] for found in self.fg_bg_sampler(labels))
        sampled, truth = torch.cat([positive, negative]), torch.cat(labels)
        share = PER_IMAGE * len(labels)
        named = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], truth[sampled], reduction="sum")
        placed = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        return named / share, placed / share


class ProposalHead(RPNHead):
    """torchvision's (N(0, 0.01), no bias), in float32 whatever the rest is computed in."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, places = super().forward(x)
        return [s.float() for s in scores], [p.float() for p in places]


class Regions(nn.Module):
    """Features of regions: {level: (B, C, h, w)} and boxes by image -> (n, C, size, size).

    way        align: RoIAlign with half-pixel shift, as many samples as a cell has pixels; pool: the maximum of each cell
               (Fast R-CNN's RoI pooling)
    canonical  side of the box that belongs to the level of stride 16; smaller ones to finer levels
    """

    def __init__(self, strides: dict[str, int], size: int, way: str = "align", canonical: int = 224) -> None:
        super().__init__()
        self.strides, self.size, self.way, self.canonical = strides, size, way, canonical

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], shapes: Any = None) -> Tensor:
        rois = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)])
        levels = self.levels(rois[:, 1:])
        found, order = [], []
        for number, (name, stride) in enumerate(self.strides.items()):
            mine = torch.where(levels == number)[0]
            if len(mine) or not number:
                found.append(self._one(maps[name].float(), rois[mine], 1 / stride))
                order.append(mine)
        return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(order).argsort()]

    def levels(self, boxes: Tensor) -> Tensor:
        """(n,) position in ``strides`` of the level that each box is taken from."""
        logs = torch.tensor([float(s) for s in self.strides.values()], device=boxes.device).log2()
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        wanted = (4 + torch.log2(side / self.canonical + 1e-8)).floor()
        return (wanted.clamp(float(logs[0]), float(logs[-1])) - logs[0]).long()

    def _one(self, maps: Tensor, rois: Tensor, scale: float) -> Tensor:
        if self.way == "pool":
            return roi_pool(maps, rois, self.size, scale)
        return roi_align(maps, rois, self.size, scale, sampling_ratio=0, aligned=True)


def proposals_of(channels: int, anchors: Anchors, keep: dict[str, list[int]]) -> Proposals:
    """keep: before and after non-maximum suppression, in training and testing."""
    before, after = ({mode: counts[k] for mode, counts in keep.items()} for k in (0, 1))
    head = ProposalHead(channels, anchors.num_anchors_per_location()[0])
    return Proposals(anchors, head, 0.7, 0.3, PER_IMAGE, 0.5, before, after, 0.7)
