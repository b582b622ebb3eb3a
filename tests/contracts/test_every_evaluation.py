"""What every registered evaluation kind must do with awkward features and labels: the right value, or one line.

The images are the features (the network passes pixels on), so each value is known from the images alone.
"""

from __future__ import annotations

import contract_pair
import numpy as np
import pytest
import torch
from evaluation_tools import DENSE, WITHOUT_LABELS, Toy, bars, cases, headline, measure, overrides, pixels, separable

from evaluations import protocol
from evaluations.measure import Measurement, Settings, evaluate
from evaluations.scores import average_precision
from results import record as records
from zoo.backbones.base import Pixels
from zoo.errors import UserError

CASES = cases()
ALONE = [c for c in CASES if not c.several]
SEVERAL = [c for c in CASES if c.several]
each_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def kind_of(case):
    return protocol.kind_of(protocol.load(case.protocol))


def folds_of(case):
    """Whether the case chooses on parts of its training images."""
    return protocol.complete(protocol.load(case.protocol, overrides(case, {}))).select.on in ("folds", "leave_one_out")


def outcome(case, toy, tmp_path, **more):
    """The headline number, or the error's line."""
    try:
        return headline(measure(case, toy, tmp_path, **more)[0])
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


def test_every_registered_kind_is_here_in_each_of_its_forms():
    assert {c.kind for c in CASES} | set(DENSE) | set(WITHOUT_LABELS) == set(protocol.kinds())
    for case in CASES:
        assert protocol.load(case.protocol).form in kind_of(case).forms


@each_case
def test_separable_images_score_100(case, tmp_path):
    result, _ = measure(case, separable(), tmp_path)
    assert headline(result) == pytest.approx(100)
    assert all(m.n == 24 and m.ci is not None and m.ci[0] <= m.value + 1e-9 for m in result.metrics.values())
    if "top1" in result.metrics:
        assert result.metrics["mean_per_class"].value == 100
        assert result.metrics["majority"].value == pytest.approx(100 / 3)


@each_case
def test_images_that_are_all_the_same_say_nothing_but_the_most_frequent_class(case, tmp_path):
    train, test = np.array([0] * 12 + [1] * 6 + [2] * 6), np.array([2, 0, 1, 0, 0, 2, 0, 0, 1, 0])
    grey = lambda labels: np.full((len(labels), 8, 8), 90, np.uint8)
    more = {"head.percent": 100, "head.per_class": None} if case.kind == "fewlabel" else {}
    result, _ = measure(case, Toy.of((grey(train), train), (grey(test), test), "abc"), tmp_path, **more)
    if "top1" in result.metrics:
        assert result.metrics["top1"].value == pytest.approx(60) == result.metrics["majority"].value
        assert result.metrics["mean_per_class"].value == pytest.approx(100 / 3)
        low, high = result.metrics["mean_per_class"].ci
        assert low < 100 / 3 < high and high - low < 60
    elif "nmi" in result.metrics:
        assert result.metrics["nmi"].value == pytest.approx(0, abs=1e-9) and result.metrics[
            "hungarian"
        ].value == pytest.approx(60)
    if "map" in result.metrics:
        blind = [average_precision(np.zeros(len(test)), (test == c).astype(np.uint8)) for c in range(3)]
        scores = result.predictions
        np.testing.assert_allclose(scores, np.broadcast_to(scores[:1], scores.shape), atol=1e-6)
        if (
            scores == scores[:1]
        ).all():  # kernels without AVX2 round the end of a batch otherwise, and a ranking sees it
            assert result.metrics["map"].value == pytest.approx(100 * np.mean(blind))
        else:
            assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"


@each_case
def test_images_that_come_three_times_are_still_right(case, tmp_path):
    toy = separable(each=8)
    toy = Toy.of(
        tuple(np.tile(v, (3,) + (1,) * (v.ndim - 1)) for v in toy.parts["train"]), toy.parts["test"], toy.classes
    )
    assert outcome(case, toy, tmp_path) == pytest.approx(100)


@each_case
@pytest.mark.parametrize("part, value", [("train", float("nan")), ("test", float("inf"))])
def test_features_that_are_not_finite_name_model_layer_and_image(case, part, value, tmp_path, monkeypatch):
    toy = separable()
    for part_of in toy.parts.values():
        part_of[0][:, 7, 7] = 0
    split = {"train": "fit" if "val" in kind_of(case).selects and not folds_of(case) else "train"}.get(part, part)
    images = toy.parts[split][0].copy()
    images[3, 7, 7] = 255
    toy.parts[split] = (images, toy.parts[split][1])
    plain = Pixels.forward

    def sick(self, x):
        found = plain(self, x)
        return torch.where(found[:, 63:] > 1.7, value, found)  # white there: nothing else is

    monkeypatch.setattr(Pixels, "forward", sick)
    said = outcome(case, toy, tmp_path)
    assert isinstance(said, str), f"scored {said} with {value}"
    assert f"image {split}-000003" in said
    if kind_of(case).layers != "none":
        assert "pixels8-net: layer output gives NaN or infinity" in said
    assert not list((tmp_path / "measured").rglob("*.json"))


