"""Two models on the same images, where a score is no mean over them: average precision and clusterings."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from evaluations import pair
from results.record import Metric

ONE, TWO = (
    SimpleNamespace(model=name, pretrain_seed=None, protocol="a_protocol", metrics={"map_res4": Metric(value=50.0)})
    for name in ("one", "two")
)
ROW = re.compile(r"difference ([+-][\d.]+) points, 95 % interval ([+-][\d.]+) to ([+-][\d.]+): (.+)")


def rows(text: str) -> list[tuple[float, float, float, str]]:
    return [(float(d), float(low), float(high), said) for d, low, high, said in ROW.findall(text)]


def clusters(truth: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(truth)) < noise, rng.integers(0, 12, len(truth)), truth)


def test_average_precision_is_compared_on_the_same_draws():
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 4)) < 0.3).astype(np.uint8)
    base = rng.standard_normal((300, 4))
    good, better, same = base + targets, base + 2 * targets, base + targets + 1e-9
    found = rows(pair.describe_precision(ONE, TWO, targets, better, good))
    assert len(found) == 2 and all(low > 0 and said == "one is better" for _, low, _, said in found)
    found = rows(pair.describe_precision(ONE, TWO, targets, good, better))
    assert all(high < 0 and said == "two is better" for _, _, high, said in found)
    found = rows(pair.describe_precision(ONE, TWO, targets, good, same))
    assert all((d, low, high) == (0, 0, 0) and said == "no difference beyond chance" for d, low, high, said in found)


@pytest.mark.parametrize("noises, least, most", [((0.4, 0.4), 88, 100), ((0.3, 0.5), 0, 5)])
def test_the_interval_of_two_clusterings_holds_nothing_when_they_are_equally_good(noises, least, most):
    rng, holds = np.random.default_rng(1), 0
    for _ in range(100):
        truth = rng.integers(0, 10, 600)
        text = pair.describe_clusterings(ONE, TWO, truth, *(clusters(truth, noise, rng) for noise in noises))
        assert [line.strip() for line in text.splitlines() if len(line.split()) == 1] == [
            "nmi",
            "anmi",
            "ari",
            "purity",
        ]
        holds += rows(text)[0][3] == "no difference beyond chance"
    assert least <= holds <= most


def test_images_without_a_label_in_either_clustering_are_left_out():
    truth = np.array([0, 0, 1, 1, 2, 2, 2])
    one, two = np.array([0, 0, 1, 1, 2, 2, -1]), np.array([1, 1, 0, 0, 2, -1, 2])
    text = pair.describe_clusterings(ONE, TWO, truth, one, two)
    assert "on 5 images" in text and all(d == 0 for d, *_ in rows(text))


def test_the_row_is_named_for_the_metric_that_the_predictions_belong_to():
    assert pair._metric_of(ONE, 50.0) == "map_res4" and pair._metric_of(ONE, 49.0) is None
