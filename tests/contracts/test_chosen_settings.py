"""Of two settings, one right and one at chance, each evaluation kind takes the right one; a few-label draw sees its own labels only."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_tools import Toy, bars, cases, headline, measure, overrides, separable

from evaluations import protocol

CASES = {c.name: c for c in cases()}
RATED = [n for n, c in CASES.items() if n in ("linear fast sgd", "voc faithful") and "grid.lr" in overrides(c, {})]


def unequal():
    """Separable images of three classes, 20, 10 and 10 of them: all neighbours together always name the first class."""
    train, test = np.repeat(np.arange(3), (20, 10, 10)), np.repeat(np.arange(3), 8)
    order = np.random.default_rng(5).permutation(len(train))
    return Toy.of((bars(train, seed=1)[order], train[order]), (bars(test, seed=2), test), "abc")


@pytest.mark.parametrize("ks", [[1, 39], [39, 1]])
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.kind == "knn"])
def test_neighbours_that_are_right_are_taken(name, ks, tmp_path):
    more = {"grid.k": ks, "grid.temperature": [100.0], "select.on": "leave_one_out"}
    result, features = measure(CASES[name], unequal(), tmp_path, **more)
    chosen = features.selection
    assert chosen.chosen["k"] == 1 and chosen.score == pytest.approx(100)
    assert {c["k"]: c["score"] for c in chosen.grid} == {1: pytest.approx(100), 39: pytest.approx(50)}
    assert headline(result) == pytest.approx(100)


@pytest.mark.parametrize("good_first", [True, False])
@pytest.mark.parametrize("name", RATED)
def test_a_rate_that_learns_is_taken_and_one_that_does_not_is_not(name, good_first, tmp_path):
    case = CASES[name]
    wanted = protocol.complete(protocol.load(case.protocol, overrides(case, {})))
    good = max(wanted.grid["lr"])
    rates = [good, 1e-60] if good_first else [1e-60, good]
    result, features = measure(case, separable(), tmp_path, **{"grid.lr": rates})
    assert features.selection.chosen["lr"] == good
    assert features.selection.score == pytest.approx(100)
    assert headline(result) == pytest.approx(100), "the number is that of the chosen setting"


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.kind == "fewlabel"])
def test_a_draw_of_few_labels_is_the_same_beside_other_draws(name, tmp_path):
    draw = np.random.default_rng(3)
    train, test = np.repeat(np.arange(3), 20), np.repeat(np.arange(3), 40)
    blurred = lambda labels, seed: (
        bars(labels, seed=seed, noise=255) // 2 + draw.integers(0, 120, (len(labels), 8, 8), dtype=np.uint8)
    )
    toy = Toy.of((blurred(train, 1), train), (blurred(test, 2), test), "abc")
    alone, among = (measure(CASES[name], toy, tmp_path, **{"head.draws": n, "head.per_class": 2})[0] for n in (1, 12))
    assert 0 < np.mean(alone.predictions != test) < 0.67, "the images overlap"
    assert np.mean(alone.predictions != among.predictions) < 0.03