@each_case
def test_one_training_image_of_each_class(case, tmp_path):
    toy = separable(each=1, classes=4)
    toy.parts |= {"fit": toy.parts["train"], "val": separable(each=2, classes=4).parts["train"]}
    said = outcome(case, toy, tmp_path, **({"head.per_class": 1} if case.kind == "fewlabel" else {}))
    if folds_of(case):
        assert "every class" in said and "one image only" in said and "select.on=none" in said
    else:
        assert said == pytest.approx(100)


@each_case
def test_a_class_that_test_lacks_and_parts_that_number_classes_otherwise(case, tmp_path):
    toy = separable()
    images, labels = toy.parts["test"]
    kept = labels != 1
    toy.parts["test"] = (images[kept], (labels[kept] == 0).astype(np.int64))
    toy.named["test"] = ("c", "a")
    result, _ = measure(case, toy, tmp_path)
    assert headline(result) == pytest.approx(100) and next(iter(result.metrics.values())).n == 16
    if "top1" in result.metrics:
        assert result.metrics["majority"].value == pytest.approx(50) and result.metrics["mean_per_class"].value == 100


@each_case
@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_only_a_scored_part_has_is_named(case, part, tmp_path):
    toy = separable()
    images, labels = toy.parts[part]
    toy.parts[part], toy.named[part] = (images, labels), ("a", "b", "z")
    said = outcome(case, toy, tmp_path)
    assert "'z'" in said and f"of {part} has no images in train" in said


@each_case
def test_more_folds_than_images(case, tmp_path):
    toy = separable(each=1, classes=3)
    toy.parts |= {"fit": toy.parts["train"], "val": toy.parts["train"]}
    more = {"select.folds": 5, **{"knn": {"grid.k": [1]}, "fewlabel": {"head.per_class": 1}}.get(case.kind, {})}
    said = outcome(case, toy, tmp_path, **more)
    if "folds" in kind_of(case).selects and folds_of(case):
        assert said.startswith("select.folds=5: ") and "has 3 images; set select.folds to 3 or less" in said
    elif folds_of(case):
        assert "one image only" in said
    else:
        assert said == pytest.approx(100)


@each_case
def test_a_class_of_which_there_is_no_image(case, tmp_path):
    toy = separable()
    toy.classes = ("a", "b", "c", "d")
    more = {"head.clusters": 3} if case.kind == "clustering" else {}
    if case.kind == "fewlabel" or case.kind == "finetune":
        assert outcome(case, toy, tmp_path, **more) == pytest.approx(100)
        return
    result, features = measure(case, toy, tmp_path, **more)
    assert headline(result) == pytest.approx(100)
    if case.kind == "svm":  # the class takes the cost of the others, and it is said
        assert "cost of d" in result.metrics["map"].note and len(features.selection.chosen["cost"]) == 4


@pytest.mark.parametrize("case", SEVERAL, ids=[c.name for c in SEVERAL])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_that_shows_no_class_at_all(case, part, tmp_path):
    toy = separable()
    images, labels = toy.parts[part]
    toy.parts[part] = (images, np.zeros((len(labels), 3), np.uint8))
    said = outcome(case, toy, tmp_path)
    assert f"/{part}: none of its {len(labels)} images shows any class" in said


@each_case
def test_more_neighbours_than_images(case, tmp_path):
    if "k" not in kind_of(case).grid:
        return
    said = outcome(case, separable(each=4), tmp_path, **{"grid.k": [100]})
    assert said == "grid.k: 100 neighbours of 12 training images; lower it"


@each_case
def test_sixty_images_of_one_class_and_three_of_another(case, tmp_path):
    train, test = np.array([0] * 60 + [1] * 3), np.array([0] * 40 + [1] * 2)
    order = np.random.default_rng(0).permutation(63)
    toy = Toy.of((bars(train, seed=1)[order], train[order]), (bars(test, seed=2), test), "ab")
    result, _ = measure(case, toy, tmp_path)
    assert headline(result) == pytest.approx(100)
    if "top1" in result.metrics:
        assert result.metrics["majority"].value == pytest.approx(100 * 40 / 42)
        low, high = result.metrics["mean_per_class"].ci
        assert low < 70 and high == pytest.approx(100), "two images say little about their class"


