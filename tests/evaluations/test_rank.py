"""`python -m evaluations rank FOLDER`: ranks respect paired tests, ties are ties, and an interrupted command goes on."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from evaluations import rank_page
from evaluations.__main__ import main
from evaluations.measure import Settings
from evaluations.rank import Cost, Ranking, Row, ranks
from zoo import backbones, yamlfile
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
    words = (place / "photos", f"out={place / 'runs'}", "models=s*,blind")
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


def kept(out: str) -> tuple[Path, dict]:
    """The page that a ranking names, and the numbers beside it."""
    page = Path(next(line for line in out.splitlines() if line.startswith("page: ")).removeprefix("page: "))
    return page, json.loads((page.parent / "rank.json").read_text())


def test_two_equal_models_tie_and_the_command_line_takes_models_as_an_option(place, capsys):
    shutil.copytree(place / "runs" / "sharp", place / "runs" / "sharp_again")
    status, out, _ = command(capsys, place / "photos", "--models", "[sb]*", f"out={place / 'runs'}", "by=ridge")
    _, found = kept(out)
    assert status == 0 and {Path(m["model"]).parent.name: m["rank"] for m in found["models"]} == {
        "sharp": 1,
        "sharp_again": 1,
        "blind": 3,
    }
    assert found["ranked_by"] == "ridge_folder" and "by ridge regression" in out
    top1 = found["models"][0]["measured"]["ridge_folder"]["top1"]
    assert (
        top1["interval"][0] < top1["value"] <= top1["interval"][1]
        and "cluster_folder" in found["models"][0]["measured"]
    )


class Page(HTMLParser):
    """What a browser would load, the text, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_and_loads_nothing(place, capsys):
    photos = place / "photos & <b>more</b>"
    (place / "photos & <b>more<").mkdir()
    (place / "photos").rename(photos)
    status, out, _ = command(capsys, photos, "models=[sb]*", f"out={place / 'runs'}")
    page, _ = kept(out)
    seen = Page(page.read_text(encoding="utf-8"))
    assert status == 0 and not seen.open and f"Which backbone for {photos}?" in seen.text
    assert len(seen.sources) == 2 and all(source.startswith("data:image/jpeg;base64,") for source in seen.sources)
    assert "runs/sharp/a8-s0" in seen.text and out.splitlines()[-1].removeprefix("load it: ") in seen.text
    assert "url(" not in page.read_text().replace("url(#", "") and "ridge regression" in seen.text


def test_a_montage_frames_neighbours_of_the_same_class(place):
    settings = Settings.of({"data": str(place / "photos"), "out": str(place / "runs")})

    def same(name, side):
        row = Row(str(place / "runs" / name / f"a{side}-s0"), {}, np.zeros(0), Cost(0, 0, 0))
        sheet = rank_page.montage(Ranking(str(place / "photos"), "knn_folder"), row, settings)
        frames = [
            sheet.getpixel((8 + column * rank_page.TILE + 1, line * rank_page.TILE + 1))
            for line in range(rank_page.QUERIES)
            for column in range(1, rank_page.NEAREST + 1)
        ]
        assert set(frames) <= {rank_page.SAME, rank_page.OTHER}
        return frames.count(rank_page.SAME) / len(frames)

    assert same("sharp", 8) > 0.9 and 0.2 < same("blind", 1) < 0.8


def test_a_flat_folder_is_measured_without_labels_and_without_ranks(place, capsys):
    flat = place / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((place / "photos").rglob("*.png"))[::3]):
        shutil.copy(path, flat / f"{i}.png")
    status, out, _ = command(capsys, flat, "models=[so]*", f"out={place / 'runs'}")
    page, found = kept(out)
    assert status == 0 and "rank none" in out and "load it" not in out and found["ranked_by"] is None
    assert [m["rank"] for m in found["models"]] == [None, None] and [m["cost"]["width"] for m in found["models"]] == [
        49,
        64,
    ]
    assert all(
        {"rankme", "lidar", "cluster_stability"} <= set(m["measured"]["quality_folder"]) for m in found["models"]
    )
    seen = Page(page.read_text(encoding="utf-8"))
    assert not seen.open and len(seen.sources) == 2 and "no classes" in seen.text


def test_files_are_ranked_beside_runs_and_a_bad_one_is_left_out(place, capsys):
    recipe = zoo.resolve("random_digits")
    net = backbones.build(recipe.backbone)
    torch.save({"state_dict": net.state_dict()}, place / "mine.pth")
    (place / "broken.pth").write_bytes(b"no weights")
    files = f"files=[{place / 'mine.pth'},{place / 'broken.pth'}]"
    status, out, _ = command(capsys, place / "photos", "models=sharp", files, f"out={place / 'runs'}")
    _, found = kept(out)
    assert status == 0 and {Path(m["model"]).name for m in found["models"]} == {"a8-s0", "mine.pth"}
    cost = next(m["cost"] for m in found["models"] if m["model"].endswith("mine.pth"))
    assert cost["parameters"] == sum(p.numel() for p in net.parameters()) and cost["milliseconds"] > 0
    assert f"left out: {place / 'broken.pth'}" in out
    status, out, err = command(
        capsys, place / "photos", "models=none", f"files={place / 'broken.pth'}", f"out={place / 'runs'}"
    )
    assert status == 2 and "no model could be measured" in err.splitlines()[-1] and "broken.pth" in err
    status, out, err = command(capsys, place / "photos", "by=linear", f"out={place / 'runs'}")
    assert status == 2 and err == "error: by=linear: knn or ridge\n"


def test_a_model_without_a_crop_is_timed_at_the_size_of_the_images(place, capsys):
    """Raw pixels take no other size: pixels_fashion_mnist was refused on its own 28-pixel images."""
    recipe_file = place / "runs" / "sharp" / "a8-s0" / "recipe.yaml"
    recipe = yamlfile.loads(recipe_file.read_text())
    recipe["input"] |= {"resize": None, "crop": None, "pad": 0}
    recipe_file.write_text(yamlfile.dumps(recipe))
    status, out, _ = command(capsys, place / "photos", "models=sharp", f"out={place / 'runs'}")
    assert (
        status == 0 and "left out" not in out and [Path(m["model"]).name for m in kept(out)[1]["models"]] == ["a8-s0"]
    )


def test_models_of_small_data_sets_are_given_images_of_other_sizes_at_their_own(place, capsys):
    """digits are 8 x 8: photographs of three sizes were refused by every model of the zoo's laptop profiles."""
    recipe_file = place / "runs" / "sharp" / "a8-s0" / "recipe.yaml"
    recipe = yamlfile.loads(recipe_file.read_text())
    recipe["input"] |= {"resize": None, "crop": None, "pad": 0}
    recipe_file.write_text(yamlfile.dumps(recipe))
    for number, file in enumerate(sorted((place / "photos").rglob("*.png"))):
        size = ((16, 16), (24, 20), (20, 24))[number % 3]
        Image.open(file).resize(size, Image.Resampling.NEAREST).save(file)
    status, out, _ = command(capsys, place / "photos", "models=sharp", f"out={place / 'runs'}")
    assert status == 0 and "left out" not in out, out
    assert "images resized to 8 x 8 pixels, the size of its own data set, for 1 of 1 models" in out
