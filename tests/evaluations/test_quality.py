"""The kind `quality`: known values from images whose pixels are the features, no label opened, intervals, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from engine.maths import quality as maths
from evaluations import protocol
from evaluations.__main__ import main
from evaluations.inputs import datasets, models
from evaluations.kinds import quality
from evaluations.measure import Measurement, Settings
from zoo import data, yamlfile
from zoo.errors import UserError, guard

SIDE = 8


def network(out, side=SIDE):
    """A run folder of the network that passes pixels on."""
    recipe = zoo.resolve("pixels_digits").dump()
    recipe["backbone"] = {"name": "pixels", "options": {"dim": side * side, "in_channels": 1}}
    recipe["input"] = {**recipe["input"], "mean": [0.0], "std": [1.0]}
    folder = out / "pixels" / "net-s0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe))
    torch.save({}, folder / "weights.pth")
    return folder


class Forbidden(data.ArraySource):
    """Images in memory whose labels nobody may open."""

    @property
    def labels(self):
        raise AssertionError("labels were opened")

    label = labels


def measured(tmp_path, images, **more):
    given = {"head.images": 4096, "head.views": 2, "head.viewed": 16, "head.clusters": 2, "seeds": 3, **more}
    settings = Settings.of({k.replace("__", "."): v for k, v in given.items()}, str(tmp_path))
    wanted = protocol.complete(protocol.load("quality_folder", settings.overrides)).model_copy(
        update={"dataset": f"toy-{tmp_path.name}"}
    )
    source = Forbidden(images, np.zeros(len(images), np.int64), ("only",), "train")
    task = Measurement(
        wanted, models.resolve(str(network(tmp_path))), settings, datasets.joined(wanted, lambda split: source)
    )
    return task.measure().metrics


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE), dtype=np.uint8)


def test_values_are_those_of_the_pixels_and_no_label_is_opened(tmp_path):
    images = noise(300)
    found = measured(tmp_path, images)
    z = torch.tensor(images.reshape(300, -1) / 255, dtype=torch.float32)
    s = np.linalg.svd(z.numpy().astype(np.float64), compute_uv=False)
    p = s / s.sum()
    assert found["rankme"].value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    spread = np.linalg.eigvalsh(np.cov(z.numpy().astype(np.float64).T))
    assert found["participation_ratio"].value == pytest.approx(spread.sum() ** 2 / (spread**2).sum(), rel=1e-5)
    assert found["effective_rank"].value > 60 and found["rankme"].n == 300  # noise in 64 pixels uses all of them
    assert set(found) == set(protocol.load("quality_folder").metrics)


def test_two_bright_groups_have_one_direction_and_stable_clusters(tmp_path):
    images = (noise(120) // 64).astype(np.uint8)
    images[::2, :4] += 180
    images[1::2, 4:] += 180
    found = measured(tmp_path, images)
    assert found["participation_ratio"].value < 1.1 and found["cluster_stability"].value == pytest.approx(100)
    assert found["cluster_stability"].sd == 0 and len(found["cluster_stability"].per_seed) == 3
    blurred = measured(tmp_path / "noise", noise(120, 3), **{"head.clusters": 12})
    assert blurred["cluster_stability"].value < 40


def test_intervals_cover_the_value_on_other_images():
    """400 draws of 200 rows from one law: the interval holds the mean measure of such draws about 95 times in 100."""
    draw = np.random.default_rng(0)
    scale = np.arange(1, 9) ** -0.5
    sets = [torch.tensor(draw.normal(size=(200, 8)) * scale) for _ in range(200)]
    found = [quality.interval(maths.participation_ratio, z, 10) for z in sets]
    mean = np.mean([m.value for m in found])
    assert 0.88 < np.mean([m.ci[0] <= mean <= m.ci[1] for m in found]) < 0.99
    assert quality.interval(maths.participation_ratio, sets[0], 0).ci is None


def test_the_order_of_views_and_images_is_fixed_and_few_images_are_drawn(tmp_path):
    one, two = (measured(tmp_path / str(i), noise(100), **{"head.images": 40}) for i in range(2))
    assert one == two and one["rankme"].n == 40
    other = measured(tmp_path / "seed", noise(100), **{"head.images": 40, "seed": 1})
    assert other["rankme"].value != one["rankme"].value


@pytest.mark.parametrize(
    "images, more, told",
    [
        (np.full((20, SIDE, SIDE), 7, np.uint8), {}, ["collapsed to a point", "net", "layer output"]),
        (noise(4), {}, ["4 images", "needs 8"]),
        (noise(20), {"head.clusters": 21}, ["head.clusters=21", "only 20 images"]),
        (noise(20), {"head.first": 5, "head.last": 6}, ["head.last=6", "head.last=8"]),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, images, more, told):
    with pytest.raises(UserError) as caught:
        measured(tmp_path, images, **more)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in told), caught.value


def test_features_that_are_not_finite_name_the_image(tmp_path, monkeypatch):
    from zoo.backbones.base import Pixels

    monkeypatch.setattr(Pixels, "forward", lambda self, x: x.flatten(1) / 0.0 * 0.0)
    with pytest.raises(UserError, match="NaN or infinity for image train-000000"):
        measured(tmp_path, noise(20))


def test_a_flat_folder_and_a_folder_of_one_class_from_the_command_line(tmp_path, capsys):
    for i, image in enumerate(noise(40)):
        for place in ("flat", "one/class"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / place / f"{i}.png")
    run = str(network(tmp_path))
    ranks = set()
    for place in ("flat", "one"):
        words = [
            "run",
            "quality_folder",
            run,
            "dataset=folder",
            f"data={tmp_path / place}",
            f"out={tmp_path}",
            "head.views=2",
            "head.viewed=8",
            "seeds=2",
        ]
        assert guard(lambda words=words: main(words)) == 0
        record = json.loads(Path(capsys.readouterr().out.split()[-1]).read_text())
        ranks.add(record["metrics"]["rankme"]["value"])
        assert record["protocol"] == "quality_folder" and record["metrics"]["rankme"]["ci"]
    assert len(ranks) == 1


def test_the_same_on_digits_as_a_named_set(tmp_path):
    words = {
        "head.views": 2,
        "head.viewed": 32,
        "head.images": 200,
        "seeds": 2,
        "out": str(tmp_path),
        "transform.crop": 8,
    }
    from evaluations.measure import evaluate

    found = json.loads(evaluate("quality_digits", str(network(tmp_path)), words, quiet=True).read_text())["metrics"]
    assert 10 < found["rankme"]["value"] < 64 and found["uniformity"]["value"] < 0 < found["alignment"]["value"]


def test_the_source_that_it_is_given_has_no_labels_but_the_identity_of_the_images():
    wanted = protocol.complete(protocol.load("quality_digits"))
    whole = data.open_source("digits", "train")
    given = datasets.joined(wanted, lambda split: whole)("train")
    assert not given.labelled and len(given.classes) == 0 and whole.labelled and (given.labels == -1).all()
    assert (given.identity, given.fingerprint) == (whole.identity, whole.fingerprint)
