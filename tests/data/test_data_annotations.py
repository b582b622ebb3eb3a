"""Boxes, flags and masks of VOC and COCO, and the numbering of YFCC100M, against the formats' own definitions."""

from __future__ import annotations

import json
import re
import sys
import zipfile

import numpy as np
import pytest
from data_samples import COCO_SHAPES, VOC, YFCC_IDS, build_coco, build_voc2007, build_yfcc, loosened, picture

from golden import load
from zoo import data
from zoo.data import rle, specs, voc, yfcc
from zoo.errors import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    table = loosened()
    monkeypatch.setattr(specs, "load", lambda *_: table)


# ---------------------------------------------------------------- VOC


def test_voc_targets_agree_with_the_golden_labels(tmp_path):
    g = load("deepercluster/voc_labels.npz")
    classes, stems = g.given("class_names").tolist(), g.given("image_names").tolist()
    raw = g.given("raw_class_by_image")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for c, name in enumerate(classes):
        (main / f"{name}_val.txt").write_text("".join(f"{s} {v:2d}\n" for s, v in zip(stems, raw[c], strict=True)))
    for k, stem in enumerate(stems):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg", k)
    source = data.open_source("voc2007", "val", tmp_path)
    assert list(source.classes) == classes
    np.random.seed(5)  # the authors shuffle the list once, through numpy's global generator
    order = np.arange(len(stems))
    np.random.shuffle(order)
    shuffled = source.subset(order)
    g.exact("order_after_seed5_shuffle", shuffled.image_ids)
    g.exact("targets_in_that_order", shuffled.targets)


def test_an_image_that_a_class_file_does_not_list_is_not_counted_there(tmp_path):
    (tmp_path / "cat_val.txt").write_text("a  1\nb -1\n")
    (tmp_path / "dog_val.txt").write_text("b  0\n")
    targets = voc.read_targets(tmp_path, "val", ["cat", "dog"], {"a": 0, "b": 1})
    assert targets.tolist() == [[1, 255], [0, 255]]


def test_voc_boxes_are_continuous_and_flags_survive(tmp_path):
    build_voc2007(tmp_path)
    found = data.open_source("voc2007", "train", tmp_path).objects(2)
    assert found.boxes.tolist() == [[0, 0, 10, 20], [1, 0, 11, 20]]  # 1..10 both included is 0..10
    assert [VOC[k] for k in found.classes] == ["bird", "boat"]
    assert found.difficult.tolist() == [False, True] and not found.crowd.any()
    assert found.area.tolist() == [200, 200]


def test_a_voc_object_without_the_difficult_tag_is_not_difficult_and_a_box_a_pixel_outside_is_clipped(tmp_path):
    build_voc2007(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000003.xml"
    text = re.sub("<difficult>[01]</difficult>", "", path.read_text())
    width = int(re.search("<width>([0-9]+)", text)[1])
    path.write_text(text.replace("<xmax>10</xmax>", f"<xmax>{width + 1}</xmax>", 1))
    found = data.open_source("voc2007", "train", tmp_path).objects(2)
    assert len(found) == 2 and found.difficult.tolist() == [False, False] and found.boxes[0, 2] == width


def test_an_image_of_the_voc_segmentation_list_alone_has_no_class_that_counts(tmp_path):
    build_voc2007(tmp_path)
    main = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main"
    for path in main.glob("*train.txt"):
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if not line.startswith("000002")))
    source = data.open_source("voc2007_segmentation", "train", tmp_path)
    rows = dict(zip(source.image_ids, source.targets.tolist(), strict=True))
    assert set(rows["000002"]) == {255} and all(
        255 not in set(row) or 1 in row for name, row in rows.items() if name != "000002"
    )