@each_case
def test_own_folder_from_the_command_line_to_the_record(case, tmp_path):
    write(tmp_path / "own", separable(), case.several)
    where = {"dataset": "coco" if case.several else "folder", "data": str(tmp_path / "own"), "splits.fit": None}
    given = overrides(case, {**where, "batch": 64})
    path = evaluate(case.protocol, str(pixels(tmp_path)), given, out=str(tmp_path), quiet=True)
    found = records.read(path)
    assert headline(found) == pytest.approx(100) and found.test_reads == 1


@pytest.mark.parametrize("case", ALONE, ids=[c.name for c in ALONE])
def test_a_named_set(case, tmp_path):
    """Fifteen hundred digits by their pixels; the sets of the papers are in tests/evaluations/test_named_protocols.py."""
    parts = {"splits.train": "fit", "splits.fit": "fit", "splits.val": "val"}
    quick = {"head.epochs": 2} if case.kind in ("linear", "finetune") and "ridge" not in case.name else {}
    given = overrides(case, {"dataset": "digits", "batch": 256, **quick, **parts})
    found = records.read(evaluate(case.protocol, str(pixels(tmp_path)), given, out=str(tmp_path), quiet=True))
    least = {"clustering": 55, "fewlabel": 40}.get(case.kind, 85)
    assert least < headline(found) < 100 and found.transductive is False


def write(root, toy, several):
    """The parts of a toy as files: a folder per class, or COCO's annotations."""
    import json

    from PIL import Image

    for part, (images, labels) in toy.parts.items():
        rows = []
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{i}.png" if several else f"{toy.classes[label]}/{i}.png"
            file = root / part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
            rows.append((i, name, int(label)))
        if several:
            content = {
                "images": [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name, _ in rows],
                "annotations": [
                    {"id": i, "image_id": i, "category_id": c, "bbox": [0, 0, 8, 4], "area": 32} for i, _, c in rows
                ],
                "categories": [{"id": c, "name": name} for c, name in enumerate(toy.classes)],
            }
            (root / "annotations").mkdir(exist_ok=True)
            (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def overlapping():
    """Three classes, 23 images each, that pixels tell apart most of the time: no score is 0 or 100."""
    train, test = np.repeat(np.arange(3), 23), np.repeat(np.arange(3), 17)
    order = np.random.default_rng(5).permutation(len(train))
    pictures = [bars(labels, seed=seed, noise=255) // 2 for labels, seed in ((train, 1), (test, 2))]
    for images, seed in zip(pictures, (3, 4), strict=True):
        images += np.random.default_rng(seed).integers(0, 120, images.shape, dtype=np.uint8)
    return Toy.of((pictures[0][order], train[order]), (pictures[1], test), "abc")


def numbers(case, out):
    result, features = measure(case, overlapping(), out)
    return {n: m.value for n, m in result.metrics.items()}, features.selection and (
        features.selection.chosen,
        features.selection.score,
    )


def on_rank(rank, folder, out):
    return {case.name: numbers(case, out / "two") for case in CASES}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    pixels(out / "two")
    return contract_pair.run(on_rank, out)


@each_case
def test_two_processes_measure_what_one_measures(case, both, tmp_path):
    values, chosen = numbers(case, tmp_path)
    for found, selected in (both[0][case.name], both[1][case.name]):
        assert found == pytest.approx(values, abs=1e-3)
        assert (selected is None) == (chosen is None)
        if chosen is not None:
            assert selected[0] == chosen[0] and selected[1] == pytest.approx(chosen[1], abs=1e-3)
    assert any(0 < v < 100 for v in values.values())


@each_case
def test_seeds_repeat_the_measurement_or_are_refused(case, tmp_path):
    """Of an evaluation without repetitions ``seeds=`` would change the record's name and nothing else."""
    wanted = protocol.complete(protocol.load(case.protocol, {"seeds": 2}))
    if protocol.load(case.protocol).seeds > 1:
        assert protocol.seeded(wanted)
    if not protocol.seeded(wanted):
        with pytest.raises(UserError, match=f"^seeds=2: {case.protocol} "):
            Measurement.of(case.protocol, "random_digits", Settings.of({"seeds": 2}))
        one, two = (measure(case, separable(), tmp_path, seeds=n)[0].metrics for n in (1, 2))
        assert one == two
        return
    result, _ = measure(case, separable(), tmp_path, seeds=2)
    assert [len(m.per_seed) for n, m in result.metrics.items() if n in ("top1", "map", "nmi")] == [2]
