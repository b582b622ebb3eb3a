"""`monitor={knn: 5}`: what it measures, what it may look at, and that the training does not notice it."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

import zoo
from engine.options import RunOptions
from evaluations.inputs import datasets
from evaluations.protocol import complete, load
from reproduce import launch, monitor, runs
from reproduce.__main__ import main
from zoo.errors import UserError, guard

SMALL = {"schedule.images": 1024, "batch": 128, "log_interval": 2, "tensorboard": False}
WATCH = {"knn": 5, "images": 400, "every": 0.25}  # of 9 steps an epoch: every second step


def trained(out, model="swav_digits", **more):
    return runs.Run(launch.pretrain(model, {**SMALL, "out": str(out), **more}, quiet=True))


def digest(run):
    return hashlib.sha256((run.folder / "weights.pth").read_bytes()).hexdigest()


def looks(run):
    """The numbers of each look, without times."""
    timed = ("time", "event", "monitor_seconds", "monitor_share")
    return [{k: v for k, v in line.items() if k not in timed} for line in run.events("monitor")]


# -- the training does not notice ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["swav_digits", "deepcluster_digits", "mocov2_digits"])
def test_a_watched_run_has_the_bits_of_one_that_is_not(tmp_path, model):
    plain = trained(tmp_path / "plain", model)
    watched = trained(tmp_path / "watched", model, monitor={"knn": 5, "images": 400})
    assert digest(plain) == digest(watched)
    same = ("step", "loss", "lr", "effective_rank", "feature_std")
    numbers = lambda run: [{k: line[k] for k in same if k in line} for line in run.lines]
    assert numbers(plain) == numbers(watched) and not looks(plain)
    assert [look["step"] for look in looks(watched)] == list(range(1, 9))
    assert all(0 <= look["monitor_knn"] <= 100 and look["monitor_rankme"] >= 1 for look in looks(watched))


def test_a_run_that_was_stopped_sees_what_an_undisturbed_one_sees(tmp_path):
    whole = trained(tmp_path / "whole", monitor=WATCH)
    trained(tmp_path / "parts", monitor=WATCH, stop_after=5, checkpoint_interval=3)
    parts = trained(tmp_path / "parts", monitor=WATCH)
    assert looks(parts) == looks(whole) and digest(parts) == digest(whole)
    seen = runs.Run(whole.folder).monitored
    assert seen["knn"] == looks(whole)[-1]["monitor_knn"] and 0 < seen["share"] < 1


def test_looks_are_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tmp_path, monitor=WATCH, tensorboard=True)
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    assert [(e.step, pytest.approx(e.value, rel=1e-5)) for e in board.Scalars("monitor_probe")] == [
        (look["step"], look["monitor_probe"]) for look in looks(run)
    ]
    assert "effective_rank" in board.Tags()["scalars"] and "loss" in board.Tags()["scalars"]


# -- what it measures ---------------------------------------------------------------------------------------------------------
def test_its_numbers_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    z = random.normal(size=(300, 12)) + 1.2 * np.eye(12)[labels]
    found = monitor.measures(torch.tensor(z, dtype=torch.float32), labels, 60, 7)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    voted = KNeighborsClassifier(7).fit(unit[:240], labels[:240]).score(unit[240:], labels[240:])
    x = (z - z[:240].mean(0)) / z[:240].std(0)
    probe = Ridge(alpha=0.1 * 240).fit(x[:240], np.eye(4)[labels[:240]])
    right = (probe.predict(x[240:]).argmax(1) == labels[240:]).mean()
    assert found["probe"] == pytest.approx(100 * right, abs=0.01) and found["knn"] == pytest.approx(
        100 * voted, abs=1.7
    )
    scores = monitor.ridge(*(torch.tensor(v) for v in (z[:240], labels[:240], z[240:])), 4)
    assert np.abs(scores.numpy() - probe.predict(x[240:])).max() < 1e-3


def test_known_answers_and_collapse():
    labels = np.arange(100) % 5
    perfect = torch.eye(5)[torch.as_tensor(labels)]
    found = monitor.measures(perfect, labels, 20, 5)
    assert (found["knn"], found["probe"]) == (100, 100) and found["rankme"] == pytest.approx(5, rel=1e-3)
    same = monitor.measures(torch.ones(100, 8), labels, 20, 5)
    assert same["rankme"] == pytest.approx(1, rel=1e-3) and same["probe"] == 20
    assert all(math.isnan(v) for v in monitor.measures(torch.full((100, 8), math.nan), labels, 20, 5).values())
    assert set(monitor.measures(perfect, None, 20, 5)) == {"rankme"} and math.isnan(
        monitor.measures(torch.zeros(9, 3), None, 2, 1)["rankme"]
    )


# -- what it may look at ------------------------------------------------------------------------------------------------------
def ask(given, model="swav_digits", **options):
    recipe = zoo.resolve(model)
    return monitor.watched(monitor.settings_of(given), recipe, RunOptions(**options))


def test_only_training_images_are_looked_at():
    train, test = (zoo_source("digits", split) for split in ("train", "test"))
    seen = ask({"knn": 5, "images": 5000})
    names = {seen.source.name(int(i)) for i in seen.chosen}
    assert names == {train.name(i) for i in range(len(train))} and not names & {test.name(i) for i in range(len(test))}
    assert len(ask({"images": 300, "split": "val"}).chosen) == 250  # cut out of train
    for split in ("test", "all"):
        with pytest.raises(UserError, match=f"monitor.split={split}: its images are those of a test split"):
            ask({"split": split})


def zoo_source(name, split):
    return zoo.data.open_source(name, split)


def folder(place, parts=("",), count=40):
    random = np.random.default_rng(0)
    for part in parts:
        for label in "abc":
            for i in range(count):
                path = place / part / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return place


def test_images_that_evaluations_hold_out_are_left_out(tmp_path):
    recipe = launch.job("simclr", {"data": str(folder(tmp_path / "set"))}).recipe
    seen = monitor.watched(monitor.settings_of({}), recipe, RunOptions(data=str(tmp_path / "set")))
    protocol, opened = datasets.open_for(complete(load("knn_folder")), str(tmp_path / "set"))
    judged = opened(protocol.splits.test)
    held = {judged.name(i) for i in range(len(judged))}
    assert len(held) == 24 and len(seen.chosen) == 96 and not held & {seen.source.name(int(i)) for i in seen.chosen}
    assert seen.labels is not None and set(seen.labels) == {0, 1, 2}


def test_parts_of_a_folder_that_are_judged_are_refused(tmp_path, capsys):
    place = folder(tmp_path / "set", ("train", "val"), count=20)
    for split in ("val", "test"):
        words = ["simclr", f"data={place}", f"out={tmp_path}", f"monitor={{split: {split}}}", "--plan"]
        assert guard(lambda words=words: main(words)) == 2
        err = capsys.readouterr().err
        assert f"monitor.split={split}: its images are those of a test split" in err and err.count("\n") == 1


def test_without_labels_the_rank_alone_is_watched(tmp_path):
    place = tmp_path / "flat"
    for path in sorted(folder(tmp_path / "set").rglob("*.png")):
        (place / path.parent.name).parent.mkdir(exist_ok=True)
        path.rename(place / f"{path.parent.name}{path.name}")
    run = trained(tmp_path, "simclr", data=str(place), monitor={"images": 50}, batch=32, **{"schedule.images": 64})
    assert [set(look) for look in looks(run)] == [{"step", "monitor_rankme"}] * 2


# -- the command line ---------------------------------------------------------------------------------------------------------
def test_a_plan_states_the_cost_and_mistakes_are_one_line(capsys, tmp_path):
    words = ["swav_digits", "schedule.images=12800", f"out={tmp_path}", "--plan"]
    assert main([*words, "monitor={knn: 5}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("monitor"))
    assert (
        "10 looks at 1,258 images of digits/train" in line and "251 queries" in line and "12,580 forward passes" in line
    )
    assert main([*words, "monitor.every=5", "monitor.images=100"]) == 0
    assert "3 looks at 100 images" in next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("monitor")
    )
    for wrong, told in (
        ("monitor={knn: 0}", "monitor.knn=0: "),
        ("monitor={nn: 5}", "monitor.nn: unknown; did you mean 'knn'?"),
        ("monitor=5", "monitor=5: must be dict or null"),
        ("monitor={knn: 400, images: 400}", "monitor.knn=400: 400 images to look at"),
        ("monitor.every=0", "monitor.every=0: "),
    ):
        assert guard(lambda wrong=wrong: main([*words, wrong])) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1, (wrong, err)
