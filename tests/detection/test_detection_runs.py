"""Detection as an evaluation like any other: plan, record, seal, resume, several processes, and what bad data do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import engine_processes as processes
import numpy as np
import pytest
import torch
from detection_fakes import CASES, CHECKED, DETR, MAPS, RCNN, scenes_and_network, small_scenes

from engine import dist
from evaluations import measure, pair, protocol, suite
from evaluations.detection import running, train
from evaluations.kinds import detr, rcnn, segmentation
from evaluations.measure import Measurement, Settings
from results import record as records
from zoo import data
from zoo.data import specs
from zoo.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data, run folder): a few coloured rectangles under the name of the composed scenes, and an untrained network."""
    home = tmp_path_factory.mktemp("detection")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    table = small_scenes()
    patch.setattr(specs, "load", lambda *_: table)
    yield scenes_and_network(home)
    patch.undo()


def evaluate(name, world, out, **changes):
    given = {**CASES[name], "data": str(world[0]), **CHECKED, **{k.replace("__", "."): v for k, v in changes.items()}}
    return records.read(measure.evaluate(name, str(world[1]), given, out=str(out), quiet=True))


@pytest.mark.parametrize("name", CASES)
def test_an_evaluation_writes_a_record_reads_the_test_split_once_and_is_found_again(name, world, tmp_path):
    found = evaluate(name, world, tmp_path)
    wanted = protocol.load(name)
    assert {"ap50"} & set(wanted.metrics) <= set(found.metrics) or name == "segment_scenes" and "miou" in found.metrics
    assert found.test_reads == 1 and found.selection is None and found.form == wanted.form
    assert {m.n for m in found.metrics.values()} == {6}
    assert all(
        0 <= m.value <= 100 and m.ci[0] <= m.value + 1e-9 and m.value <= m.ci[1] + 1e-9 for m in found.metrics.values()
    )
    (folder,) = (tmp_path / "probes").glob("*/*/seed0")
    assert not (folder / "checkpoint.pt").exists() and (folder / "weights.pth").is_file()
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "finished"
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert evaluate(name, world, tmp_path) == found
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert "data=" not in found.command and "head.batch=4" in found.command


def test_rates_are_chosen_on_val_and_the_test_split_stays_closed_until_then(world, tmp_path, monkeypatch):
    opened = []
    real = train.detect
    monkeypatch.setattr(
        rcnn, "detect", lambda n, a, items, *rest: opened.append(items.source.split) or real(n, a, items, *rest)
    )
    found = evaluate("detect_scenes", world, tmp_path, grid__lr=[0.02, 0.05], select__on="val", select__metric="ap")
    assert opened == ["val", "val", "test"]
    assert found.selection.on == "val, trained on train" and found.selection.chosen["lr"] in (0.02, 0.05)
    assert [row["lr"] for row in found.selection.grid] == [0.02, 0.05]
    task = Measurement.of("detect_scenes", str(world[1]), Settings.of({**RCNN, "data": str(world[0])}, str(tmp_path)))
    with data.sealed(*task.closed), pytest.raises(data.SealedError):
        kind = rcnn.Kind(task.protocol, task)
        kind.measure(kind.build(3), "test")


def test_several_seeds_are_a_mean_with_its_spread(world, tmp_path):
    found = evaluate("segment_scenes", world, tmp_path, seeds=2)
    assert len(found.metrics["miou"].per_seed) == 2 and found.metrics["miou"].sd is not None


def test_an_untrained_detector_can_be_scored(world, tmp_path):
    assert evaluate("detect_scenes", world, tmp_path, head__iterations=0).metrics["ap50"].value < 20


# ---------------------------------------------------------------- interruptions and processes


class Killed(train.Learner):
    """Dies at a step, as a machine does."""

    at = -1

    def loss(self, part, step):
        if step == self.at and part.number == 1:
            processes.commit_suicide()
        return super().loss(part, step)


