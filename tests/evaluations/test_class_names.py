"""Classes are joined by name: whatever the parts call, order or leave out, images that anything tells apart score 100."""

from __future__ import annotations

import json
import tarfile
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torchvision
from evaluation_fakes import finished_run, protocol
from PIL import Image

from evaluations import measure, pair
from evaluations.inputs import datasets
from evaluations.measure import Measurement, Settings
from results import record as records
from zoo import data
from zoo.errors import UserError

SIZE = {"transform.resize": 8, "transform.crop": 8}
EACH = 12


def picture(name: str, i: int) -> bytes:
    """8 x 8 gray: class "a" has bright rows 0-1, "b" rows 2-3, …, over faint noise."""
    pixels = np.random.default_rng(i).integers(0, 30, (8, 8), dtype=np.uint8)
    row = 2 * "abcd".index(name)
    pixels[row : row + 2] += 200
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folder(root, part, names):
    for name in names:
        (root / part / name).mkdir(parents=True)
        for i in range(EACH):
            (root / part / name / f"{part}{i}.png").write_bytes(picture(name, i))


def zip_of(path="{name}/{i}.png"):
    def build(root, part, names):
        """Numbers as the map's author liked them: the order of ``names``, "-" for a number without images."""
        root.mkdir(exist_ok=True)
        lines = []
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for number, name in enumerate(names):
                for i in range(EACH * (name != "-")):
                    member = path.format(part=part, name=name, i=i)
                    archive.writestr(member, picture(name, i))
                    lines.append(f"{member}\t{number}\n")
        (root / f"{part}_map.txt").write_text("".join(lines))

    return build


def shards(root, part, names):
    """Tar shards from elsewhere: the class is a number in a .cls file."""
    root.mkdir(exist_ok=True)
    with tarfile.open(root / f"{part}-000000.tar", "w") as tar:
        for number, name in enumerate(names):
            for i in range(EACH * (name != "-")):
                for extension, content in (("png", lambda: picture(name, i)), ("cls", lambda: str(number).encode())):  # noqa: B023
                    info = tarfile.TarInfo(f"{number}_{i}.{extension}")
                    info.size = len(content())
                    tar.addfile(info, BytesIO(content()))


def indexed_shards(root, part, names):
    """Tar shards that this project wrote: the index knows the names."""
    from zoo.data.archive_sets import write_shards

    folder(root / f"{part} loose", "train", names)
    write_shards(data.open_source("folder", "train", root / f"{part} loose"), root, part)


def coco(root, part, names):
    """One object an image; categories are numbered in the order of ``names``, from another first number in each part."""
    (root / part).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, objects = [], []
    for number, name in enumerate(names):
        for i in range(EACH * (name != "-")):
            k = len(images)
            (root / part / f"{k}.png").write_bytes(picture(name, i))
            images.append({"id": k, "file_name": f"{k}.png", "width": 8, "height": 8})
            objects.append(
                {"id": k, "image_id": k, "category_id": number + len(part), "bbox": [0, 0, 8, 4], "area": 32}
            )
    categories = [{"id": number + len(part), "name": name} for number, name in enumerate(names) if name != "-"]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def voc(root, part, names):
    """One object an image, and a class file for those classes only that the part has."""
    lists = root / "ImageSets" / "Main"
    for place in (root / "JPEGImages", root / "Annotations", lists):
        place.mkdir(parents=True, exist_ok=True)
    stems = {}
    for name in names:
        for i in range(EACH):
            stems[f"{part}_{name}{i}"] = name
            (root / "JPEGImages" / f"{part}_{name}{i}.jpg").write_bytes(picture(name, i))
    (lists / f"{part}.txt").write_text("".join(f"{s}\n" for s in stems))
    for name in names:
        (lists / f"{name}_{part}.txt").write_text("".join(f"{s} {1 if n == name else -1}\n" for s, n in stems.items()))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    finished_run("pixels_digits", where)
    finished_run("random_digits", where)
    return where


def top1(out, root, name, **more):
    given = {**SIZE, "data": str(root), **{k.replace("__", "."): v for k, v in more.items()}}
    found = records.read(measure.evaluate(name, "pixels_digits", given, out=str(out), quiet=True))
    return {name: metric.value for name, metric in found.metrics.items()}


# layout, how train/ and test/ are written: classes in the order in which the part numbers them
SAME_IMAGES = {
    "a folder less": (folder, "abc", "ac"),
    "the first folder less": (folder, "abc", "bc"),
    "one folder alone": (folder, "abc", "c"),
    "a zip less": (zip_of(), "abc", "ac"),
    "a zip in another order": (zip_of(), "abc", "cab"),
    "a zip in another order with a gap": (zip_of(), "abc", "c-a"),
    "a zip with one class": (zip_of(), "abc", "c"),
    "a zip whose folders lie deeper": (zip_of("{part}/{name}/{i}.png"), "cab", "bca"),
    "a zip of numbers": (zip_of("{name}{i}.png"), "abc", "a-c"),
    "shards of numbers": (shards, "abc", "a-c"),
    "shards with names": (indexed_shards, "abc", "ac"),
}


