"""Is my loss normal? The committed losses of a recipe's runs, and where they are shown. And a batch made for more GPUs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import zoo
from engine.log import RunLog
from engine.progress import Progress
from reproduce import curves, from_folder, launch, plan, runs
from reproduce.curves import Curve
from reproduce.runs import Run
from zoo import settings


def run_of(place, losses, name="swav_x/0a-s0", steps=None):
    folder = place / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("batch: 10\nschedule: {epochs: null, images: 2000}\n")
    log = RunLog(folder, tensorboard=False)
    for step, loss in zip(steps or range(10, 201, 10), losses, strict=True):
        log.write(step, epoch=0, loss=float(loss), lr=0.1, images_per_second=1.0)
    log.close()
    (folder / "done.json").write_text(json.dumps({"steps": 200, "loss": float(losses[-1]), "seconds": 1, "alarms": []}))
    return Run(folder)


def test_a_curve_is_the_range_of_the_runs_in_equal_parts(tmp_path):
    falling = np.linspace(5, 1, 20)
    each = [run_of(tmp_path, falling, "swav_x/0a-s0"), run_of(tmp_path, falling + 1, "swav_x/0a-s1")]
    other = run_of(tmp_path, falling, "swav_x/0b-s0")
    found = curves.collect([*each, other])
    assert set(found) == {"swav_x/0a", "swav_x/0b"} and found["swav_x/0a"]["runs"] == 2
    assert found["swav_x/0a"]["low"] == pytest.approx(falling, rel=1e-3)
    assert found["swav_x/0a"]["high"] == pytest.approx(falling + 1, rel=1e-3)
    assert curves.points(range(1, 201), np.arange(200.0), 200) == [4.5 + 10 * k for k in range(20)]
    assert curves.points([100, 200], [2.0, 1.0], 200) is None  # too short a log


def test_a_share_of_the_run_finds_its_part():
    curve = Curve(1, tuple(map(float, range(20))), tuple(map(float, range(20))))
    assert [curve.at(share)[0] for share in (0.0, 0.05, 0.0501, 0.5, 1.0)] == [0, 0, 1, 9, 19]


def test_a_run_is_shown_beside_the_committed_ones_of_its_recipe(tmp_path, monkeypatch):
    run = run_of(tmp_path, np.linspace(5, 1, 20))
    assert "committed" not in runs.story(run)
    monkeypatch.setattr(curves, "known", lambda: {"swav_x/0a": Curve(3, (9.0,) * 19 + (0.75,), (9.5,) * 19 + (1.25,))})
    assert "committed runs of this recipe (3) had a loss of 0.75 to 1.25 there" in runs.story(run)
    assert runs.draw(run).is_file()


def test_the_file_is_of_models_of_the_zoo_and_a_plan_reads_it():
    known = curves.known()
    assert len(known) >= 16 and {name.split("/")[0] for name in known} <= set(zoo.models())
    assert all(len(c.low) == len(c.high) == curves.POINTS and c.runs >= 1 for c in known.values())
    assert all(map(curves.current, known)), "a curve of a recipe that the registry no longer has"
    assert all(low <= high for c in known.values() for low, high in zip(c.low, c.high, strict=True))
    work = launch.job("swav_digits", {"schedule.images": 1280})
    assert plan.beside(work) == ""


# -- few GPUs ------------------------------------------------------------------------------------------------------------------
def test_a_batch_for_64_gpus_is_scaled_for_few():
    recipe = zoo.resolve("swav_800ep").dump()
    found = {c.path: c.value for c in from_folder.fewer(recipe, 1_281_167, 1, 800)}
    assert found == {
        "batch": 256,
        "optimizer.lr": pytest.approx(4.8 / 16),
        "schedule.start_lr": pytest.approx(0.3 / 16),
        "schedule.final_lr": pytest.approx(0.0048 / 16),
        "params.queue.length": 3840,  # as in the authors' script for a batch of 256
        "params.queue.start_epoch": 15,
        "params.freeze_prototypes_steps": 313 * 16,
    }
    four = {c.path: c.value for c in from_folder.fewer(recipe, 1_281_167, 4, 800)}
    assert (
        four["batch"] == 1024
        and four["optimizer.lr"] == pytest.approx(1.2)
        and four["params.queue.length"] == 15 * 1024
    )
    assert (
        from_folder.fewer(recipe, 1_281_167, 16, 800) == []
        and from_folder.fewer(zoo.resolve("mocov2_800ep").dump(), 10**6, 1, 800) == []
    )


def test_the_plan_says_it_in_words_that_the_command_line_takes(monkeypatch):
    monkeypatch.delenv("SELFZOO_DATA", raising=False)
    text = plan.plan(launch.job("swav_800ep"))
    line = next(line for line in text.splitlines() if line.startswith("few GPUs"))
    words = [word for word in line.split() if "=" in word]
    assert "swav_400ep_bs256" in line and len(words) == 7
    again = launch.job("swav_800ep", settings.parse(words))
    assert again.recipe.batch == 256 and again.recipe.params["queue"]["length"] == 3840
    assert "few GPUs" not in plan.plan(again)
    monkeypatch.setenv("WORLD_SIZE", "64")
    assert "few GPUs" not in plan.plan(launch.job("swav_800ep"))


def test_the_progress_line_shows_chance_and_earlier_runs_at_the_same_share(tmp_path, monkeypatch):
    curve = Curve(3, (9.0, *(5.0,) * 18, 0.75), (9.5, *(5.0,) * 18, 1.25))
    monkeypatch.setattr(curves, "of", lambda folder: curve if folder.parent.name == "rotnet_digits" else None)
    lines = []
    monkeypatch.setattr(Progress, "_print", lambda self, text: lines.append(text))
    own_update = Progress.update

    def hurried(self, *args):
        self.every = 0.0
        own_update(self, *args)

    monkeypatch.setattr(Progress, "update", hurried)
    small = {"schedule.images": 2560, "batch": 128, "out": str(tmp_path), "device": "cpu", "tensorboard": False}
    launch.pretrain("rotnet_digits", small)  # 20 steps: a point of the curve each
    first, last = (next(line for line in lines if f"step {step}/20 " in line) for step in (10, 20))
    assert "(chance 1.39, earlier runs 5.00)" in first and "(chance 1.39, earlier runs 0.75 to 1.25)" in last


def test_a_line_without_anything_to_compare_with_has_no_brackets():
    plain = Progress("x", 10, images=1, device=torch.device("cpu"), quiet=True)
    assert "loss 1.0000  " in plain.line(5, 0, 1.0)
