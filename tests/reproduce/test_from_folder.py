"""Recipes for images of one's own: what is decided from numbers alone, and the walk from a folder to a network in use."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import transforms

import zoo
from reproduce import from_folder, launch, methods, own_images
from reproduce.__main__ import main
from reproduce.from_folder import Facts
from reproduce.plan import Unread
from zoo.__main__ import main as zoo_main
from zoo.errors import UserError, guard
from zoo.registry import registry

EVERY = registry().methods()


def facts(images: int, side: int, channels: int = 3) -> Facts:
    return Facts(images, side, channels, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels])


def settings(method: str, known: Facts, **insisted):
    """path -> value of the derived choices over the base recipe, read from the resulting recipe as well."""
    base = own_images.base_recipe(method, known.small)
    choices = from_folder.derive(base.dump(), known, **insisted)
    assert all(choice.why for choice in choices) and len({c.path for c in choices}) == len(choices)
    return registry().change(
        base, {"dataset": "folder", "split": "train", "init": None, **{c.path: c.value for c in choices}}
    )


# -- the rule: numbers in, recipe out --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "images, side, network, crops, batch, prototypes, queue, epochs",
    [
        (100, 28, "tiny_resnet", [28], 16, 10, 0, 400),
        (3_000, 28, "tiny_resnet", [28], 256, 100, 0, 91),
        (100_000, 64, "tiny_resnet", [64], 256, 100, 0, 16),
        (10_000_000, 64, "tiny_resnet", [64], 256, 100, 0, 2),
        (100, 224, "resnet18", [224, 96], 16, 10, 0, 800),
        (3_000, 224, "resnet18", [224, 96], 256, 300, 1280, 800),
        (100_000, 1000, "resnet50", [224, 96], 256, 3000, 3840, 200),
        (10_000_000, 1000, "resnet50", [224, 96], 256, 3000, 3840, 20),
        (100, 130, "resnet18", [128, 48], 16, 10, 0, 800),
    ],
)
def test_swav_by_number_and_size_of_images(images, side, network, crops, batch, prototypes, queue, epochs):
    recipe = settings("swav", facts(images, side))
    assert (recipe.backbone.name, [c.size for c in recipe.views.crops]) == (network, crops)
    params = recipe.params
    assert (recipe.batch, params["prototypes"], params["queue"]["length"], recipe.schedule.epochs) == (
        batch,
        prototypes,
        queue,
        epochs,
    )
    assert params["queue"]["length"] % recipe.batch == 0 and params["queue"]["length"] <= images


def test_rates_follow_the_batch():
    large = settings("swav", facts(100_000, 224))  # the authors' 4.8, 0.3 and 0.0048 for 4096, by LARC
    assert large.optimizer.name == "larc" and large.optimizer.lr == pytest.approx(4.8 * 256 / 4096)
    assert (large.schedule.start_lr, large.schedule.final_lr) == (
        pytest.approx(0.3 / 16, rel=1e-3),
        pytest.approx(0.0048 / 16, rel=1e-3),
    )
    more = settings("swav", facts(100_000, 224), batch=1024)
    assert more.batch == 1024 and more.optimizer.lr == pytest.approx(1.2)
    small = settings("simclr", facts(100, 28))  # AdamW: 0.003 for 256, by the square root
    assert small.optimizer.name == "adamw" and small.optimizer.lr == pytest.approx(0.003 / 4)
    assert settings("mocov1", facts(100_000, 224), epochs=100).schedule.milestones == [60, 80]  # 120 and 160 of 200


@pytest.mark.parametrize("side", [28, 224])
def test_gray_and_colour(side):
    gray, colour = settings("simclr", facts(3000, side, 1)), settings("simclr", facts(3000, side))
    assert (
        gray.views.jitter.hue
        == gray.views.jitter.saturation
        == gray.views.grayscale
        == 0
        < gray.views.jitter.brightness
    )
    assert colour.views.jitter.hue > 0 and colour.views.grayscale == 0.2
    assert colour.input.mean == [0.4, 0.5, 0.6] and colour.input.std == [0.2, 0.3, 0.25]
    assert gray.input.mean == ([0.4] if side == 28 else [0.4] * 3)  # a ResNet of the zoo takes three channels


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("images", [100, 3000, 10_000_000])
def test_every_method_has_a_recipe_that_meets_its_own_limits(method, images):
    for side, channels in ((28, 1), (224, 3)) if images == 3000 else ((64, 3),):
        recipe = settings(method, facts(images, side, channels))
        if images <= 3000:
            assert launch.meet(recipe, Unread(images, 10), 1).warnings == [], (side, channels)
        for name in ("prototypes", "clusters"):
            counts = recipe.params.get(name, 0)
            assert all(k <= max(4, images // 10) for k in (counts if isinstance(counts, list) else [counts]))


# -- looking at images -----------------------------------------------------------------------------------------------------
def photographs(folder: Path, count: int, sides=(40,), mode: str = "RGB", classes=("a", "b")) -> Path:
    """Coloured bars by class over noise, files in folders of classes; no classes: all in one folder."""
    draw = np.random.default_rng(7)
    for i in range(count):
        side, label = sides[i % len(sides)], i % max(1, len(classes))
        pixels = draw.integers(0, 90, (side, side + 4, 3), dtype=np.uint8)
        pixels[(label * side) // 3 : (label * side) // 3 + side // 3, :, label % 3] += 150
        target = folder / (classes[label] if classes else "") / f"{i:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "CMYK":
            target = target.with_suffix(".jpg")
        if mode == "I;16":
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(target)
        else:
            Image.fromarray(pixels).convert(mode).save(target)
    return folder


def test_mean_and_std_are_those_of_the_pixels(tmp_path):
    photographs(tmp_path, 40, sides=(24, 40))
    known, notes = own_images.look(zoo.data.open_source("folder", "train", root=str(tmp_path)))
    pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in tmp_path.rglob("*.png")]) / 255
    assert known.mean == pytest.approx(pixels.mean(0), abs=1e-9) and known.std == pytest.approx(pixels.std(0), abs=1e-9)
    assert (known.images, known.side, known.channels, notes) == (40, 32, 3, [])


@pytest.mark.parametrize(
    "mode, told",
    [("L", ""), ("I;16", "more than 8 bits"), ("RGBA", "transparency dropped"), ("CMYK", "converted to RGB")],
)
def test_unusual_images_are_told(tmp_path, mode, told):
    photographs(tmp_path, 34, mode=mode, classes=())
    known, notes = own_images.look(zoo.data.open_source("folder", "train", root=str(tmp_path)))
    assert known.channels == (1 if mode in ("L", "I;16") else 3)
    assert told in "".join(notes) and bool(told) == bool(notes)


def test_a_plan_tells_few_images_and_twelve_bits_in_files_of_sixteen(tmp_path, capsys):
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    status, out, _ = command(capsys, "simclr", f"data={tmp_path}", "--plan")
    assert status == 0 and "40 images are few to train from random weights" in out
    assert "use 12 of them" in out and "multiply them by 16" in out


def command(capsys, *words):
    status = guard(lambda: main(list(map(str, words))))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    "words, told",
    [
        (["swav"], ["swav is a method", "data=FOLDER", "python -m zoo list 'swav*'"]),
        (["swav", "data=/no/such/folder"], ["/no/such/folder"]),
        (["swav", "data={few}"], ["12 images", "32 at least"]),
        (["swav", "data={enough}", "params.queue.length=7"], ["params.queue.length=7", "batch of 8"]),
        (
            ["deepcluster", "data={enough}", "params.clusters=50"],
            ["params.clusters=50", "36 images", "params.clusters=36"],
        ),
        (["supervised", "data={enough}"], ["learns from labels"]),
        (["swav", "data={enough}", "params.prototype=5"], ["params.prototype", "did you mean 'params.prototypes'"]),
        (["swav", "data={enough}", "accumulate=2"], ["accumulate=2", "compares the images of a batch", "batch=4"]),
        (["rotnet", "data={enough}", "accumulate=3"], ["accumulate=3", "8 images"]),
    ],
)
def test_what_cannot_work_is_one_line(capsys, tmp_path, words, told):
    places = {
        "few": photographs(tmp_path / "few", 12, classes=()),
        "enough": photographs(tmp_path / "enough", 36, classes=()),
    }
    for extra in ([], ["--plan"]):
        status, out, err = command(capsys, *(w.format(**places) for w in words), f"out={tmp_path / 'runs'}", *extra)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == 2 and not out and len(errors) == 1 and all(part in errors[0] for part in told), err
    assert not (tmp_path / "runs").exists()


# -- the walk ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """300 colour photographs in three sizes -> check -> pre-train a few steps; (folder, run folder)."""
    root = tmp_path_factory.mktemp("walk")
    folder = photographs(root / "photos", 300, sides=(24, 32, 48), classes=("cats", "dogs", "owls"))
    assert zoo_main(["data", "check", "folder", str(folder)]) == 0
    words = {
        "data": str(folder),
        "out": str(root / "runs"),
        "schedule.images": 192,
        "tensorboard": False,
        "log_interval": 1,
    }
    return folder, launch.pretrain("swav", words, quiet=True)


def test_recipe_yaml_holds_settings_and_reasons(walked):
    _, run = walked
    text = (run / "recipe.yaml").read_text()
    recipe = zoo.load_recipe(run / "recipe.yaml")
    assert run.parent.name == "swav" and recipe.batch == 64 and recipe.params["prototypes"] == 30
    assert "# params.prototypes=30 (10 of the 300 images for each cluster at least)" in text
    assert recipe.backbone.options["in_channels"] == 3 and [c.size for c in recipe.views.crops] == [32]
    assert yaml.safe_load(text) == recipe.dump()


def test_the_same_command_finds_the_finished_run_and_its_next_command_works(walked, capsys):
    folder, run = walked
    status, out, _ = command(capsys, "swav", f"data={folder}", f"out={run.parents[1]}", "schedule.images=192")
    assert status == 0 and "finished before" in out and str(run) in out
    following = shlex.split(next(line for line in out.splitlines() if line.startswith("next: ")).removeprefix("next: "))
    assert following[:6] == ["python", "-m", "evaluations", "run", "knn_folder", str(run)]
    from evaluations.__main__ import main as evaluate

    assert evaluate([*following[3:], f"out={run.parents[1]}"]) == 0
    record = json.loads(Path(capsys.readouterr().out.split()[-1]).read_text())
    assert record["metrics"]["top1"]["n"] == 60  # a fifth of each class was held out


def test_a_folder_without_classes_goes_on_to_clustering(walked, tmp_path, capsys):
    flat = photographs(tmp_path / "flat", 48, sides=(20,), mode="L", classes=())
    status, out, err = command(
        capsys, "simsiam", f"data={flat}", f"out={tmp_path}", "schedule.images=16", "tensorboard=false"
    )
    assert status == 0 and "input={pad: 0, resize: 20" in err
    following = shlex.split(next(line for line in out.splitlines() if line.startswith("next: ")).removeprefix("next: "))
    assert following[3] == "cluster"
    from evaluations.__main__ import main as evaluate

    assert evaluate([*following[3:], "clusters=3", f"out={tmp_path}"]) == 0
    assert any(path.name == "montage.jpg" for path in tmp_path.rglob("*"))


def test_a_plain_torchvision_script_gets_the_features_that_were_trained(walked):
    folder, run = walked
    backbone = zoo.load(str(run)).eval()
    spec = zoo.load_recipe(run / "recipe.yaml").input
    by_hand = transforms.Compose(
        [
            transforms.Resize(spec.resize),
            transforms.CenterCrop(spec.crop),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    image = Image.open(next(folder.rglob("*.png"))).convert("RGB")
    with torch.no_grad():
        ours, plain = (backbone(change(image)[None]) for change in (zoo.transforms(str(run)), by_hand))
    assert plain.shape == (1, 192) and torch.equal(ours, plain) and float(plain.std()) > 0


def test_a_plan_says_hours_chance_and_reasons_and_trains_nothing(walked, capsys, tmp_path):
    folder, _ = walked
    status, out, _ = command(capsys, "swav", f"data={folder}", f"out={tmp_path}", "--plan")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0 and not list(tmp_path.iterdir())
    assert "an estimate: 16 images timed" in lines["time"] and "recipe derived from the images" in lines["model"]
    assert f"{math.log(30):.2f} for a network that says the same" in lines["loss"]
    assert out.count("\nderived ") >= 8


def test_extend_is_an_announced_warm_start(walked, capsys, tmp_path):
    folder, run = walked
    status, _, err = command(
        capsys, "extend", run, "schedule.images=64", f"data={folder}", f"out={tmp_path}", "tensorboard=false"
    )
    assert (
        status == 0
        and f"a warm start from {run / 'weights.pth'}" in err
        and "not the run which would have been longer" in err
    )
    longer = next(tmp_path.glob("swav/*"))
    recipe = zoo.load_recipe(longer / "recipe.yaml")
    assert (
        recipe.init == str(run / "weights.pth") and recipe.schedule.images == 64 and recipe.params["prototypes"] == 30
    )
    before, after = (zoo.load(str(place)).state_dict() for place in (run, longer))
    fresh = launch.build(recipe.model_copy(update={"init": None}), Unread(300, 0)).backbone.state_dict()
    assert launch.build(recipe, Unread(300, 0)).backbone.state_dict()["conv1.weight"].equal(before["conv1.weight"])
    near, far = (
        sum(float((after[k] - other[k]).norm()) for k in after if k.endswith("weight")) for other in (before, fresh)
    )
    assert 0 < near < far
    capsys.readouterr()
    for words, told in (([tmp_path], "no finished run"), ([run], "say for how long")):
        status, _, err = command(capsys, "extend", *words)
        assert status == 2 and told in err and err.count("\n") == 1


# -- gradient accumulation -----------------------------------------------------------------------------------------------
def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    """Without batch norm, whose statistics are those of a part."""
    recipe = zoo.resolve("rotnet_digits", {"batch": 32, "accumulate": 4, "channels_last": False})
    source = zoo.data.open_source("digits", "train")
    gradients = {}
    for accumulate in (None, 4):
        plain = recipe.model_copy(update={"accumulate": accumulate})
        method = launch.build(plain, source).eval()  # running statistics
        batch = next(launch.streamed(plain, source, method).epoch(0))
        parts = batch.parts or [batch]
        assert len(parts) == (accumulate or 1) and sum(map(len, parts)) == 32
        for part in parts:
            (method.loss(part, 0)[0] / len(parts)).backward()
        gradients[accumulate] = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
    assert torch.allclose(gradients[None], gradients[4], atol=1e-5) and gradients[4].norm() > 0.1


def test_a_run_in_parts_is_another_recipe_and_trains(tmp_path):
    words = {"batch": 32, "schedule.images": 96, "out": str(tmp_path), "tensorboard": False}
    run = launch.pretrain("rotnet_digits", {**words, "accumulate": 4}, quiet=True)
    assert zoo.load_recipe(run / "recipe.yaml").accumulate == 4
    assert run.name != launch.job("rotnet_digits", words).folder.name
    assert json.loads((run / "done.json").read_text())["loss"] < 2


def test_methods_that_compare_images_of_a_batch_are_not_divisible():
    assert {name for name in EVERY if methods.find(name).needs.divisible} == {
        "rotnet",
        "supervised",
        "deepcluster",
        "sela",
    }
    with pytest.raises(UserError, match="compares the images of a batch"):
        launch.meet(zoo.resolve("simclr_digits", {"accumulate": 2}), Unread(1258, 10), 1)
