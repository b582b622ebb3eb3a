"""`python -m reproduce runs`: what is told of each run follows from its log, whatever state it is in."""

from __future__ import annotations

import json
import math
import os
import time

import pytest
from PIL import Image

from engine import folder as folders
from engine.log import RunLog
from reproduce import launch, runs
from reproduce.__main__ import main
from reproduce.runs import Run
from zoo.errors import guard

SMALL = {"schedule.images": 1024, "batch": 128, "log_interval": 2, "tensorboard": False}


def written(tmp_path, name="swav_x/0a-s0", *, batch=50, total=100, steps=(10, 20, 40), rate=100.0, **last):
    """A run folder as the engine writes it, without a run."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"batch: {batch}\nschedule: {{epochs: 5, images: null}}\n")
    log = RunLog(folder, tensorboard=False)
    log.event("began", 0, steps=total, steps_per_epoch=20, chance=4.6)
    for step in steps:
        log.write(step, epoch=0, loss=5.0 - step / 100, lr=0.1, images_per_second=rate, feature_std=0.9)
    for event, values in last.items():
        log.event(event, steps[-1], **values)
    log.close()
    return folder


def row(text, part):
    """Column -> text of the line of the table that names a run."""
    lines = text.splitlines()
    line = next(line for line in lines[1:] if part in line)
    return dict(zip(lines[0].split(), line.replace(" ago", "").split(), strict=False)) | {"line": line}


def command(capsys, *words):
    status = guard(lambda: main(["runs", *map(str, words)]))
    return status, *capsys.readouterr()


def test_each_state_is_told_by_its_log(tmp_path, capsys):
    written(tmp_path, "a/stopped-s0")
    written(tmp_path, "a/bad-s0", non_finite_loss={"message": "the loss is nan at step 40"})
    written(tmp_path, "a/again-s0", non_finite_loss={"message": "the loss is nan at step 40"}, resumed={})
    done = written(tmp_path, "a/ready-s0", steps=(100,))
    (done / "done.json").write_text(json.dumps({"steps": 100, "loss": 3.25, "seconds": 9, "alarms": []}))
    assert {run.folder.name: run.state for run in runs.below(tmp_path)} == {
        "stopped-s0": "stopped",
        "bad-s0": "diverged",
        "again-s0": "stopped",
        "ready-s0": "finished",
    }
    status, out, _ = command(capsys, f"out={tmp_path}")
    assert status == 0 and row(out, "ready")["step"] == "100/100" and row(out, "ready")["loss"] == "3.2500"
    assert row(out, "stopped")["left"] == "-" and row(out, "a/stopped")["chance"] == "4.60"
    assert "alarm: a/bad-s0: the loss is nan at step 40" in out.splitlines()


def test_a_held_folder_is_a_running_run_with_its_time_left(tmp_path):
    """60 steps of 50 images at 100 images a second: 30 seconds."""
    folder = written(tmp_path)
    assert Run(folder).state == "stopped" and Run(folder).left is None
    here, there = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with folders.lock(folder):
            os.write(here[1], b"x")
            os.read(there[0], 1)
        os._exit(0)
    os.read(here[0], 1)
    try:
        run = Run(folder)
        assert run.state == "running" and f"process {child}" in run.holder and run.left == pytest.approx(30)
        assert "0:30" in runs.table([Run(folder)]) and f"process {child}" in runs.story(Run(folder))
    finally:
        os.write(there[1], b"x")
        os.waitpid(child, 0)
    with folders.lock(folder):  # looking has left nothing locked
        pass
    assert Run(folder).state == "stopped"


def test_the_last_look_of_the_monitor_and_alarms_are_shown(tmp_path, capsys):
    folder = written(tmp_path)
    log = RunLog(folder, step=40, tensorboard=False)
    log.event("monitor", 20, monitor_knn=61.5, monitor_rankme=12.0, monitor_seconds=0.5)
    log.event("monitor", 40, monitor_knn=71.25, monitor_rankme=14.0, monitor_seconds=0.5)
    log.event("alarm", 40, message="collapse: the loss stays; try optimizer.lr=0.01")
    log.close()
    status, out, _ = command(capsys, f"out={tmp_path}")
    assert status == 0 and "knn 71.25, rankme 14" in row(out, "swav_x")["line"] and row(out, "swav_x")["alarms"] == "1"
    assert Run(folder).numbers()["monitor_knn"] == ([20, 40], [61.5, 71.25])
    assert list(Run(folder).numbers())[:2] == ["loss", "monitor_knn"] and "seconds" not in row(out, "swav_x")["line"]


def test_a_real_run_is_listed_and_drawn(tmp_path, capsys):
    folder = launch.pretrain("swav_digits", {**SMALL, "out": str(tmp_path)}, quiet=True)
    launch.pretrain("swav_digits", {**SMALL, "out": str(tmp_path), "seed": 1, "stop_after": 4}, quiet=True)
    status, out, _ = command(capsys, f"out={tmp_path}")
    assert status == 0 and (row(out, "-s0")["state"], row(out, "-s0")["step"]) == ("finished", "8/8")
    assert (row(out, "-s1")["state"], row(out, "-s1")["step"]) == ("stopped", "4/8")
    status, out, _ = command(capsys, folder)
    assert status == 0 and out.splitlines()[-1] == str(folder / "curves.png") and "effective_rank" in out
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 600 and len(picture.convert("L").getcolors(1 << 16)) > 10
    run = Run(folder)
    steps, values = run.numbers()["loss"]
    assert (
        steps == [2, 4, 6, 8]
        and values == [line["loss"] for line in run.lines]
        and run.chance == pytest.approx(math.log(run.recipe["params"]["prototypes"]))
    )
    short = command(capsys, "swav", f"out={tmp_path}")
    assert short[0] == 2 and "2 runs" in short[2]
    assert command(capsys, f"{folder.parent.name}/{folder.name[:-1]}0", f"out={tmp_path}")[0] == 0


def test_numbers_that_are_not_finite_are_drawn_around(tmp_path):
    folder = written(tmp_path)
    log = RunLog(folder, step=40, tensorboard=False)
    log.write(50, epoch=1, loss=float("nan"), lr=0.1, images_per_second=None, feature_std=float("inf"))
    log.close()
    assert runs.draw(Run(folder)).is_file() and Run(folder).rate == 100.0


def test_mistakes_are_one_line(tmp_path, capsys):
    empty = written(tmp_path, "b/empty-s0")
    (empty / "log.jsonl").write_text("")
    for words, told in (
        ([f"out={tmp_path / 'none'}"], "no runs below"),
        (["nothing", f"out={tmp_path}"], "none of the 1 runs"),
        ([empty], "no numbers yet"),
        (["a", "b"], "one run at most"),
        (["optimizer.lr=1"], "one run at most"),
    ):
        status, _, err = command(capsys, *words)
        assert status == 2 and told in err and err.count("\n") == 1, words


def test_the_newest_run_comes_first(tmp_path):
    old, new = written(tmp_path, "a/old-s0"), written(tmp_path, "z/new-s0")
    for folder, age in ((old, 1000), (new, 10)):
        for file in folder.iterdir():
            os.utime(file, (time.time() - age,) * 2)
    assert [run.folder.name for run in runs.below(tmp_path)] == ["new-s0", "old-s0"]
