"""No evaluation kind learns from images that it is scored on: labels drawn at random stay at chance, and test is opened last."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_tools import Toy, cases, measure, separable, task

CASES = cases()
each_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def noise(each=24):
    """Two classes of images that have nothing to do with their labels, fewer images (48) than pixels (64)."""
    draw = np.random.default_rng(11)
    labels = lambda: draw.permutation(np.repeat([0, 1], each))
    images = lambda: draw.integers(0, 256, (2 * each, 8, 8), dtype=np.uint8)
    return Toy.of((images(), labels()), (images(), labels()), "ab")


@each_case
def test_labels_drawn_at_random_are_chosen_and_scored_at_chance(case, tmp_path):
    result, features = measure(case, noise(), tmp_path)
    value = next(result.metrics[n].value for n in ("top1", "map", "nmi") if n in result.metrics)
    low, high = (0, 20) if "nmi" in result.metrics else (25, 75)
    assert low <= value <= high
    if features.selection:  # a kind that chooses for each layer notes the scores of its grid alone
        grid = features.selection.grid
        rows = grid if isinstance(grid, list) else [row for each in grid.values() for row in each]
        scores = [row["score"] for row in rows]
        assert scores and 20 <= max(scores) <= 80, "what is held out was trained on"


@each_case
def test_only_the_test_part_is_opened_after_selection_has_finished(case, tmp_path, monkeypatch):
    toy = separable()
    wanted = task(case, toy, tmp_path)
    made = type(wanted).begin
    before = []

    def watched(self, release, *rest):
        toy.opened.clear()
        return made(self, lambda: (before.extend(toy.opened), release()), *rest)

    monkeypatch.setattr(type(wanted), "begin", watched)
    wanted.measure()
    chosen_on = {"fit", "val"} if wanted.protocol.select.on == "val" else set()
    assert set(before) == {"train"} | chosen_on, (
        "train gives the class numbers and the last training, fit and val the choice"
    )
