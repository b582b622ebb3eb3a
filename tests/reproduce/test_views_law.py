"""What is drawn for views follows torchvision's law, over thousands of images, and nothing depends on anything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms as T

from reproduce import views
from reproduce.views import Augment, Crop

N = 5000
INDEX = np.arange(N)
CHANCE = 1e-4
# Boxes of this size always fit, so that area and ratio are free of each other.
AUGMENT = Augment(
    (Crop(20, (0.2, 0.4)),) * 2,
    flip=0.3,
    jitter={"brightness": 0.4, "contrast": 0.8, "saturation": 1.3, "hue": 0.1, "probability": 0.7},
    grayscale=0.2,
    blur={"probability": 0.45, "sigma": [0.1, 2.0]},
    rotate=15.0,
    solarize={"probability": 0.35, "threshold": 0.5},
)
HEIGHT, WIDTH = 1000, 1600


def columns(view=0, epoch=0, seed=0, index=INDEX, visit=0):
    """Everything drawn, as numbers that are uniform on 0..1 or 0 and 1."""
    p = views.sample(AUGMENT, seed, epoch, index, view, HEIGHT, WIDTH, visit)
    low = [0.6, 0.2, 0.0]
    factors = {
        name: (p.factors[:, i] - low[i]) / ((1.4, 1.8, 2.3)[i] - low[i])
        for i, name in enumerate(("brightness", "contrast", "saturation"))
    }
    return {
        "area": (p.width * p.height / (HEIGHT * WIDTH) - 0.2) / 0.2,
        "ratio": (np.log(p.width / p.height) - np.log(3 / 4)) / np.log(16 / 9),
        "left": p.left / (WIDTH - p.width),
        "top": p.top / (HEIGHT - p.height),
        **factors,
        "hue": p.factors[:, 3] / 0.2 + 0.5,
        "sigma": np.where(p.sigma > 0, (p.sigma - 0.1) / 1.9, np.nan),
        "angle": p.angle / 30 + 0.5,
        "flip": p.flip,
        "jitter": p.jitter,
        "gray": p.gray,
        "blur": p.sigma > 0,
        "solarize": p.solarize,
        **{
            f"place of {name}": (p.order == i).argmax(1) / 3
            for i, name in enumerate(("brightness", "contrast", "saturation", "hue"))
        },
    }


def test_ranges_are_uniform():
    for name, values in columns().items():
        if not name.startswith("place") and values.dtype != bool:
            values = values[~np.isnan(values)]
            assert values.min() >= 0 and values.max() <= 1, name
            assert stats.kstest(values, "uniform").pvalue > CHANCE, name


@pytest.mark.parametrize(
    ("name", "p"), [("flip", 0.3), ("jitter", 0.7), ("gray", 0.2), ("blur", 0.45), ("solarize", 0.35)]
)
def test_probabilities_are_those_of_the_recipe(name, p):
    assert stats.binomtest(int(columns()[name].sum()), N, p).pvalue > CHANCE
    for extreme in (0.0, 1.0):
        settings = {
            "flip": {"flip": extreme},
            "gray": {"grayscale": extreme},
            "jitter": {"jitter": {"brightness": 0.1, "probability": extreme}},
            "blur": {"blur": {"probability": extreme, "sigma": [0.1, 2.0]}},
            "solarize": {"solarize": {"probability": extreme, "threshold": 0.5}},
        }
        drawn = views.sample(Augment(AUGMENT.crops, **{"flip": 0.5} | settings[name]), 0, 0, INDEX, 0, HEIGHT, WIDTH)
        on = drawn.sigma > 0 if name == "blur" else getattr(drawn, name)
        assert on.all() if extreme else not on.any()


def test_all_orders_of_the_colour_operations_are_equally_likely():
    order = views.sample(AUGMENT, 0, 0, INDEX, 0, HEIGHT, WIDTH).order
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > CHANCE


def test_no_draw_depends_on_another():
    """Within a view, between the views, epochs and visits of an image, neighbouring images, and seeds; of each value and of its distance from the middle."""
    drawn = {
        "view": columns(),
        "other view": columns(view=1),
        "next epoch": columns(epoch=1),
        "next image": columns(index=INDEX + 1),
        "other seed": columns(seed=1),
        "next visit": columns(visit=1),
    }
    names, rows = [], []
    for where, found in drawn.items():
        for name, values in found.items():
            values = np.where(np.isnan(values), 0.5, values) if values.dtype != bool else values
            names.append((where, name))
            rows.append(values.astype(float))
            if values.dtype != bool:
                names.append((where, name))
                rows.append((values - 0.5) ** 2)
    found = np.corrcoef(np.stack(rows))
    dependent = [
        (a, b, round(found[i, j], 3))
        for i, a in enumerate(names)
        for j, b in enumerate(names[:i])
        if abs(found[i, j]) > 5 / np.sqrt(N)
        and a != b
        and not (a[0] == b[0] and {a[1].split()[0], b[1].split()[0]} in ({"place"}, {"blur", "sigma"}))
    ]
    assert not dependent


def test_nothing_is_drawn_twice():
    """A view, epoch, visit, image or seed that is another has other numbers throughout."""
    first = columns()
    for other in (columns(view=1), columns(visit=1), columns(epoch=1), columns(seed=1), columns(index=INDEX + N)):
        assert all(
            np.mean(first[name] == other[name]) < 0.01 for name in ("area", "left", "top", "hue", "angle", "brightness")
        )


@pytest.mark.parametrize(("height", "width"), [(300, 500), (700, 400)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14), (0.6, 1.0)])
def test_boxes_are_torchvisions(height, width, scale):
    """Those that do not fit are drawn again, and the tenth failure takes the centre."""
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(N)], dtype=float
    )
    p = views.sample(Augment((Crop(20, scale),)), 0, 0, INDEX, 0, height, width)
    ours = np.stack([p.top, p.left, p.height, p.width], axis=1)
    assert (ours >= 0).all() and (p.top + p.height <= height + 1e-9).all() and (p.left + p.width <= width + 1e-9).all()
    ours, theirs = (
        boxes + np.random.default_rng(0).uniform(-2, 2, boxes.shape) for boxes in (ours, theirs[::-1])
    )  # theirs are whole pixels
    for name, of in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
    }.items():
        assert stats.ks_2samp(of(ours), of(theirs)).statistic < 0.045, name
    assert np.corrcoef(ours.T) == pytest.approx(np.corrcoef(theirs.T), abs=0.06)


def test_colour_blur_and_rotation_are_torchvisions():
    torch.manual_seed(0)
    colour = [T.ColorJitter.get_params((0.6, 1.4), (0.2, 1.8), (0.0, 2.3), (-0.1, 0.1)) for _ in range(N)]
    p = views.sample(AUGMENT, 0, 0, INDEX, 0, HEIGHT, WIDTH)
    for i in range(4):
        assert stats.ks_2samp(p.factors[:, i], [float(c[i + 1]) for c in colour]).pvalue > CHANCE
    assert (
        stats.ks_2samp(p.sigma[p.sigma > 0], [float(T.GaussianBlur.get_params(0.1, 2.0)) for _ in range(N)]).pvalue
        > CHANCE
    )
    assert stats.ks_2samp(p.angle, [T.RandomRotation.get_params([-15.0, 15.0]) for _ in range(N)]).pvalue > CHANCE


def test_pad_and_crop_takes_every_place_equally_often():
    p = views.sample(Augment((Crop(32, (0.64, 0.64), (1.0, 1.0)),), pad=4), 0, 0, INDEX, 0, 32, 32)
    assert (p.width == 32).all() and (p.height == 32).all()
    places, counts = np.unique(np.stack([p.top, p.left]), axis=1, return_counts=True)
    assert places.shape[1] == 81 and set(places.ravel()) == set(range(9)) and stats.chisquare(counts).pvalue > CHANCE