def test_voc_annotations_are_part_of_the_fingerprint(tmp_path):
    for name in ("one", "two"):
        build_voc2007(tmp_path / name)
    path = tmp_path / "two/VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0].split()[0] + ("  1" if lines[0].split()[1] == "-1" else " -1"), *lines[1:]]) + "\n"
    )
    one, two = (data.open_source("voc2007", "train", tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint != two.fingerprint and one.identity != two.identity


def test_parts_of_a_voc_object_are_not_objects(tmp_path):
    build_voc2007(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    inner = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    path.write_text(path.read_text().replace("<name>aeroplane</name>", f"{inner}<name>aeroplane</name>"))
    found = data.open_source("voc2007", "train", tmp_path).objects(0)
    assert len(found) == 2 and found.boxes[0].tolist() == [0, 0, 10, 20]


def test_voc_masks_follow_the_objects(tmp_path):
    build_voc2007(tmp_path)
    source = data.open_source("voc2007_segmentation", "train", tmp_path)
    masks, picture_ = source.masks(0), source.segmentation(0)
    assert masks.sum(axis=(1, 2)).tolist() == [100, 120]  # columns 0-4, and columns 5-10
    assert (
        set(np.unique(picture_)) == {0, 1, 2, 255} and (picture_[masks[0]] == 1).all() and (picture_[20] == 255).all()
    )


def test_voc_colours_follow_the_classes_when_they_are_numbered_anew(tmp_path):
    build_voc2007(tmp_path)
    source = data.open_source("voc2007_segmentation", "train", tmp_path)
    turned = source.renumbered(source.classes[::-1], np.arange(20)[::-1]).subset([2, 0])
    assert {20 - int(k) for k in np.unique(turned.segmentation(1)) if 0 < k < 255} == {0, 1}
    for i, k in ((1, 0), (0, 2)):
        assert {turned.classes[c] for c in turned.objects(i).classes} == {
            source.classes[c] for c in source.objects(k).classes
        }
        assert turned.targets[i].tolist() == source.targets[k][::-1].tolist()


XML = "VOCdevkit/VOC2007/Annotations/000001.xml"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<xmax>10</xmax>", "<xmax>90</xmax>", r"000001.xml:3: box \[0, 0, 90, 20\] lies outside the image of 40 x 30"),
        ("<xmax>10</xmax>", "<xmax>0</xmax>", r"000001.xml:3: box .* is empty"),
        ("<xmax>10</xmax>", "<xmax>ten</xmax>", r"000001.xml:6: 'ten' is not a number"),
        ("<xmax>10</xmax>", "", r"000001.xml:3: <object> has no <bndbox><xmax>"),
        ("aeroplane", "airplane", r"000001.xml:3: unknown category 'airplane'; did you mean 'aeroplane'"),
        ("</annotation>", "", r"000001.xml:\d+: not XML: no element found"),
        ("<width>40</width>", "", r"000001.xml:1: <annotation> has no <size><width>"),
    ],
)
def test_a_wrong_voc_annotation_names_file_and_line(tmp_path, old, new, message):
    build_voc2007(tmp_path)
    path = tmp_path / XML
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        data.open_source("voc2007", "train", tmp_path).objects(0)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("cat_train.txt", "000001 2\n", r"cat_train.txt:1: expected `image 1\|0\|-1`"),
        ("cat_train.txt", "000001 1\n999999 1\n", r"cat_train.txt:2: image 999999 is not in train.txt"),
        ("train.txt", "", r"train.txt: lists no image"),
        ("train.txt", "000001\n000077\n", r"(000077.jpg|image 000002 is not in train.txt)"),
        ("cow_train.txt", None, r"class file cow_train.txt is missing"),
        ("emu_train.txt", "000001 1\n", r"class file emu_train.txt is missing or not of this set"),
    ],
)
def test_a_wrong_voc_list_names_file_and_line(tmp_path, name, content, message):
    build_voc2007(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        data.open_source("voc2007", "train", tmp_path)


def test_a_voc_image_without_masks_is_an_error_that_says_so(tmp_path):
    build_voc2007(tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/SegmentationClass/000001.png").unlink()
    with pytest.raises(UserError, match="000001.png: no segmentation of this image"):
        data.open_source("voc2007", "train", tmp_path).segmentation(0)


# ---------------------------------------------------------------- COCO


def test_coco_numbers_categories_by_id_and_keeps_crowds(tmp_path):
    build_coco(tmp_path)
    source = data.open_source("coco", "train", tmp_path)
    assert source.classes == ("person", "dog") and source.category_ids.tolist() == [1, 18]
    assert source.image_ids.tolist() == [3, 7, 9]
    assert [len(source.objects(i)) for i in range(3)] == [1, 2, 0]
    found = source.objects(1)
    assert found.boxes.tolist() == [[2, 3, 12, 11], [0, 0, 4, 2]]
    assert found.classes.tolist() == [1, 0] and found.crowd.tolist() == [False, True] and found.ids.tolist() == [11, 12]
    assert found.area.tolist() == [80, 8] and not found.difficult.any()
    assert source.targets.tolist() == [[0, 1], [0, 1], [0, 0]]  # a crowd does not make its class present
    assert source.size(1) == (16, 20)


def test_coco_masks_are_those_of_polygons_and_run_lengths(tmp_path):
    build_coco(tmp_path)
    source = data.open_source("coco", "train", tmp_path)
    masks = source.masks(1)
    expected = np.zeros((2, 16, 20), bool)
    expected[0, 3:11, 2:12] = True
    expected[1, :2, :4] = True
    assert np.array_equal(masks, expected)
    picture_ = source.segmentation(1)
    assert (picture_[3:11, 2:12] == 2).all() and (picture_[:2, :4] == 255).all() and (picture_ == 0).sum() == 320 - 88
    assert source.masks(2).shape == (0, 16, 20)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [15, 3, 10, 8]}, r"instances_train.json:4: annotation 11: box \[15, 3, 25, 11\] lies outside"),
        ({"bbox": [2, 3, 0, 8]}, r"instances_train.json:4: annotation 11: box .* is empty"),
        ({"category_id": 77}, r"instances_train.json:4: annotation 11: unknown category 77"),
        ({"image_id": 8}, r"instances_train.json:4: annotation 11: unknown image 8"),
        ({"bbox": [1, 2, 3]}, r"instances_train.json:4: annotation without"),
    ],
)
def test_a_wrong_coco_annotation_names_file_line_and_id(tmp_path, change, message):
    build_coco(tmp_path)
    path = tmp_path / "annotations/instances_train.json"
    lines = path.read_text().splitlines()
    row = json.loads(lines[3].rstrip(","))
    assert row["id"] == 11
    lines[3] = json.dumps({**row, **change}) + ","
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        data.open_source("coco", "train", tmp_path)


