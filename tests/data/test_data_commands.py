"""python -m zoo data …: what each command prints, writes and returns."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_samples import build_coco, build_zip, folders, loosened, picture, stream

from zoo import data
from zoo.__main__ import main
from zoo.data import specs
from zoo.errors import guard


@pytest.fixture(autouse=True)
def small(monkeypatch):
    table = loosened()
    monkeypatch.setattr(specs, "load", lambda *_: table)


@pytest.fixture
def run(capsys):
    """Run a command; returns (exit status, what it printed, its errors)."""

    def command(*words):
        status = guard(lambda: main(["data", *map(str, words)]))
        out = capsys.readouterr()
        return status, out.out, out.err

    return command


def test_list_names_every_data_set(run):
    status, out, _ = run("list")
    assert status == 0 and all(f"{name} " in out for name in data.names())
    assert "embedded" in out


def test_check_of_a_good_set_says_so(run, tmp_path):
    folders(tmp_path)
    status, out, _ = run("check", tmp_path)
    assert status == 0 and "train: 12 images, 3 classes of 4 to 4 images" in out and "nothing wrong" in out


def test_check_lists_everything_that_is_wrong(run, tmp_path):
    root = folders(tmp_path / "set", parts=("train", "val"))
    (root / "train/ant/ant_0.jpg").write_bytes(b"")
    (root / "train/bee/bee_1.JPEG").write_bytes((root / "train/bee/bee_1.JPEG").read_bytes()[:300])
    (root / "train/cat/cat_0.jpg").write_bytes((root / "train/ant/ant_1.JPEG").read_bytes())
    (root / "val/cat/cat_3.JPEG").write_bytes((root / "train/bee/bee_0.jpg").read_bytes())
    picture(root / "train/cat/real.png", 1).replace(root / "train/cat/cat_2.jpg")
    picture(root / "train/cat/grey.png", 1, mode="P")
    (root / "train/cat/notes.txt").write_text("not an image")
    status, out, _ = run("check", "folder", root)
    assert status == 1 and "2 problems" in out
    for line in (
        "ant_0.jpg: empty file",
        "bee_1.JPEG: cannot be decoded",
        "train: cat/cat_0.jpg is the same as train: ant/ant_1.JPEG",
        "val: cat/cat_3.JPEG is the same as train: bee/bee_0.jpg",
        "1 images are PNG behind another extension",
        "1 images have mode P (converted)",
        "train: 1 other files are not read",
    ):
        assert line in out
    assert "test/" not in out  # a folder of one's own need not have every split


def test_check_lists_every_wrong_map_line(run, tmp_path):
    build_zip(tmp_path / "set")
    path = tmp_path / "set/train_map.txt"
    lines = path.read_text().splitlines()
    lines[1], lines[3] = "no tab", lines[0]
    path.write_text("\n".join(lines))
    status, out, _ = run("check", "folder", tmp_path / "set")
    assert (
        status == 1 and "train_map.txt:2: expected" in out and "train_map.txt:4: ant/ant_0.jpg is listed already" in out
    )
    path.write_text("\n".join(lines[4:]))
    assert "train: 4 images in the zip are not in its map" in run("check", "folder", tmp_path / "set")[1]
    path.write_text("\n".join([*lines[:1], "ghost.jpg\t0", "spook.jpg\t1"]))
    status, out, _ = run("check", "folder", tmp_path / "set")
    assert "train_map.txt:2: ghost.jpg is not in train.zip" in out and "train_map.txt:3: spook.jpg" in out


def test_check_reads_boxes_and_says_what_is_missing(run, tmp_path, monkeypatch):
    build_coco(tmp_path)
    assert run("check", "coco", tmp_path)[0] == 0
    spec = data.describe("coco2017").model_copy(
        update={"classes": 2, "splits": {s: specs.SplitRule(read=s, count=9) for s in ("train", "val2017")}}
    )
    monkeypatch.setattr(specs, "load", lambda *_: {"coco2017": spec})
    status, out, _ = run("check", "coco2017", tmp_path)
    assert (
        status == 1
        and "train: 3 images of 9: 6 images missing" in out
        and "needs annotations/instances_val2017.json" in out
    )


def test_check_compares_the_classes_of_the_parts(run, tmp_path):
    root = folders(tmp_path / "set", parts=("train", "val"))
    assert "  val: the 3 classes of train, numbered alike" in run("check", root)[1]
    shutil.rmtree(root / "val/ant")
    status, out, _ = run("check", root)
    assert status == 0 and "note: val: 1 of 3 classes has images in train and none in val: 'ant'" in out
    assert (
        "val: numbers its classes otherwise than train ('bee' is 0 here and 1 there): evaluations join them by name"
        in out
    )
    (root / "val/bee").rename(root / "val/Bee")
    status, out, _ = run("check", root)
    assert status == 1 and "problem: val: class 'Bee' of val has no images in train; did you mean 'bee'" in out


def test_check_compares_category_ids(run, tmp_path):
    build_coco(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    path = tmp_path / "annotations/instances_val.json"
    path.write_text(json.dumps(content))
    status, out, _ = run("check", "coco", tmp_path)
    assert status == 0 and "val: the 2 classes of train, numbered alike" in out and "has id" not in out
    for entry in content["categories"]:
        entry["id"] = {18: 2, 1: 7}[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = {18: 2, 1: 7}[entry["category_id"]]
    path.write_text(json.dumps(content))
    status, out, _ = run("check", "coco", tmp_path)
    assert status == 0 and "val: category 'dog' has id 2 here and 18 in train" in out
    assert "numbers its classes otherwise than train" in out
    content["categories"][0]["name"] = "wolf"
    path.write_text(json.dumps(content))
    status, out, _ = run("check", "coco", tmp_path)
    assert status == 1 and "class 'wolf' of val has no images in train" in out


def test_check_of_a_wrong_name_or_path_is_an_error(run, tmp_path):
    status, _, err = run("check", "imagenot")
    assert status == 2 and err.startswith("error: unknown data set 'imagenot'; did you mean 'imagenet'")
    status, _, err = run("check", "imagenet", tmp_path / "nowhere")
    assert status == 2 and "nowhere does not exist" in err


def test_pack_and_shard_keep_every_image(run, tmp_path):
    root = folders(tmp_path / "set", parts=("train", "val"))
    original = {s: data.open_source("folder", s, root) for s in ("train", "val")}
    status, out, _ = run("pack", "folder", root, "--to", tmp_path / "zip")
    assert status == 0 and out.splitlines()[0] == f"{tmp_path}/zip/train.zip"
    status, out, _ = run("shard", root, "--to", tmp_path / "tar", "--per-shard", 5, "--split", "val")
    assert status == 0 and [line.rpartition("/")[2] for line in out.splitlines()] == [
        "val-000000.tar",
        "val-000001.tar",
        "val-000002.tar",
        "val.index.tsv",
    ]
    for kind, split in (("zip", "train"), ("zip", "val"), ("tar", "val")):
        copy = data.open_source("folder", split, tmp_path / kind)
        assert stream(copy) == stream(original[split]) and copy.fingerprint == original[split].fingerprint
    first = (tmp_path / "zip/train.zip").read_bytes()
    run("pack", "folder", root, "--to", tmp_path / "zip")
    assert (tmp_path / "zip/train.zip").read_bytes() == first


def test_pack_needs_labels_and_files(run, tmp_path):
    for k in range(3):
        picture(tmp_path / "set" / f"{k}.jpg", k)
    status, _, err = run("pack", "images", tmp_path / "set", "--to", tmp_path / "zip")
    assert status == 2 and "a map needs labels" in err
    status, _, err = run("pack", "digits", "--to", tmp_path / "zip")
    assert status == 2 and "only sets of image files" in err
    assert run("shard", "images", tmp_path / "set", "--to", tmp_path / "tar")[0] == 0
    assert not data.open_source("folder", "train", tmp_path / "tar").labelled


def test_subset_takes_the_same_share_of_every_class(run, tmp_path):
    root = folders(tmp_path / "set", parts=("train",), each=20)
    status, out, _ = run("subset", "folder", root, "--percent", 10, "--to", tmp_path / "ten.txt")
    assert status == 0 and "6 of folder's images" in out and "train@" in out
    source = data.open_source("folder", f"train@{tmp_path}/ten.txt", root)
    assert np.bincount(source.labels).tolist() == [2, 2, 2]
    run("subset", "folder", root, "--percent", 10, "--to", tmp_path / "again.txt")
    run("subset", "folder", root, "--percent", 10, "--to", tmp_path / "other.txt", "--seed", 1)
    texts = [(tmp_path / f"{n}.txt").read_text() for n in ("ten", "again", "other")]
    assert texts[0] == texts[1] != texts[2]
    run("subset", "folder", root, "--percent", 1, "--to", tmp_path / "one.txt")
    assert len((tmp_path / "one.txt").read_text().splitlines()) == 3  # at least one of each class


@pytest.mark.parametrize(
    "words, message",
    [(["--percent", 0], "--percent 0: expected"), (["--percent", 1, "--published"], "of imagenet only")],
)
def test_subset_refuses_what_makes_no_sense(run, tmp_path, words, message):
    folders(tmp_path)
    status, _, err = run("subset", "folder", tmp_path, "--to", tmp_path / "x.txt", *words)
    assert status == 2 and message in err and not (tmp_path / "x.txt").exists()


def test_make_scenes_writes_sets_that_check_finds_good(run, tmp_path):
    status, out, _ = run("make", "scenes", "--to", tmp_path / "s", "--items", "digits", "--images", 20)
    assert status == 0 and f"next: python -m zoo data check coco {tmp_path}/s/coco" in out
    for form in ("voc", "coco"):
        status, out, _ = run("check", form, tmp_path / "s" / form)
        assert status == 0, out
        assert "train: 12 images, 10 classes" in out


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, whose files cannot be made by anyone")
@pytest.mark.parametrize(
    "words",
    [
        ["subset", "digits", "--percent", 10],
        ["make", "scenes", "--items", "digits", "--images", 10],
        ["make", "scenes", "--items", "digits", "--images", 10, "--format", "coco"],
    ],
)
def test_a_place_where_no_file_can_be_made_is_one_error_line(run, words):
    status, _, err = run(*words, "--to", "/proc/x")
    assert status == 2 and err.startswith("error: /proc/x") and "name another place" in err and err.count("\n") == 1


# ---------------------------------------------------------------- prepare imagenet-val

WNIDS = ("n01440764", "n01443537", "n02123045")
TRUTH = {f"ILSVRC2012_val_{k:08d}.JPEG": WNIDS[(k * 2) % 3] for k in range(1, 8)}


def heap(root):
    for k, name in enumerate(TRUTH):
        path = picture(root / "val" / name.replace(".JPEG", ".jpg"), k)
        path.rename(path.with_suffix(".JPEG"))
    for wnid in WNIDS:
        (root / "train" / wnid).mkdir(parents=True)


def labels_as(root, kind):
    if kind == "map":
        (root / "val_map.txt").write_text("".join(f"{n}\t{WNIDS.index(c)}\n" for n, c in TRUTH.items()))
    elif kind == "csv":
        rows = "".join(f"{n[:-5]},{c} 85 1 499 272 \n" for n, c in TRUTH.items())
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    else:
        from scipy.io import savemat

        ids = (2, 3, 1)  # the kit numbers its classes in an order of its own
        synsets = np.array(
            [(i, w) for i, w in zip(ids, WNIDS, strict=True)], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")]
        )
        folder = root / "ILSVRC2012_devkit_t12" / "data"
        folder.mkdir(parents=True)
        savemat(folder / "meta.mat", {"synsets": synsets})
        truth = "".join(f"{ids[WNIDS.index(c)]}\n" for c in TRUTH.values())
        (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
        if kind == "kit.tar":
            with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
                tar.add(folder.parent, "ILSVRC2012_devkit_t12")


@pytest.mark.parametrize("kind", ["map", "csv", "kit", "kit.tar"])
def test_validation_images_are_sorted_by_any_of_the_lists(run, tmp_path, kind):
    heap(tmp_path)
    labels_as(tmp_path, kind)
    status, out, _ = run("prepare", "imagenet-val", tmp_path)
    assert status == 0 and "7 images sorted, 0 were in place" in out
    assert {p.name: p.parent.name for p in (tmp_path / "val").rglob("*.JPEG")} == TRUTH
    assert "0 images sorted, 7 were in place" in run("prepare", "imagenet-val", tmp_path)[1]


def test_a_folder_that_is_not_there_is_told_before_anything_is_looked_for_in_it(run, tmp_path):
    status, _, error = run("prepare", "imagenet-val", tmp_path / "none")
    assert status == 2 and "none: no such folder" in error


def test_validation_images_are_sorted_out_of_the_tar_and_an_interruption_is_made_good(run, tmp_path):
    heap(tmp_path)
    labels_as(tmp_path, "csv")
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for name in TRUTH:
            tar.add(tmp_path / "val" / name, name)
            (tmp_path / "val" / name).unlink()
    assert "7 images sorted, 0 were in place" in run("prepare", "imagenet-val", tmp_path)[1]
    name, wnid = next(iter(TRUTH.items()))
    (tmp_path / "val" / wnid / name).write_bytes(b"cut short")
    assert "1 images sorted, 6 were in place" in run("prepare", "imagenet-val", tmp_path)[1]


def test_nothing_is_moved_when_an_image_has_no_class(run, tmp_path):
    heap(tmp_path)
    labels_as(tmp_path, "csv")
    picture(tmp_path / "val/extra.jpg", 1).rename(tmp_path / "val/extra.JPEG")
    status, _, err = run("prepare", "imagenet-val", tmp_path)
    assert status == 2 and "does not list extra.JPEG (1 such images)" in err
    assert len(list((tmp_path / "val").glob("*.JPEG"))) == 8


def test_prepare_says_which_lists_it_knows(run, tmp_path):
    heap(tmp_path)
    status, _, err = run("prepare", "imagenet-val", tmp_path)
    assert status == 2 and "LOC_val_solution.csv" in err
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001\n")
    assert "LOC_val_solution.csv:2: expected" in run("prepare", "imagenet-val", tmp_path)[2]
    assert "does not exist" in run("prepare", "imagenet-val", tmp_path, "--labels", tmp_path / "none.csv")[2]
    (tmp_path / "LOC_val_solution.csv").unlink()
    (tmp_path / "bad.tar").write_bytes(io.BytesIO(b"no tar").read())
    assert run("prepare", "imagenet-val", tmp_path, "--labels", tmp_path / "bad.tar")[2].startswith(
        f"error: {tmp_path}/bad.tar: "
    )
