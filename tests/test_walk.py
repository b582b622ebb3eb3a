"""A newcomer's walk with a folder of photographs: look at it, pre-train on it, rank, cluster, and load in a plain script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks import walk
from evaluations.__main__ import main as evaluations
from reproduce.__main__ import main as reproduce
from zoo.__main__ import main as zoo_main

SIZES = ((96, 72), (120, 90), (80, 80))  # width, height


def photographs(folder, each=24):
    """Class folders of smooth coloured pictures of three sizes: warm, cold and green ones."""
    draw = np.random.default_rng(0)
    for number, (name, tint) in enumerate({"warm": (90, 20, 0), "cold": (0, 20, 90), "green": (0, 80, 0)}.items()):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            small = draw.integers(0, 120, (5, 6, 3)) + np.array(tint)
            picture = Image.fromarray(small.clip(0, 255).astype(np.uint8))
            picture.resize(SIZES[(i + number) % 3], Image.Resampling.BICUBIC).save(folder / name / f"{i:02d}.jpg")
    return folder


def test_a_folder_of_photographs_from_the_first_look_to_a_script(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, out = photographs(tmp_path / "photos"), tmp_path / "runs"

    assert zoo_main(["data", "check", "folder", str(folder)]) == 0
    assert "shorter sides of 72 to 90 pixels" in capsys.readouterr().out

    words = [
        "simclr",
        f"data={folder}",
        f"out={out}",
        "schedule.images=96",
        "batch=24",
        "workers=0",
        "tensorboard=false",
    ]
    assert reproduce([*words, "--plan"]) == 0
    assert reproduce(words) == 0
    (run,) = (path.parent for path in out.glob("*/*/done.json"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["batch"] == 24 and recipe["input"]["channels"] == 3
    capsys.readouterr()

    files = f"files=[{run},random_fashion_mnist]"
    assert evaluations(["rank", str(folder), "--models", "none", files, f"out={out}"]) == 0
    told = capsys.readouterr().out
    assert f"  {run}\n" in told and "  random_fashion_mnist\n" in told and "left out" not in told
    assert "resized to 32 x 32 pixels" in told and (out / "rank").is_dir()

    assert evaluations(["cluster", str(run), str(folder), "head.clusters=3", f"out={out}"]) == 0
    assert list((out / "clusters").rglob("*.csv"))

    import zoo

    backbone, change = zoo.load(str(run)), zoo.transforms(str(run))
    picture = Image.open(folder / "warm" / "00.jpg").convert("RGB")
    with torch.no_grad():
        assert backbone.eval()(change(picture)[None]).shape == (1, backbone.dim)


def test_fewer_images_than_a_method_can_use_are_told_before_anything_is_done(tmp_path, monkeypatch, capsys):
    from zoo.errors import UserError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = photographs(tmp_path / "photos", each=15)
    with pytest.raises(UserError, match="params.clusters=50"):
        reproduce(["deepcluster", f"data={folder}", f"out={tmp_path / 'runs'}", "params.clusters=50", "--plan"])
    assert not (tmp_path / "runs").exists()


def test_the_committed_walk_went_through_every_command_and_ranked_every_model():
    """`python -m benchmarks.walk`: two minutes of pre-training, then the 18 laptop models beside the new one."""
    text = Path(walk.__file__).with_suffix(".md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("$ python ")]
    wanted = (
        "zoo data check",
        "--plan",
        "reproduce simclr",
        "evaluations rank",
        "evaluations cluster",
        "zoo export",
        "-c",
    )
    assert len(commands) == len(wanted) and all(words in line for words, line in zip(wanted, commands, strict=True))
    ranked = text.partition("$ python -m evaluations rank")[2].partition("images held out")[0]
    assert ranked.count("_fashion_mnist/") == 18 and ranked.count("runs/simclr/") == 1 and "left out" not in text
    assert "<All keys matched successfully>" in text and "(1, 512)" in text


@pytest.mark.slow
def test_the_whole_walk(tmp_path):
    """Every command a process of its own, on 300 photographs of three sizes."""
    steps = walk.walk(walk.photographs(tmp_path / "photos"), str(tmp_path / "runs"), images=128)
    assert len(steps) == 7 and "All keys matched" in steps[-1].printed