def test_bad_boxes_are_left_out_up_to_the_number_that_the_set_allows(tmp_path, monkeypatch, capsys):
    build_coco(tmp_path, shapes=[{**COCO_SHAPES[0], "bbox": [2, 3, 0, 8]}, COCO_SHAPES[1]])
    allowed = {n: data.describe("coco").model_copy(update={"options": {"bad_boxes": n}}) for n in (1, 2)}
    monkeypatch.setattr(specs, "load", lambda *_: {"coco": allowed[1]})
    with pytest.raises(UserError, match=r"2 such, bad_boxes of coco allows 1"):
        data.open_source("coco", "train", tmp_path)
    monkeypatch.setattr(specs, "load", lambda *_: {"coco": allowed[2]})
    assert [len(data.open_source("coco", "train", tmp_path).objects(i)) for i in range(3)] == [0, 1, 0]
    assert "2 such boxes left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message", [("{", ":1: not JSON"), ("[]", "expected lists of images"), ('{"images": 1}', "expected lists")]
)
def test_a_file_that_is_not_coco_is_refused(tmp_path, text, message):
    build_coco(tmp_path)
    (tmp_path / "annotations/instances_train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        data.open_source("coco", "train", tmp_path)


def test_a_bad_segmentation_is_named_when_it_is_asked_for(tmp_path):
    build_coco(tmp_path, shapes=[{**COCO_SHAPES[0], "segmentation": [[1, 2, 3]]}, COCO_SHAPES[1]])
    source = data.open_source("coco", "train", tmp_path)
    with pytest.raises(UserError, match=r"instances_train.json:3: annotation 5: bad segmentation: a polygon needs"):
        source.masks(0)


def test_an_image_that_coco_lists_but_does_not_have_is_named(tmp_path):
    build_coco(tmp_path)
    (tmp_path / "train/000000000007.jpg").unlink()
    with pytest.raises(UserError, match="000000000007.jpg: listed in instances_train.json, but No such file"):
        data.open_source("coco", "train", tmp_path)


# ---------------------------------------------------------------- masks

TRIANGLE = [1.5, 0.5, 7.25, 2.0, 3.0, 6.75]
# Down the columns of 8 x 9 pixels, and its compressed form: both as pycocotools 2.0.11 wrote them.
RUNS, TEXT = [17, 3, 5, 5, 3, 4, 5, 2, 6, 1, 21], "a0352NO2N1O?"


def test_polygons_and_both_kinds_of_run_lengths_are_one_mask():
    flat = np.repeat(np.arange(len(RUNS)) % 2 == 1, RUNS).reshape(9, 8).T
    for shape in ([TRIANGLE], {"counts": RUNS, "size": [8, 9]}, {"counts": TEXT, "size": [8, 9]}, {"counts": RUNS}):
        assert np.array_equal(rle.decode(shape, 8, 9), flat)
    assert rle.encode(flat) == {"counts": TEXT, "size": [8, 9]}
    square = np.zeros((8, 9), bool)
    square[5:8, 5:9] = True
    both = rle.decode([TRIANGLE, [5, 5, 9, 5, 9, 8, 5, 8]], 8, 9)
    assert np.array_equal(both, flat | square) and not rle.decode([], 8, 9).any()


def test_masks_go_there_and_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random(rng.integers(1, 9, 2)) < 0.5
        assert np.array_equal(rle.decode(json.loads(json.dumps(rle.encode(mask))), *mask.shape), mask)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"counts": [2, 3], "size": [2, 3]}, "cover 5 pixels, the image has 6"),
        ({"counts": [-1, 7], "size": [2, 3]}, "run lengths cover"),
        ({"counts": "P", "size": [2, 3]}, "Invalid RLE"),
        ({"counts": TEXT, "size": [9, 8]}, r"run lengths of \[9, 8\], the image is 2 x 3"),
        ([[0, 0, 4, 4]], "three pairs of numbers, found 4"),
        ([[0, 0, 4, 0, 4]], "three pairs of numbers, found 5"),
        ([[0, 0, 4, 0, 4, float("nan")]], "three pairs"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        rle.decode(shape, 2, 3)


def test_without_pycocotools_masks_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'selfzoo\[detection\]'"):
        rle.decode([TRIANGLE], 8, 9)


# ---------------------------------------------------------------- YFCC100M


def test_yfcc_places_are_the_golden_ones():
    g = load("deepercluster/yfcc_paths.json")
    assert len(g.names) > 5
    for name in g.names:
        index = g.given(name)["index"]
        archive, member = yfcc.place(index)
        g.exact(name, {"index": index, "zip": f"ROOT/{archive}", "member": member})


def test_yfcc_follows_its_list_of_numbers(tmp_path):
    build_yfcc(tmp_path)
    source = data.open_source("yfcc100m", root=tmp_path)
    assert [source.name(i) for i in range(5)] == ["/".join(yfcc.place(n)) for n in YFCC_IDS]
    assert source.subset([2]).where(0) == f"{tmp_path}/00/012.zip@/345.jpg"


@pytest.mark.parametrize(
    "numbers, message", [([0.5], "whole numbers"), ([10**8], "100000000 is not an image"), ([], "whole numbers")]
)
def test_a_wrong_list_of_numbers_is_refused(tmp_path, numbers, message):
    build_yfcc(tmp_path)
    np.save(tmp_path / "flickr_unique_ids.npy", np.array(numbers))
    with pytest.raises(UserError, match=message):
        data.open_source("yfcc100m", root=tmp_path)


def test_yfcc_names_a_missing_zip_and_a_missing_member(tmp_path):
    build_yfcc(tmp_path)
    np.save(tmp_path / "flickr_unique_ids.npy", np.array([1, 55_000_000]))
    source = data.open_source("yfcc100m", root=tmp_path)
    with pytest.raises(data.ImageError, match="00/000.zip@/001.jpg: not in the zip"):
        source.image(0)
    with pytest.raises(data.ImageError, match="55/000.zip: missing; it should hold 000.jpg"):
        source.image(1)


def test_yfcc_decodes_a_truncated_image_as_far_as_it_goes(tmp_path):
    build_yfcc(tmp_path)
    whole = picture(tmp_path / "loose" / "big.jpg", 3, size=(200, 150)).read_bytes()
    with zipfile.ZipFile(tmp_path / "00/000.zip", "a") as file:
        file.writestr("500.jpg", whole[: len(whole) * 2 // 3])
    np.save(tmp_path / "flickr_unique_ids.npy", np.array([500]))
    assert data.open_source("yfcc100m", root=tmp_path).image(0).size == (200, 150)


def test_a_hundred_million_numbers_need_no_memory_for_labels():
    numbers = np.arange(1_000_000)
    sizes = np.broadcast_to(np.int64(-1), numbers.shape)
    source = yfcc.YfccSource(yfcc.NumberNames(numbers), sizes, None, [], yfcc.YfccStore(None, numbers), lenient=True)
    assert source.labels.strides == (0,) and source.labels[-1] == -1 and len(source) == 1_000_000