def interrupted(name, world, out, at):
    Killed.at = at
    running.Learner = Killed
    evaluate(name, world, out)


@pytest.mark.parametrize("name", ["detr_scenes", "detect_scenes"])
def test_killed_three_times_it_ends_with_the_same_bits(name, world, tmp_path):
    whole = evaluate(name, world, tmp_path / "whole")
    for at in (1, 2, 3):
        assert processes.status_of(processes.fork(interrupted, name, world, tmp_path / "cut", at)) < 0
    again = evaluate(name, world, tmp_path / "cut")
    one, two = ((tmp_path / part / "probes").glob("*/*/seed0/weights.pth") for part in ("whole", "cut"))
    assert next(one).read_bytes() == next(two).read_bytes()
    assert again.metrics == whole.metrics
    (log,) = (tmp_path / "cut").glob("probes/*/*/seed0/log.jsonl")
    assert (
        sum('"resumed"' in line for line in log.read_text().splitlines()) == 2
    )  # after step 1 there was no checkpoint yet


def in_a_process(rank, name, world, out):
    found = evaluate(name, world, out) if dist.is_main() else None
    if found is None:
        measure.evaluate(
            name, str(world[1]), {**CASES[name], "data": str(world[0]), **CHECKED}, out=str(out), quiet=True
        )
    return None if found is None else {k: m.value for k, m in found.metrics.items()}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_loss_and_the_scores_of_one(name, world, tmp_path):
    alone = {k: m.value for k, m in evaluate(name, world, tmp_path / "one").metrics.items()}
    shared = processes.together(in_a_process, name, world, tmp_path / "two")[0]
    logs = []
    for part in ("one", "two"):
        (log,) = (tmp_path / part).glob("probes/*/*/seed0/log.jsonl")
        logs.append([line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5)
    assert shared == pytest.approx(alone, abs=0.02)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_trains_and_scores(name, world, tmp_path):
    changes = {"precision": "bfloat16"} | ({"head__epochs": 1} if name == "detr_scenes" else {"head__iterations": 1})
    found = evaluate(name, world, tmp_path, **changes)
    assert found.overrides["precision"] == "bfloat16"
    with pytest.raises(UserError, match="precision=float16: knn_digits computes in float32 or bfloat16"):
        Measurement.of("knn_digits", str(world[1]), Settings.of({"precision": "float16"}, str(tmp_path)))


def stopped_in_a_process(rank, name, world, out):
    with pytest.raises(UserError, match="stopped after 2 of 4 steps"):
        evaluate(name, world, out, stop_after=2)


def test_another_number_of_processes_is_refused_with_the_reason_and_goes_on_by_the_first(world, tmp_path):
    processes.together(stopped_in_a_process, "detect_scenes", world, tmp_path)
    with pytest.raises(UserError, match=r"processes is 2 there and 1 here\. Use another folder, or resume=false"):
        evaluate("detect_scenes", world, tmp_path)
    assert processes.together(in_a_process, "detect_scenes", world, tmp_path)[0]


def test_a_stopped_run_says_so_and_goes_on(world, tmp_path):
    with pytest.raises(UserError, match=r"stopped after 2 of 4 steps; the same command without stop_after= goes on"):
        evaluate("detect_scenes", world, tmp_path, stop_after=2)
    assert (
        evaluate("detect_scenes", world, tmp_path).metrics == evaluate("detect_scenes", world, tmp_path / "b").metrics
    )


# ---------------------------------------------------------------- what bad data and missing packages do


@pytest.fixture
def broken(world, tmp_path):
    """A copy of the data to spoil, and the annotations of a part."""
    folder = tmp_path / "data"
    shutil.copytree(world[0], folder)

    def change(part, edit):
        path = folder / "annotations" / f"instances_{part}.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return folder, change


def test_a_missing_image_is_named_before_any_work(broken, world, tmp_path):
    folder, _ = broken
    gone = sorted((folder / "test").iterdir())[2]
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name}: listed in instances_test.json, but No such file"):
        evaluate("detect_scenes", (folder, world[1]), tmp_path)
    assert not list(tmp_path.rglob("log.jsonl"))


