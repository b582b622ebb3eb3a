"""Views and groups: boxes and masks go with the image, nothing depends on the number of processes."""

from __future__ import annotations

from types import SimpleNamespace

import engine_processes as processes
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from engine import dist
from evaluations.detection.data import Items, Stream, grouped, placed, shown_groups, with_objects
from evaluations.detection.views import Crop, Sample, Views, train_view
from zoo.data.annotations import Objects
from zoo.errors import UserError

WIDE = Views(short=[40, 60], cap=100, test_short=50, crop=Crop(short=[50], size=[20, 40]), rounding="detr")


class Source:
    """Image i is black with a white rectangle; every third has a second object that is a crowd, every fifth is empty."""

    classes, split = ("a", "b"), "train"

    def __init__(self, count=12, size=(48, 36)):
        self.count, self.size = count, size
        rng = np.random.default_rng(0)
        start = np.stack([rng.integers(0, size[0] - 20, count), rng.integers(0, size[1] - 16, count)], axis=1)
        self.boxes = np.concatenate([start, start + [18, 12]], axis=1).astype(float)

    def __len__(self):
        return self.count

    def image(self, i):
        pixels = np.zeros((self.size[1], self.size[0], 3), np.uint8)
        if i % 5 != 4:
            x0, y0, x1, y1 = self.boxes[i].astype(int)
            pixels[y0:y1, x0:x1] = 255
        return Image.fromarray(pixels)

    def objects(self, i):
        boxes = np.zeros((0, 4)) if i % 5 == 4 else self.boxes[i : i + 1]
        crowd = np.zeros(len(boxes), bool)
        if i % 3 == 2 and len(boxes):
            boxes, crowd = np.concatenate([boxes, [[0, 0, 48, 36]]]), np.array([False, True])
        hard = np.array([i % 2 == 1, *[False] * 9])[: len(boxes)]
        return Objects(boxes, np.full(len(boxes), i % 2), hard, crowd, np.ones(len(boxes)), np.arange(len(boxes)))

    def masks(self, i):
        found = np.zeros((len(self.objects(i)), self.size[1], self.size[0]), bool)
        for mask, box in zip(found, self.objects(i).boxes.astype(int), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = True
        return found


def items(source=None, views=WIDE, **changes):
    return Items(source or Source(), views, 3, **{"seed": 1, "want": "masks", **changes})


def around(pixels):
    """Corners of what is white."""
    rows, columns = (np.flatnonzero((np.asarray(pixels) > 127).any(axis=a)) for a in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_boxes_and_masks_go_where_the_pixels_go():
    source, sizes = Source(40), set()
    for i in range(40):
        for epoch in range(3):
            group = items(source)[(epoch, 0, [i])]
            (target,), (size,) = group.targets, group.sizes
            sizes.add(size)
            if i % 5 == 4 or not len(target["boxes"]):
                assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
                continue
            assert len(target["boxes"]) == 1, "crowds are not learned"
            seen = around(group.pixels[0, 0])
            np.testing.assert_allclose(target["boxes"][0], seen, atol=1.5)
            np.testing.assert_allclose(around(255 * target["masks"][0].numpy()), seen, atol=3)  # nearest, twice
            assert target["labels"].tolist() == [i % 2]
    assert len(sizes) > 20, "sizes vary with the crops"


def test_a_view_is_a_function_of_seed_epoch_and_image():
    one, again = items()[(3, 0, [5, 7])], items()[(3, 9, [7, 5])]
    assert torch.equal(
        one.pixels[0, :, : one.sizes[0][0], : one.sizes[0][1]], again.pixels[1, :, : one.sizes[0][0], : one.sizes[0][1]]
    )
    other = [items(seed=2)[(3, 0, [5])], items()[(4, 0, [5])]]
    assert all(o.sizes[0] != one.sizes[0] or not torch.equal(o.pixels[0], one.pixels[0]) for o in other)


def test_half_of_the_views_are_mirrored_and_half_are_cut():
    plain = Views(short=[36], test_short=36, flip=0.5)
    source = Source(400)
    mirrored = 0
    for i in range(0, 400, 2):
        if i % 5 == 4:
            continue
        box = items(source, plain)[(0, 0, [i])].targets[0]["boxes"][0].numpy()
        flipped = source.boxes[i][[2, 1, 0, 3]] * [-1, 1, -1, 1] + [48, 0, 48, 0]
        close = np.allclose(box, flipped)
        assert close or np.allclose(box, source.boxes[i])
        mirrored += close and not np.allclose(source.boxes[i], flipped)
    assert 55 < mirrored < 105  # of 160
    whole = [train_view(sample(), WIDE, np.array([0.9, u, 0, 0, 0, 0, 0, 0])).size for u in (0.4, 0.6)]
    assert whole == [(40, 40), (53, 40)]  # a crop of 20 x 20, and the whole


def sample(size=(48, 36), boxes=((4, 4, 20, 20),)):
    image = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    return Sample(image, {"boxes": placed(np.array(boxes, float), size), "labels": torch.arange(len(boxes))})


def test_what_a_crop_leaves_nothing_of_is_dropped_and_the_image_stays():
    draws = np.array([0.9, 0.1, 0, 0, 0, 0, 0.99, 0.99])  # 20 x 20 at the lower right
    left = train_view(sample(boxes=((0, 0, 5, 5), (30, 20, 48, 36), (0, 0, 5, 36))), WIDE, draws)
    assert left.targets["labels"].tolist() == [1] and isinstance(left.targets["boxes"], tv_tensors.BoundingBoxes)
    none = train_view(sample(boxes=((0, 0, 5, 5),)), WIDE, draws)
    assert none.targets["boxes"].shape == (0, 4) and none.size == (40, 40)
    assert (left.targets["boxes"][:, 2:] <= 40).all()


def test_proposals_go_through_the_same_view_in_training_and_testing():
    regions = SimpleNamespace(boxes=lambda i: np.array([[0, 0, 24, 36], [4, 4, 20, 20]], np.float32))
    made = items(views=Views(short=[72], test_short=72), proposals=regions)
    tested = made[(None, 0, [0])].targets[0]["proposals"]
    assert tested.tolist() == [[0, 0, 48, 72], [8, 8, 40, 40]]
    trained = {tuple(made[(e, 0, [0])].targets[0]["proposals"][0].tolist()) for e in range(12)}
    assert trained == {(0, 0, 48, 72), (48, 0, 96, 72)}


def test_padding_is_zero_behind_the_normalisation_and_masked():
    images = [Image.fromarray(np.full((h, w, 3), 9, np.uint8)) for h, w in ((5, 7), (6, 4))]
    group = grouped([Sample(i, {}) for i in images], [0, 1], [(5, 7), (6, 4)], 3, 4)
    assert group.pixels.shape == (2, 3, 8, 8) and group.sizes == [(5, 7), (6, 4)]
    normal = group.images([0.5] * 3, [0.25] * 3)
    assert (normal[0, :, :5, :7] == (9 / 255 - 0.5) / 0.25).all()
    assert not normal[0, :, 5:].any() and not normal[0, :, :, 7:].any() and group.mask.sum((1, 2)).tolist() == [35, 24]
    gray = grouped([Sample(images[0], {})], [0], [(5, 7)], 1, 1)
    assert gray.pixels.shape == (1, 1, 5, 7)


def test_every_image_is_shown_once_an_epoch_and_the_rest_is_dropped():
    stream = Stream(items(), np.arange(11), 4, 2, epochs=3)
    assert (stream.steps_per_epoch, stream.total_steps) == (2, 6)
    orders = [stream.order(e) for e in range(3)]
    assert all(o.shape == (2, 2, 2) and len(set(o.ravel().tolist())) == 8 for o in orders)
    assert not np.array_equal(orders[0], orders[1])
    steps = list(stream.epoch(0))
    assert [p.index for s in steps for p in s.parts] == orders[0].reshape(-1, 2).tolist()
    assert [p.number for p in steps[0].parts] == [0, 1]
    again = list(stream.epoch(0, start=1))
    assert len(again) == 1 and torch.equal(again[0].parts[0].pixels, steps[1].parts[0].pixels)


def test_objects_are_averaged_over_the_groups_of_a_step():
    for step in Stream(items(), np.arange(12), 8, 2, epochs=2).epoch(0):
        counted = sum(len(t["boxes"]) for p in step.parts for t in p.targets)
        assert {p.objects for p in step.parts} == {max(counted / 4, 1.0)}


def steps_of_a_process(rank):
    stream = Stream(items(), np.arange(12), 8, 2, epochs=1)
    return [(p.number, p.index, p.objects, p.pixels.numpy()) for s in stream.epoch(0) for p in s.parts]


def test_two_processes_share_the_groups_of_one():
    alone = steps_of_a_process(0)
    found = sorted((part for one in processes.together(steps_of_a_process) for part in one), key=lambda p: p[0])
    assert [p[:3] for p in found] == [p[:3] for p in alone]
    assert all(np.array_equal(a[3], b[3]) for a, b in zip(alone, found, strict=True))


def test_batches_that_cannot_be_shared_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"head.batch=8 is no multiple of head.group=3"):
        Stream(items(), np.arange(12), 8, 3, epochs=1)
    with pytest.raises(UserError, match=r"12 images to train on, fewer than head.batch=16: lower head.batch"):
        Stream(items(), np.arange(12), 16, 2, epochs=1)
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    with pytest.raises(UserError, match="4 groups of 2 images cannot be shared by 3 processes"):
        Stream(items(), np.arange(12), 8, 2, epochs=1)


def test_difficult_objects_and_empty_images_are_left_out_where_asked():
    source = Source(10)
    assert with_objects(source).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert with_objects(source, difficult=False).tolist() == [0, 2, 6, 8]
    kept = items(source, difficult=False, want="boxes")[(0, 0, [1])].targets[0]
    assert not len(kept["boxes"])


def test_workers_give_the_same_groups():
    one, two = (list(shown_groups(items(), 5, workers)) for workers in (0, 2))
    assert [g.index for g in one] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, two, strict=True))
    assert one[0].sizes[0] == (50, 66) and one[0].files[0] == (36, 48)
