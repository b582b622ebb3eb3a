"""The detectors as networks: losses, gradients, detections, and what does not fit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evaluations.detection import rcnn, regions, segmentation
from evaluations.detection.backbones import Body
from evaluations.kinds import rcnn as kind
from zoo import backbones
from zoo.data import rle
from zoo.errors import UserError

SMALL = {
    "channels": 16,
    "box_features": 24,
    "regions": 32,
    "kept": {"training": [100, 50], "testing": [100, 20]},
    "score_threshold": 0.0,
}
FPN = {**SMALL, "anchors": [[8], [16], [32], [48], [64]], "canonical": 64}
C4 = {**SMALL, "detector": "c4", "anchors": [[16, 32]], "extra_norm": True, "norm": "batch"}


def net_of(settings, network=None, freeze=None, classes=3):
    torch.manual_seed(0)
    network = network or backbones.build({"name": "resnet18", "width": 16})
    return rcnn.build(network, classes, kind.Head(**settings), freeze)


def batch():
    torch.manual_seed(1)
    images, sizes = torch.randn(2, 3, 64, 64), [(64, 64), (50, 60)]
    targets = []
    for boxes, labels in (([[4.0, 6, 30, 40], [30, 30, 60, 62]], [1, 3]), ([], [])):
        masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
        for mask, box in zip(masks, boxes, strict=True):
            x0, y0, x1, y1 = map(int, box)
            mask[y0:y1, x0:x1] = 1
        targets.append(
            {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels).long(), "masks": masks}
        )
    return images, sizes, targets


class Vgg(backbones.Vgg16):
    """VGG-16 with the same layers, narrow."""

    def __init__(self):
        with torch.device("meta"):  # its own layers are large and not wanted
            super().__init__()
        channels, blocks = 3, []
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                blocks, channels = [*blocks, nn.Conv2d(channels, 16, 3, padding=1)], 16
            else:
                blocks.append(nn.BatchNorm2d(16) if isinstance(module, nn.BatchNorm2d) else module)
        self.features, self.map_shape = nn.Sequential(*blocks), (16, 7, 7)
        self.classifier[0], self.classifier[3] = nn.Linear(16 * 49, 32), nn.Linear(32, 32)
        self.dims = {**{f"conv{i}": 16 for i in range(1, 14)}, "pool5": 16, "fc6": 32, "fc7": 32}


@pytest.mark.parametrize(
    ("settings", "network", "names"),
    [
        ({**FPN, "masks": True}, None, {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}),
        ({**C4, "masks": True}, None, {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}),
        ({**SMALL, "detector": "fast", "anchors": [[32]]}, Vgg, {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}),
        ({**SMALL, "detector": "fast", "proposals": "selective_search"}, Vgg, {"loss_classifier", "loss_box_reg"}),
    ],
    ids=["fpn", "c4", "fast", "fast without rpn"],
)  # fmt: skip
def test_a_detector_learns_from_a_group_and_detects(settings, network, names):
    net = net_of(settings, network() if network else None).train()
    images, sizes, targets = batch()
    regions = [torch.tensor([[0.0, 0, 32, 32], [4, 6, 30, 40], [20, 20, 60, 60]])] * 2
    found, losses = net(images, sizes, targets, regions)
    assert found == [] and set(losses) == names and all(v.isfinite() and v.ndim == 0 for v in losses.values())
    sum(losses.values()).backward()
    still = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not still, "DistributedDataParallel needs a gradient for each"
    net.eval()
    with torch.no_grad():
        found, _ = net(images, sizes, None, regions)
    for one, (height, width) in zip(found, sizes, strict=True):
        assert 0 < len(one["boxes"]) <= 100 and set(one["labels"].tolist()) <= {1, 2, 3}
        assert (
            (one["boxes"] >= 0).all()
            and (one["boxes"][:, [0, 2]] <= width).all()
            and (one["boxes"][:, [1, 3]] <= height).all()
        )
        if settings.get("masks"):
            assert one["masks"].shape[1] == 1
            shapes = rcnn.pasted(one["masks"], one["boxes"] * 2, (2 * height, 2 * width))
            assert rle.decode(shapes[0], 2 * height, 2 * width).shape == (2 * height, 2 * width)


def test_both_losses_of_proposals_are_sums_over_256_anchors_an_image():
    net = net_of(FPN)
    labels, wanted = [torch.tensor([1.0, 0, -1, 0])] * 2, [torch.zeros(4, 4)] * 2
    scores, places = torch.zeros(8, 1), torch.full((8, 4), 0.5)
    named, placed = net.rpn.compute_loss(scores, places, labels, wanted)
    # 2 images with 3 sampled anchors each, at probability 1/2; 2 positives, 4 coordinates off by 1/2
    assert float(named) == pytest.approx(6 * np.log(2) / 512) and float(placed) == pytest.approx(2 * 4 * 0.5 / 512)
    loss = rcnn.box_loss(torch.full((3, 8), 0.25), torch.tensor([1, 0, 1]), [torch.zeros(3, 4)])
    assert float(loss.detach()) == pytest.approx(2 * 4 * 0.25 / 3)


def test_boxes_of_the_canonical_size_belong_to_stride_16():
    pool = regions.Regions({"a": 4, "b": 8, "c": 16, "d": 32}, 7)
    sides = torch.tensor([10.0, 111, 113, 223, 225, 447, 449, 2000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert pool.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    maps = {n: torch.full((1, 2, 2048 // s, 2048 // s), float(s)) for n, s in pool.strides.items()}
    assert pool(maps, [boxes])[:, 0, 3, 3].tolist() == [4, 4, 8, 8, 16, 16, 32, 32]


def test_res5_is_the_head_of_c4_and_norms_behind_it_are_extra():
    net = net_of(C4)
    assert isinstance(net.heads.box_head.norm, nn.BatchNorm2d) and isinstance(net.trunk.network.layer4, nn.Identity)
    with torch.no_grad():
        assert net.heads.box_head(torch.zeros(2, 64, 14, 14)).shape == (2, 128, 7, 7)
    wanted = {p.data_ptr() for p in net.heads.box_head.parameters()}
    assert wanted & {p.data_ptr() for p in net.parameters()} == wanted


@pytest.mark.parametrize(
    ("fc", "trained", "fresh"), [("train", True, False), ("frozen", False, False), ("fresh", True, True)]
)
def test_fc6_and_fc7_are_the_head_and_end_in_a_relu(fc, trained, fresh):
    network = Vgg()
    network.last_relu = False  # as DeepCluster clusters
    own = network.classifier[0].weight.clone()
    net = net_of({**SMALL, "detector": "fast", "anchors": [[32]], "fc": fc}, network)
    layers = net.heads.box_head.classifier
    assert torch.equal(layers[0].weight, own) != fresh and layers[0].weight.requires_grad == trained
    out = net.heads.box_head.eval()(100 * torch.randn(50, 16, 7, 7))
    assert (out >= 0).all() and (out == 0).any()


def test_the_convolutions_stay_where_only_the_head_is_trained():
    net = net_of({**SMALL, "detector": "fast", "anchors": [[32]]}, Vgg(), freeze="all")
    assert not any(p.requires_grad for p in net.trunk.parameters())
    assert all(p.requires_grad for p in net.heads.parameters())


@pytest.mark.parametrize(
    ("settings", "network", "message"),
    [
        ({"detector": "fast"}, None, "head.detector=fast needs fully connected layers"),
        (FPN, Vgg, "head.detector=fpn needs a ResNet"),
        ({**FPN, "anchors": [[8], [16]]}, None, "this detector needs 5 lists of equally many sizes"),
        ({**FPN, "anchors": [[8, 9], [16], [32], [48], [64]]}, None, "equally many sizes"),
        ({**FPN, "levels": ["res3", "res9"]}, None, "no layer 'res9'"),
        ({**SMALL, "detector": "fast", "anchors": [[32]], "masks": True}, Vgg, "no Mask R-CNN on fully connected"),
    ],
)
def test_what_does_not_fit_is_refused(settings, network, message):
    with pytest.raises(UserError, match=message):
        net_of(settings, network() if network else None)


# ---------------------------------------------------------------- segmentation


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_stages_see_the_same_but_keep_their_resolution(name):
    network = backbones.build({"name": name, "width": 16}).eval()
    body = Body(network, ["res5"]).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = network.forward_layers(x, ["res5"])["res5"]
        segmentation.dilate(body.network, 2)
        dense = body(x)["res5"]
    assert plain.shape[-1] == 2 and dense.shape[-1] == 8
    # with dilation in place of strides, every fourth position of each axis is what the strided network computes
    torch.testing.assert_close(dense[..., ::4, ::4], plain, rtol=1e-3, atol=1e-4)


def test_a_segmenter_gives_a_class_for_every_pixel_and_learns_from_those_that_count():
    net = segmentation.Segmenter(backbones.build({"name": "resnet18", "width": 16}), "res5", 4, "batch", None, 2)
    x, maps = torch.randn(2, 3, 48, 64), torch.randint(0, 5, (2, 48, 64), dtype=torch.uint8)
    maps[:, :10] = 255
    logits = net(x)
    assert logits.shape == (2, 5, 48, 64)
    loss = segmentation.pixel_loss(logits, maps, float((maps != 255).sum()))
    rows = logits.permute(0, 2, 3, 1)[maps != 255]
    assert float(loss.detach()) == pytest.approx(
        float(nn.functional.cross_entropy(rows.detach(), maps[maps != 255].long())), rel=1e-5
    )
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())
    assert float(segmentation.pixel_loss(logits.detach(), torch.full_like(maps, 255), 1)) == 0
    vgg = segmentation.Segmenter(Vgg(), "conv13", 4, "frozen", None, 0)
    assert vgg(x).shape == logits.shape and not any("classifier" in n for n, _ in vgg.body.named_parameters())
    with pytest.raises(UserError, match="head.dilated=2: only ResNets"):
        segmentation.Segmenter(Vgg(), "conv13", 4, "frozen", None, 2)


def test_mean_iou_of_an_example_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]])
    guess = np.array([[0, 1, 1, 1], [2, 0, 0, 1]])
    table = segmentation.confusion(truth, guess, 4)
    # class 0: 1 of 3 pixels; class 1: 2 of 3; class 2: 1 of 2; class 3 occurs nowhere
    score = segmentation.mean_iou(table[None])
    assert score(np.array([0])) == pytest.approx(
        {"miou": 100 * (1 / 3 + 2 / 3 + 1 / 2) / 3, "pixel_accuracy": 100 * 4 / 6}
    )
    perfect = segmentation.confusion(truth, np.where(truth == 255, 3, truth), 4)
    assert segmentation.mean_iou(np.stack([table, perfect]))(np.array([1])) == {"miou": 100.0, "pixel_accuracy": 100.0}
    assert segmentation.mean_iou(np.zeros((1, 2, 2)))(np.array([0])) == {}