def test_a_category_that_only_another_part_has_is_refused_before_any_work(broken, world, tmp_path):
    folder, change = broken

    def edit(content):
        content["categories"].append({"id": 12, "name": "yellow"})
        content["annotations"][0]["category_id"] = 12

    change("test", edit)
    with pytest.raises(UserError, match="yellow"):
        evaluate("detect_scenes", (folder, world[1]), tmp_path)
    assert not list(tmp_path.rglob("log.jsonl"))


def test_categories_are_joined_by_name_not_by_number(broken, world, tmp_path):
    folder, change = broken

    def renumber(content):
        for entry in content["categories"]:
            entry["id"] = 50 - entry["id"]
        for entry in content["annotations"]:
            entry["category_id"] = 50 - entry["category_id"]

    change("test", renumber)
    plain = evaluate("detect_scenes", world, tmp_path / "a", head__iterations=1)
    other = evaluate("detect_scenes", (folder, world[1]), tmp_path / "b", head__iterations=1)
    assert {k: m.value for k, m in other.metrics.items()} == {k: m.value for k, m in plain.metrics.items()}


def test_a_box_without_width_is_refused_with_its_line(broken, world, tmp_path):
    folder, change = broken
    change("train", lambda content: content["annotations"][0]["bbox"].__setitem__(2, 0))
    with pytest.raises(UserError, match=r"instances_train.json:\d+: annotation 1: box .* is empty"):
        evaluate("detect_scenes", (folder, world[1]), tmp_path)


@pytest.mark.parametrize("name", ["detr_scenes", "detect_scenes"])
def test_images_without_objects_are_learned_from_by_detr_and_left_out_by_rcnn(name, world, tmp_path):
    task = Measurement.of(name, str(world[1]), Settings.of({**CASES[name], "data": str(world[0])}, str(tmp_path)))
    kind = (detr if name == "detr_scenes" else rcnn).Kind(task.protocol, task)
    source = kind.features.source("train")
    empty = [i for i in range(len(source)) if not (~source.objects(i).crowd).any()]
    assert (
        empty and set(empty) <= set(kind.kept(source).tolist())
        if name == "detr_scenes"
        else not set(empty) & set(kind.kept(source))
    )
    part = kind.items("train")[(0, 0, [empty[0], empty[-1]])]
    torch.manual_seed(0)
    loss, found = kind.losses(kind.build(3).train(), part)
    assert loss.isfinite() and not any(
        float(v) for k, v in found.items() if "bbox" in k or "giou" in k or "box_reg" in k
    )


def test_a_crowd_is_not_learned_and_detections_inside_it_cost_nothing(world):
    from evaluations.detection import average_precision as scores

    source = data.open_source("scenes_fashion_coco", "train", world[0])
    (i, *_) = [i for i in range(len(source)) if source.objects(i).crowd.any()]
    objects = source.objects(i)
    box, kind = objects.boxes[objects.crowd][0], objects.classes[objects.crowd][0]
    rows = [
        (j, o.classes[k], 0.9, o.boxes[k])
        for j in range(len(source))
        for o in [source.objects(j)]
        for k in np.flatnonzero(~o.crowd)
    ]
    inside = [(i, kind, 0.95, box + [1, 1, -4, -4]), (i, kind, 0.96, box + [3, 3, -1, -1])]

    def ap(found):
        table = [np.array([row[n] for row in found]) for n in range(4)]
        return scores.coco_score(scores.coco_truth(source), scores.coco_results(scores.Detections(*table)))(
            np.arange(len(source))
        )["ap"]

    assert ap(rows) == pytest.approx(100) and ap([*rows, *inside]) == pytest.approx(100)


