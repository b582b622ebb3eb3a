"""Faster and Mask R-CNN against detectron2's own numbers: sizes, anchors, box coding, labels, pooling, rates, parameters."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from engine import optim
from evaluations.detection import rcnn, regions
from evaluations.detection.running import sgd_by_iterations
from evaluations.detection.views import resized
from evaluations.protocol import complete, head_of
from evaluations.protocol import load as load_protocol
from golden import load
from zoo import backbones


def test_sizes_are_rounded_as_detr_and_as_detectron2():
    g = load("detection/resize.npz")
    rows = list(zip(g.given("wh").tolist(), g.given("short").tolist(), g.given("cap").tolist(), strict=True))
    for rule in ("detr", "detectron2"):
        g.exact(f"{rule}_wh", [resized(*wh, short, cap, rule) for wh, short, cap in rows])


def anchors_of(sizes, strides, grids):
    made = regions.Anchors(sizes, (0.5, 1.0, 2.0), strides)
    maps = [torch.zeros(1, 1, *grid) for grid in grids]
    (found,) = made(ImageList(torch.zeros(1, 3, 8, 8), [(8, 8)]), maps)
    return found


def test_anchors_are_detectron2s():
    g = load("detection/detectron2_parts.npz")
    grid, sizes = g.given("c4_grid").tolist(), [[32, 64, 128, 256, 512]]
    found = anchors_of(sizes, [16], [grid])
    g.agree("c4_cell", found[: len(g.arrays["c4_cell"])])
    g.exact("c4_count", len(found))
    g.agree("c4_some", found[torch.as_tensor(g.given("c4_rows"))])
    levels = len(g.arrays["fpn_cells"])
    each = anchors_of([[32 * 2**i] for i in range(levels)], [4 * 2**i for i in range(levels)], [(1, 1)] * levels)
    g.agree("fpn_cells", each.unflatten(0, (levels, 3)))


def test_boxes_are_coded_and_labelled_as_detectron2():
    g = load("detection/detectron2_parts.npz")
    source, target = (torch.tensor(g.given(f"reg_{name}")) for name in ("src", "dst"))
    found = rcnn.build(small("resnet18"), 3, head("detect_coco_fpn_1x"), None)
    for name, part in (("rpn", found.rpn), ("roi", found.heads)):
        g.agree(f"{name}_deltas", part.box_coder.encode([target], [source])[0])
        raw = torch.tensor(g.given(f"{name}_raw"))
        g.agree(f"{name}_applied", part.box_coder.decode(raw, [source])[:, 0])
        matcher, labels = part.proposal_matcher, torch.as_tensor(g.arrays[f"{name}_match_label"])
        matched = matcher(torch.tensor(g.given("match_iou")))
        g.exact(f"{name}_match_label", torch.where(matched >= 0, 1, torch.where(matched == -1, 0, -1)).to(torch.int8))
        wanted = torch.as_tensor(g.checked(f"{name}_match", "the object of an ignored or negative box has no meaning"))
        assert torch.equal(matched[labels == 1], wanted[labels == 1])


def test_regions_are_pooled_as_detectron2():
    g = load("detection/detectron2_parts.npz")
    maps, rois, scale = (
        torch.tensor(g.given("pool_features")),
        torch.tensor(g.given("pool_rois")),
        float(g.given("pool_scale")),
    )
    pool = regions.Regions({"map": round(1 / scale)}, g.arrays["pool_aligned"].shape[-1])
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(len(maps))]
    order = torch.cat([torch.where(rois[:, 0] == i)[0] for i in range(len(maps))]).argsort()
    g.agree("pool_aligned", pool({"map": maps}, boxes)[order])
    from torchvision.ops import roi_align

    g.agree("pool_unaligned", roi_align(maps, rois, g.arrays["pool_unaligned"].shape[-1], scale, 0, False))


SCHEDULES = {
    "voc24k": ("detect_voc0712_c4", {}),
    "coco1x": ("detect_coco_c4_1x", {}),
    "coco2x": ("detect_coco_c4_2x", {}),
    "swav_voc24k": ("detect_voc0712_c4", {"head.warmup": 1000, "head.warmup_start": 0.3333}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_detectron2s(name):
    g = load("detection/detectron2_parts.npz")
    protocol, changes = SCHEDULES[name]
    settings = head(protocol, **changes)
    for steps_per_epoch in (1034, 1):  # 16,551 images in steps of 16
        schedule = sgd_by_iterations(settings, {"lr": 1.0, "weight_decay": 0.0}, steps_per_epoch)["schedule"]
        rates = optim.schedule(schedule, steps_per_epoch, settings.iterations, lr=1.0)
        g.agree(f"lr_{name}_factor", rates[g.given(f"lr_{name}_iteration")])
    assert float(g.checked("frozen_bn_eps", "torchvision's default is another")) == 1e-5


def head(name, **changes):
    return head_of(complete(load_protocol(name, changes)))


def small(name, **options):
    torch.manual_seed(0)
    return backbones.build({"name": name, "width": 16, **options})


@pytest.mark.parametrize(
    ("name", "protocol", "classes"), [("voc_c4", "detect_voc0712_c4", 20), ("coco_c4_mask", "detect_coco_c4_1x", 80)]
)
def test_c4_has_detectron2s_parameters(name, protocol, classes):
    wanted = load("detection/detectron2_c4_parameters.json").checked(
        name, "its numbers are compared below, and its names"
    )
    with torch.device("meta"):
        net = rcnn.build(backbones.build("resnet50"), classes, head(protocol, **{"head.extra_norm": True}), None)
    # torchvision predicts a box and a mask for the background too
    background = 4 * (2048 + 1) + (256 + 1 if net.heads.has_mask() else 0)
    assert sum(p.numel() for p in net.parameters()) == wanted["parameters"] + background
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == wanted["trainable"] + background
    assert len(net.state_dict()) == wanted["entries"]
    own = {k: tuple(v.shape) for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    golden = {k: tuple(v) for k, v in wanted["shapes"].items() if not k.endswith("num_batches_tracked")}
    for key, shape in golden.items():
        if key.startswith(("backbone", "roi_heads.res5")):
            assert shape in own.values(), key
    rpn = {k.removeprefix("rpn.head."): v for k, v in own.items() if k.startswith("rpn")}
    assert rpn["conv.0.0.weight"] == golden["proposal_generator.rpn_head.conv.weight"]
    assert rpn["cls_logits.weight"] == golden["proposal_generator.rpn_head.objectness_logits.weight"]
    assert rpn["bbox_pred.weight"] == golden["proposal_generator.rpn_head.anchor_deltas.weight"]
    assert own["heads.box_predictor.cls_score.weight"] == golden["roi_heads.box_predictor.cls_score.weight"]
    rows, width = golden["roi_heads.box_predictor.bbox_pred.weight"]
    assert own["heads.box_predictor.bbox_pred.weight"] == (rows + 4, width)