@pytest.mark.parametrize("case", SAME_IMAGES)
@pytest.mark.parametrize("name, more", [("knn_folder", {"grid__k": [1]}), ("ridge_folder", {})])
def test_every_layout_scores_100_whatever_its_numbers(out, tmp_path, case, name, more):
    write, train, test = SAME_IMAGES[case]
    write(tmp_path / "set", "train", train)
    write(tmp_path / "set", "test", test)
    assert top1(out, tmp_path / "set", name, **more)["top1"] == 100


@pytest.mark.parametrize(
    "name, more",
    [
        ("linear_folder", {"head__epochs": 20}),
        ("fewlabel_folder", {"head__draws": 3}),
        ("linear_scenes", {"dataset": "folder", "splits__train": "train", "head__shots": []}),
        ("semisup_digits_10pct", {"dataset": "folder", "head__percent": 100, "seeds": 1, "head__snapshots": 1}),
        ("cluster_folder", {"head__score": "test", "seeds": 2}),
    ],
)
def test_every_evaluation_scores_100_when_test_lacks_a_class(out, tmp_path, name, more):
    folder(tmp_path, "train", "abc")
    folder(tmp_path, "test", "ac")
    found = top1(out, tmp_path, name, **more)
    assert found.get("top1", found.get("nmi")) == pytest.approx(100)
    if name == "linear_scenes":
        assert found["map"] == 100


@pytest.mark.parametrize("write, dataset", [(coco, "coco"), (voc, "voc")])
@pytest.mark.parametrize("test", ["ac", "cb", "abc"])
def test_several_labels_per_image_are_joined_by_name_too(out, tmp_path, write, dataset, test):
    write(tmp_path, "train", "bca" if dataset == "coco" else "abc")
    write(tmp_path, "test", test)
    found = top1(out, tmp_path, "linear_scenes", dataset=dataset, splits__train="train", head__shots=[])
    assert found["map"] == 100
    task = Measurement.of(
        "linear_scenes",
        "pixels_digits",
        Settings.of({**SIZE, "data": str(tmp_path), "dataset": dataset, "splits.train": "train"}, str(out)),
    )
    train, opened = task.open("train"), task.open("test")
    assert opened.classes == train.classes
    for i in range(0, len(opened), 5):
        shown = {opened.classes[k] for k in np.flatnonzero(opened.targets[i] == 1)}
        assert np.array_equal(opened.pixels(i), data.open_source(dataset, "test", tmp_path).pixels(i))
        row = np.asarray(Image.open(BytesIO(opened.raw(i))))[::2].mean(1).argmax()
        assert shown == {"abcd"[row]}
    if dataset == "coco":
        of_file = {
            c["name"]: c["id"]
            for c in json.loads((tmp_path / "annotations/instances_test.json").read_text())["categories"]
        }
        assert [of_file.get(name, -1) for name in opened.classes] == opened.category_ids.tolist()
        assert {opened.classes[k] for i in range(len(opened)) for k in opened.objects(i).classes} == set(test)
        few = opened.subset([len(opened) - 1])
        assert few.classes[int(few.objects(0).classes[0])] == test[-1]


ONLY_IN_TEST = {
    "a folder": (folder, "ab", "abd", "'d'"),
    "a folder in capitals": (folder, "ab", ["a", "b", "c"], "'c'"),
    "a zip": (zip_of(), "ab", "bda", "'d'"),
    "a zip of numbers": (zip_of("{name}{i}.png"), "a-c", "abc", "'1'"),
    "shards of numbers": (shards, "ab", "abd", "'2'"),
    "coco": (coco, "ab", "dab", "'d'"),
    "voc": (voc, "ab", "abd", "'d'"),
}


@pytest.mark.parametrize("case", ONLY_IN_TEST)
def test_a_class_that_only_the_test_part_has_is_an_error_that_names_it(out, tmp_path, case):
    write, train, test, named = ONLY_IN_TEST[case]
    write(tmp_path / "set", "train", train)
    write(tmp_path / "set", "test", test)
    kind = case if case in ("coco", "voc") else "folder"
    name, more = ("knn_folder", {"grid__k": [1]}) if kind == "folder" else ("linear_scenes", {"splits__train": "train"})
    with pytest.raises(UserError, match=rf"class {named} of test has no images in train.*data check"):
        top1(out, tmp_path / "set", name, dataset=kind, **more)
    assert not list((out / "features").rglob(f"*{tmp_path.name}*"))


