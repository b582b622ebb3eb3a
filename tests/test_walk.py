"""A newcomer's walk with a folder of photographs: look at it, pre-train on it, rank, cluster, and load in a plain script."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

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

    assert evaluations(["rank", str(folder), "--models", "none", f"files=[{run}]", f"out={out}"]) == 0
    told = capsys.readouterr()
    assert "simclr" in told.out + told.err and (out / "rank").is_dir()

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