@pytest.mark.parametrize(("name", "module"), [("detr_scenes", "transformers"), ("detect_scenes", "faster_coco_eval")])
def test_without_the_extra_the_first_line_says_what_to_install(name, module, world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module.replace('_', '-')}: pip install 'selfzoo\[detection\]'"):
        evaluate(name, world, tmp_path)
    assert not list(tmp_path.rglob("log.jsonl"))


def test_without_the_data_it_says_what_to_unpack_before_weights_are_fetched(tmp_path):
    for name in ("detr_coco", "detect_voc0712_c4"):
        with pytest.raises(UserError, match=r"no data found.*unpack .*in SELFZOO_DATA/"):
            measure.evaluate(name, "swav_800ep", {}, out=str(tmp_path), quiet=True)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_says_steps_groups_and_time_and_does_nothing(name, world, tmp_path):
    given = {**CASES[name], "data": str(world[0]), "out": str(tmp_path)}
    told = suite.plan([name], str(world[1]), given)
    assert (
        f"of 4 images in {'1 groups of 4' if name == 'segment_scenes' else '2 groups of 2'}" in told
        and "scores 6 images; about 0:" in told
    )
    assert not list(tmp_path.rglob("*.jsonl")) and os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="no layer 'res9'"):
        suite.plan(
            ["detr_scenes"], str(world[1]), {**DETR, "head.freeze": "res9", "data": str(world[0]), "out": str(tmp_path)}
        )


def test_maps_of_coco_annotations_are_segmentations(world):
    source = data.open_source("scenes_fashion_coco", "train", world[0])
    picture = source.segmentation(0)
    assert set(np.unique(picture)) <= {0, 1, 2, 3, 255} and Path(source.where(0)).is_file()
    assert segmentation.Kind.want == "map"


def record_of(name):
    return SimpleNamespace(model=name, pretrain_seed=None, protocol="a_protocol", metrics={})


def test_two_detectors_are_compared_on_the_same_images(world, tmp_path):
    """Truth beside the same boxes with every second one missing; a record beside itself."""
    task = Measurement.of("detect_scenes", str(world[1]), Settings.of({**RCNN, "data": str(world[0])}, str(tmp_path)))
    source = task.open("test")
    truth = np.array(
        [(i, k, 0.9, *box) for i in range(len(source)) for k, box in zip(*objects_of(source, i), strict=True)]
    )
    text = pair.describe_dense(record_of("whole"), record_of("half"), task, truth, truth[::2])
    ap = next(line for line in text.splitlines() if "difference" in line)
    assert "whole" in ap and "is better" in ap and "  whole" in text and "100.00" in text
    assert text.count("difference") == len([m for m in task.protocol.metrics if m in text])
    evaluate("detect_scenes", world, tmp_path)
    given = {**RCNN, "data": str(world[0]), "out": str(tmp_path)}
    same = pair.compare(str(world[1]), str(world[1]), "detect_scenes", given)
    assert "difference +0.00 points, 95 % interval +0.00 to +0.00: no difference beyond chance" in same


def objects_of(source, i):
    objects = source.objects(i)
    return objects.classes[~objects.crowd], objects.boxes[~objects.crowd]


def test_two_segmentations_are_compared_by_their_confusions(world, tmp_path):
    task = Measurement.of("segment_scenes", str(world[1]), Settings.of({**MAPS, "data": str(world[0])}, str(tmp_path)))
    right = np.tile(np.diag([20, 10, 10, 10]), (6, 1, 1))
    wrong = right.copy()
    wrong[:, 1, 1], wrong[:, 1, 2] = 0, 10  # class 1 taken for class 2
    text = pair.describe_dense(record_of("right"), record_of("wrong"), task, right, wrong)
    assert "100.00" in text and "right is better" in text
    assert f"{100 * (1 + 0 + 0.5 + 1) / 4:.2f}" in text, "IoU of classes: 1, 0, 10 of 20, 1"
