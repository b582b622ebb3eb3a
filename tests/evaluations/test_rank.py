"""`python -m evaluations rank FOLDER`: ranks respect paired tests, ties are ties, and an interrupted command goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from evaluations.__main__ import main
from evaluations.rank import ranks
from zoo import yamlfile
from zoo.errors import guard


def test_models_that_a_paired_test_does_not_tell_apart_share_a_rank():
    right = np.arange(200) < 190
    close, worse = right.copy(), np.arange(200) < 120
    close[:3] = False  # three images of 200: McNemar's p = 0.25
    assert ranks([worse, right, close]) == [3, 1, 1]
    assert ranks([right]) == [1] and ranks([right, right]) == [1, 1]
    six = right.copy()
    six[:6] = False  # p = 2 / 2^6 = 0.031: told apart alone, not among four models
    assert ranks([right, six]) == [1, 2] and ranks([right, six, right, right]) == [1, 1, 1, 1]


def run_folder(out, name, side):
    """A finished run that passes the pixels of images resized to `side` on."""
    recipe = zoo.resolve("pixels_digits").dump()
    recipe["backbone"] = {"name": "pixels", "options": {"dim": side * side, "in_channels": 1}}
    recipe["input"] = {**recipe["input"], "resize": side, "crop": side}
    folder = out / name / f"a{side}-s0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe))
    (folder / "done.json").write_text("{}")
    torch.save({}, folder / "weights.pth")


@pytest.fixture
def place(tmp_path):
    """Two classes that differ in which of two neighbouring rows is bright: one pixel for all sees nothing of it."""
    draw = np.random.default_rng(0)
    for label in range(2):
        for i in range(150):
            image = draw.integers(0, 60, (8, 8), dtype=np.uint8)
            image[3 + label] += 150
            target = tmp_path / "photos" / "ab"[label] / f"{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target)
    run_folder(tmp_path / "runs", "sharp", 8)
    run_folder(tmp_path / "runs", "blind", 1)
    run_folder(tmp_path / "runs", "other", 7)
    return tmp_path


def command(capsys, *words):
    status = guard(lambda: main(["rank", *map(str, words)]))
    return status, *capsys.readouterr()


def test_the_better_model_is_first_and_its_line_loads_it(place, capsys):
    words = (place / "photos", f"out={place / 'runs'}", "models=[sb]*")
    status, out, err = command(capsys, *words)
    lines = out.splitlines()
    assert (
        status == 0
        and "sharp" in lines[1]
        and lines[1].split()[0] == "1"
        and "blind" in lines[2]
        and lines[2].split()[0] == "2"
    )
    assert "60 images held out" in lines[3] and "other" not in out and "model 2 of 2" in err
    scope = {}
    exec(lines[-1].removeprefix("load it: "), scope)  # noqa: S102
    image = Image.open(next((place / "photos").rglob("*.png")))
    assert scope["backbone"](scope["change"](image)[None]).shape == (1, 64)
    before = sorted(p.stat().st_mtime_ns for p in (place / "runs" / "measured").rglob("*.json"))
    again, second, _ = command(capsys, *words)
    assert (
        again == 0
        and second == out
        and before == sorted(p.stat().st_mtime_ns for p in (place / "runs" / "measured").rglob("*.json"))
    )


def test_mistakes_are_one_line(place, capsys):
    for words, told in (
        ([place / "none"], "no such folder"),
        ([place / "photos", "models=nothing*", f"out={place / 'runs'}"], "no model at hand"),
    ):
        status, out, err = command(capsys, *words)
        assert status == 2 and not out and told in err and err.count("\n") == 1