def test_a_class_that_only_the_training_part_has_is_told_once(out, tmp_path, capfd):
    folder(tmp_path, "train", "abcd")
    folder(tmp_path, "test", "bd")
    datasets._say.cache_clear()
    top1(out, tmp_path, "knn_folder", grid__k=[1])
    told = [line for line in capfd.readouterr().err.splitlines() if "none in test" in line]
    assert told == [
        "folder: 2 of 4 classes have images in train and none in test: 'a', 'c'; scores are over the others"
    ]


def test_parts_that_agree_keep_the_key_of_their_records(out, tmp_path):
    """Joining changes nothing where the numbers were right already: records made before are found again."""
    folder(tmp_path, "train", "abc")
    folder(tmp_path, "test", "abc")
    task = Measurement.of("knn_folder", "pixels_digits", Settings.of({**SIZE, "data": str(tmp_path)}, str(out)))
    plain = [data.open_source("folder", part, tmp_path).fingerprint for part in ("train", "test")]
    assert [task.open(part).fingerprint for part in ("train", "test")] == plain


def test_two_models_are_compared_in_the_training_parts_numbers(out, tmp_path):
    folder(tmp_path, "train", "abc")
    folder(tmp_path, "test", "ca")
    given = {**SIZE, "data": str(tmp_path), "grid.k": [1], "out": str(out)}
    told = pair.compare("pixels_digits", "random_digits", "knn_folder", given)
    assert "knn_folder on 24 images" in told and "pixels_digits" in told and "100.00" in told


class Numbered:
    """A torchvision data set that numbers its classes by what its part holds, as ImageFolder does."""

    def __init__(self, root="", split="train"):
        self.classes = {"train": ["a", "b", "c"], "test": ["c", "a"]}.get(split)
        if self.classes is None:
            raise ValueError(f"unknown split {split}")
        self.targets = [k for k in range(len(self.classes)) for _ in range(EACH)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        k = self.targets[i]
        return Image.open(BytesIO(picture(self.classes[k], i % EACH))), k


def test_a_torchvision_set_is_joined_by_its_classes(out, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "FakeData", Numbered)
    datasets._torchvision.cache_clear()
    given = {**SIZE, "dataset": "torchvision:FakeData", "grid.k": [1]}
    found = records.read(measure.evaluate("knn_folder", "pixels_digits", given, out=str(out), quiet=True))
    datasets._torchvision.cache_clear()
    assert found.metrics["top1"].value == 100 and found.metrics["top1"].n == 2 * EACH
    test = datasets.joined(
        protocol("knn_folder"), lambda split: datasets._torchvision("torchvision:FakeData", split, None, False)
    )("test")
    assert test.labels.tolist() == [2] * EACH + [0] * EACH and test.subset([0, 20]).labels.tolist() == [2, 0]
    assert np.array_equal(test.subset([20]).pixels(0), test.pixels(20))
    datasets._torchvision.cache_clear()


def test_listed_sets_are_joined_by_the_names_in_their_lists(tmp_path, monkeypatch):
    """Places205's csv, whose folders are the classes, and iNaturalist's json, whose categories are."""
    from zoo.data import specs

    spec = data.describe("places205").model_copy(update={"classes": 3})
    free = {s: specs.SplitRule(read=r.read) for s, r in spec.splits.items()}
    monkeypatch.setattr(specs, "load", lambda *_: {"places205": spec.model_copy(update={"splits": free})})
    lists = tmp_path / "trainvalsplit_places205"
    lists.mkdir()
    for part, names in (("train", ("a/abbey", "b/bar", "c/cave")), ("val", ("c/cave", "a/abbey", "b/bar"))):
        lines = []
        for number, name in enumerate(names):
            place = tmp_path / "data/vision/torralba/deeplearning/images256" / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{part}.png").write_bytes(picture(name[0], 0))
            lines.append(f"{name}/{part}.png {number}\n")
        (lists / f"{part}_places205.csv").write_text("".join(lines))
    wanted = protocol("knn_imagenet").model_copy(update={"dataset": "places205"})
    val = datasets.joined(wanted, lambda split: data.open_source("places205", split, tmp_path))("val")
    assert val.classes == ("abbey", "bar", "cave") and val.labels.tolist() == [2, 0, 1]


def test_one_class_is_nothing_to_tell_apart(out, tmp_path):
    zip_of()(tmp_path / "set", "train", "a")
    zip_of()(tmp_path / "set", "test", "a")
    with pytest.raises(UserError, match=r"one class only \(a\).*cluster MODEL FOLDER"):
        top1(out, tmp_path / "set", "knn_folder", grid__k=[1])
