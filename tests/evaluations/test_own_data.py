"""A user's own images: a folder with or without a test part, a torchvision set, a folder without labels, a method's own labels."""

from __future__ import annotations

import csv
import functools
import shutil

import numpy as np
import pytest
import torchvision
from evaluation_fakes import FakeFeatures, finished_run, protocol
from PIL import Image

from evaluations import cluster_folder, measure
from evaluations.inputs import datasets
from evaluations.kinds import clustering
from evaluations.measure import Measurement, Settings
from evaluations.suite import plan
from results import record as records
from zoo import data
from zoo.errors import UserError

OWN = {"transform.resize": 16, "transform.crop": 16}


def paint(root, counts, parts=("train",)):
    """Flat colours with noise: three classes that any network tells apart."""
    rng = np.random.default_rng(0)
    for part in parts:
        for k, (name, n) in enumerate(counts.items()):
            place = root / part / name if part else root / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(60 + 80 * k + rng.integers(-20, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
                pixels[:, : 8 * k] //= 4
                Image.fromarray(pixels).save(place / f"{name}{i}.png")
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    finished_run("random_digits", where)
    return where


def test_a_folder_without_a_test_part_gets_one_that_is_sealed(out, tmp_path):
    images = paint(tmp_path / "own", {"a": 10, "b": 15, "c": 21}, parts=("",))
    path = measure.evaluate(
        "knn_folder", "random_digits", {**OWN, "data": str(images), "grid.k": [1, 3]}, out=str(out), quiet=True
    )
    found = records.read(path)
    assert found.metrics["top1"].n == 2 + 3 + 4 and found.metrics["top1"].value == 100 and found.test_reads == 1
    assert str(tmp_path) not in path.read_text()
    task = Measurement.of("knn_folder", "random_digits", Settings.of({**OWN, "data": str(images)}, str(out)))
    with data.sealed(*task.closed):
        for split in (datasets.HELD_OUT, "train"):
            with pytest.raises(data.SealedError):
                data.permit(task.protocol.dataset, split)
        with pytest.raises(data.SealedError):
            task.open(task.protocol.splits.test)
        with pytest.raises(data.SealedError):
            data.open_source("folder", "train", root=images)
        assert len(task.open(task.protocol.splits.train)) == 46 - 9


@pytest.mark.parametrize("name", ["validation", "Val", "dev", "Test", "eval", "Holdout"])
def test_a_folder_is_judged_on_its_test_part_whatever_its_usual_name(out, tmp_path, name, capfd):
    """Its images, with two labels exchanged: 100 on a fifth of train/, not on the part itself."""
    images = paint(tmp_path / "own", {"a": 10, "b": 10, "c": 10})
    paint(images, {"b": 6, "a": 6, "c": 6}, parts=(name,))
    found = records.read(knn(out, images)).metrics["top1"]
    assert found.n == 18 and found.value == pytest.approx(100 / 3)
    assert "held out" not in capfd.readouterr().err


def test_a_test_part_that_is_cut_from_the_training_images_is_told(out, tmp_path, capfd):
    images = paint(tmp_path / "own", {"a": 10, "b": 10, "c": 10}, parts=("",))
    given = {**OWN, "data": str(images), "grid.k": [1]}
    plan(["knn_folder"], "random_digits", {**given, "out": str(out)})
    assert f"{images}: no part for testing in it" in capfd.readouterr().err
    datasets._say.cache_clear()
    knn(out, images)
    told = capfd.readouterr().err
    assert "6 of its 30 images, a fifth of each class, are held out of train and judged on" in told


def test_a_part_under_another_name_is_not_passed_over_for_a_fifth_of_train(out, tmp_path):
    images = paint(tmp_path / "own", {"a": 10, "b": 10, "c": 10}, parts=("train", "second"))
    with pytest.raises(UserError, match="second holds folders of the classes of train .* rename it to test"):
        knn(out, images)
    with pytest.raises(UserError, match="second holds folders of the classes of train"):
        measure.evaluate(
            "knn_folder", "random_digits", {**OWN, "dataset": str(images), "grid.k": [1]}, out=str(out), quiet=True
        )
    shutil.rmtree(images / "second")
    (images / "notes" / "drafts").mkdir(parents=True)
    knn(out, images)


def test_every_frozen_feature_protocol_works_on_a_folder(out, tmp_path):
    images = paint(tmp_path / "own", {"a": 12, "b": 12, "c": 12}, parts=("train", "val"))
    for name, change in {
        "linear": {"head.epochs": 5},
        "ridge": {},
        "fewlabel": {},
        "cluster": {},
        "knn": {"grid.k": [1]},
    }.items():
        path = measure.evaluate(
            f"{name}_folder", "random_digits", {**OWN, **change, "data": str(images)}, out=str(out), quiet=True
        )
        metric = records.read(path).metrics["hungarian" if name == "cluster" else "top1"]
        assert metric.n == 36 and metric.value > 60, name


def test_a_torchvision_set_is_read_by_its_name(out, monkeypatch):
    small = functools.partial(torchvision.datasets.FakeData, size=60, image_size=(3, 16, 16), num_classes=3)
    monkeypatch.setattr(torchvision.datasets, "FakeData", small)
    datasets._torchvision.cache_clear()
    given = {**OWN, "dataset": "torchvision:FakeData", "head.epochs": 1}
    with pytest.raises(UserError, match="did you mean 'FakeData'"):
        measure.evaluate(
            "linear_folder", "random_digits", {**given, "dataset": "torchvision:FakData"}, out=str(out), quiet=True
        )
    source = datasets._torchvision("torchvision:FakeData", "train", None, False)
    assert (
        source.image(0).mode == "RGB"
        and len(source.labels) == 60
        and source.fingerprint != source.subset([1, 0]).fingerprint
    )
    apart = datasets.held_out(source)
    assert 9 <= apart.sum() <= 12 and set(source.labels[apart]) == {0, 1, 2}
    path = measure.evaluate(
        "ridge_folder", "random_digits", {**OWN, "dataset": "torchvision:FakeData"}, out=str(out), quiet=True
    )
    assert records.read(path).metrics["top1"].n == apart.sum()
    with pytest.raises(UserError, match="download=true"):
        measure.evaluate(
            "linear_folder",
            "random_digits",
            {**given, "dataset": "torchvision:CIFAR10", "data": "nowhere"},
            out=str(out),
            quiet=True,
        )


def test_an_unlabelled_folder_is_clustered_with_a_montage(out, tmp_path):
    images = tmp_path / "photos"
    paint(images, {"a": 9, "b": 6, "c": 4}, parts=("",))
    for i, file in enumerate(sorted(images.rglob("*.png"))):
        file.rename(images / f"{i:02d}.png")
    for place in "abc":
        (images / place).rmdir()
    written = cluster_folder.cluster("random_digits", str(images), {"clusters": 3, "out": str(out), **OWN})
    rows = list(csv.DictReader(written[0].open()))
    assert len(rows) == 19 and {r["image"] for r in rows} == {f"{i:02d}.png" for i in range(19)}
    assert sorted(np.bincount([int(r["cluster"]) for r in rows]).tolist(), reverse=True) == [9, 6, 4]
    assert [r["cluster"] for r in rows] == ["0"] * 9 + ["1"] * 6 + ["2"] * 4
    assert np.load(written[1]).shape == (3, 64) and Image.open(written[2]).size == (56 + 12 * 64, 3 * 64)
    before = [p.read_bytes() for p in written]
    assert [
        p.read_bytes()
        for p in cluster_folder.cluster("random_digits", str(images), {"clusters": 3, "out": str(out), **OWN})
    ] == before
    with pytest.raises(UserError, match="only 19 images"):
        cluster_folder.cluster("random_digits", str(images), {"clusters": 20, "out": str(out), **OWN})
    with pytest.raises(UserError, match="no such folder"):
        cluster_folder.cluster("random_digits", str(tmp_path / "none"), {"out": str(out)})
    with pytest.raises(UserError, match="cluster MODEL FOLDER"):
        measure.evaluate("linear_folder", "random_digits", {**OWN, "data": str(images)}, out=str(out), quiet=True)


class Named(FakeFeatures):
    def source(self, split):
        labels = self._open(split)[1]
        word = "image" if split == "train" else "held-out"
        return type("Source", (), {"name": lambda s, i: f"{word}{i}", "__len__": lambda s: len(labels)})()


def test_a_methods_own_labels_are_scored_head_by_head(tmp_path):
    truth = np.arange(60) % 3
    f = Named({"train": (None, truth)}, 3)
    f.model.place = str(tmp_path)
    wanted = protocol("cluster_digits", head__assignments="own")
    with pytest.raises(UserError, match="python -m reproduce labels .* --to"):
        clustering.run(wanted, f, 0)
    names = [f"image{i}" for i in range(60)]
    labels = np.stack([(truth + 1) % 3, np.zeros(60, int)], axis=1)
    labels[5] = -1
    shuffle = np.random.default_rng(0).permutation(60)
    np.savez(tmp_path / "labels.npz", names=np.array(names)[shuffle], labels=labels[shuffle])
    metrics = clustering.run(wanted, f, 0).metrics
    assert (
        metrics["hungarian"].per_seed[0] == 100
        and 30 < metrics["hungarian"].per_seed[1] < 37
        and metrics["nmi"].n == 59
    )
    (tmp_path / "labels.npz").unlink()
    with (tmp_path / "labels.csv").open("w") as file:
        csv.writer(file).writerows(
            [["image", "head0", "head1"], *([n, *row] for n, row in zip(names, labels, strict=True))]
        )
    assert clustering.run(wanted, f, 0).metrics == metrics


def test_rows_of_held_out_images_may_stand_in_the_file_and_foreign_ones_may_not(tmp_path):
    truth = np.arange(60) % 3
    f = Named({"train": (None, truth), "test": (None, truth[:6])}, 3)
    f.model.place = str(tmp_path)
    wanted = protocol("cluster_digits", head__assignments="own")
    rows = [[f"held-out{i}", 0] for i in range(6)] + [[f"image{i}", truth[i]] for i in range(60)]
    for more in ([], [["stranger", 1]]):
        with (tmp_path / "labels.csv").open("w") as file:
            csv.writer(file).writerows([["file", "label"], *rows, *more])
        if more:
            with pytest.raises(UserError, match="1 rows name images that are not in the data .stranger"):
                clustering.run(wanted, f, 0)
        else:
            metrics = clustering.run(wanted, f, 0).metrics
            assert metrics["hungarian"].value == 100 and metrics["hungarian"].n == 60


def test_random_labels_score_as_chance_does():
    f = FakeFeatures({"test": (None, np.arange(2000) % 10)}, 10)
    f.splits["train"] = f.splits["test"]
    metrics = clustering.run(protocol("cluster_digits", head__assignments="random", head__clusters=10), f, 0).metrics
    assert abs(metrics["anmi"].value) < 1 and 10 < metrics["hungarian"].value < 20 and len(metrics["nmi"].per_seed) == 5


def knn(out, images, **given):
    return measure.evaluate(
        "knn_folder", "random_digits", {**OWN, "data": str(images), "grid.k": [1], **given}, out=str(out), quiet=True
    )


def test_gray_transparent_and_palette_images_are_read_like_any_other(out, tmp_path):
    images = paint(tmp_path / "own", {"a": 8, "b": 8, "c": 8})
    for mode, file in zip(("L", "RGBA", "P", "LA", "1"), sorted(images.rglob("*.png"))[::5], strict=True):
        Image.open(file).convert(mode).save(file)
    assert records.read(knn(out, images)).metrics["top1"].value > 60


def test_a_broken_image_is_one_error_that_names_it(out, tmp_path):
    images = paint(tmp_path / "own", {"a": 8, "b": 8, "c": 8})
    broken = sorted(images.rglob("*.png"))[4]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"{broken.name}.*max_bad=N.*data check {images}"):
        knn(out, images)
    with pytest.raises(UserError, match="max_bad=x: must be a whole number"):
        knn(out, images, max_bad="x")
    path = knn(out, images, max_bad=1)
    assert records.read(path).command.count(" max_bad=1 ") == 1


def test_an_empty_class_folder_and_an_empty_folder_are_one_error_each(out, tmp_path):
    images = paint(tmp_path / "own", {"a": 8, "b": 8})
    (images / "train" / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing"):
        knn(out, images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        knn(out, tmp_path / "empty")
