"""bfloat16 is a recipe's wish: where the machine has no instructions for it, what runs, and is recorded, is float32."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from evaluations.inputs import models
from reproduce import launch, plan
from zoo import precision

TINY = {
    "dataset": "digits",
    "input.pad": 1,
    "input.mean": [0.3055],
    "input.std": [0.376],
    "views.pad": 1,
    "views.crops.0.size": 10,
    "batch": 32,
    "schedule.images": 64,
    "tensorboard": False,
}


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: False)


@pytest.fixture
def having(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: True)


def asked(**env: str) -> bool:
    code = "from zoo.precision import has_bfloat16; print(has_bfloat16('cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return {"True": True, "False": False}[done.stdout.strip()]


def test_the_answer_is_that_of_the_processor_and_of_the_library_that_computes():
    listed = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and listed.exists():
        assert asked(ONEDNN_MAX_CPU_ISA="DEFAULT") == ("avx512_bf16" in listed.read_text().split())
    assert not asked(ONEDNN_MAX_CPU_ISA="AVX2") or platform.machine() != "x86_64"


def test_a_machine_with_bfloat16_runs_the_registrys_recipe(having):
    work = launch.job("swav_fashion_mnist")
    assert work.recipe.precision == "bfloat16" and not work.note and work.default
    assert work.folder.name.removesuffix("-s0") == zoo.entry("swav_fashion_mnist").recipe.hash()


def test_a_machine_without_it_runs_float32_in_a_folder_of_its_own_and_says_so(without):
    work = launch.job("swav_fashion_mnist", {"seed": 2})
    resolved = zoo.resolve("swav_fashion_mnist", {"precision": "float32"})
    assert work.recipe.precision == "float32" and work.default and "bfloat16" in work.note
    assert work.folder.name == f"{resolved.hash()}-s2" != f"{zoo.entry('swav_fashion_mnist').recipe.hash()}-s2"
    assert "precision  float32: this machine has no instructions" in plan.plan(launch.job("swav_fashion_mnist", TINY))
    explicit = launch.job("swav_fashion_mnist", {"precision": "bfloat16"})
    assert explicit.recipe.precision == "bfloat16" and not explicit.note
    assert launch.job("swav_digits").recipe == zoo.resolve("swav_digits"), "a float32 recipe is left alone"


def test_the_precision_that_ran_is_in_recipe_and_record_and_the_id_finds_the_run(without, tmp_path, capsys):
    work = launch.job("simclr_fashion_mnist", {**TINY, "out": str(tmp_path)})
    launch.run(work)
    assert zoo.load_recipe(work.folder / "recipe.yaml").precision == "float32"
    assert capsys.readouterr().err.count("no instructions") == 1
    own = launch.job("simclr_fashion_mnist", {"out": str(tmp_path)})  # the registry's recipe, its run stood in for
    work.folder.rename(own.folder)
    for found in (
        models.resolve("simclr_fashion_mnist", out=tmp_path),
        models.resolve("simclr_fashion_mnist", 0, tmp_path),
    ):
        assert found.weights == own.folder / "weights.pth" and found.name == "simclr_fashion_mnist"
        assert found.pretrain_command == "python -m reproduce simclr_fashion_mnist seed=0 precision=float32"


def test_a_run_that_another_machine_finished_in_bfloat16_is_not_made_again(having, tmp_path, monkeypatch):
    folder = launch.job("simclr_fashion_mnist", {"out": str(tmp_path)}).folder
    folder.mkdir(parents=True)
    for name in ("done.json", "weights.pth"):
        (folder / name).write_text("{}")
    zoo_recipe = zoo.resolve("simclr_fashion_mnist")
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: False)
    work = launch.job("simclr_fashion_mnist", {"out": str(tmp_path)})
    assert work.folder == folder and work.recipe == zoo_recipe and not work.note
