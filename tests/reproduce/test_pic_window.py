"""PIC's table: the stopwatch sees whole steps and the part of them that grows with the classes; verdicts follow the spread."""

import math

import pytest

from benchmarks import pic_window
from reproduce import launch
from reproduce.methods.pic import PIC


def watched(monkeypatch, tmp_path, **settings):
    watch = pic_window.Stopwatch()
    with monkeypatch.context() as here:
        for name in ("classify", "after_backward"):
            here.setattr(PIC, name, getattr(PIC, name))  # put back afterwards
        watch.install()
        launch.pretrain(
            "pic_digits", {"schedule.images": 512, "batch": 64, "out": str(tmp_path), **settings}, quiet=True
        )
    return watch


def test_the_class_part_is_a_part_of_the_step_and_sampled_classes_are_fewer(monkeypatch, tmp_path):
    whole = watched(monkeypatch, tmp_path)
    some = watched(monkeypatch, tmp_path, **{"params.negatives": 128})
    for watch in (whole, some):
        assert len(watch.class_s) == 8 and len(watch.step_s) == 7 and len(watch.visited) == 512
        assert all(0 < part < step for part, step in zip(watch.class_s[1:], watch.step_s, strict=True))
    assert set(whole.classes) == {1258} and some.classes == [64, *[128] * 7]
    assert some.held < whole.held == pytest.approx(1258 * (2 * 64 * 4 + 4) / 2**20)
    cost = some.cost(64, 1.0)
    assert set(cost) == set(pic_window.COSTS) and all(math.isfinite(value) for value in cost.values())


def rows(*scores):
    return [dict.fromkeys(pic_window.METRICS, score) | dict.fromkeys(pic_window.COSTS, 1.0) for score in scores]


def test_a_difference_counts_only_beyond_the_spread():
    off, on = pic_window.Variant(0, 0), pic_window.Variant(8192, 0)
    far = pic_window.contrast({off: rows(70, 71, 72), on: rows(74, 75, 76)}, off, on)
    assert far.startswith("linear +4.0 (allowed 2.8), 20 labels +4.0") and "within it: none" in far
    near = pic_window.contrast({off: rows(70, 71, 72), on: rows(72, 73, 74)}, off, on)
    assert near.startswith("no score beyond the spread; within it: linear +2.0")


def test_the_page_compares_each_switch_at_each_position_of_the_other():
    variants = [pic_window.Variant(w, n) for w in (0, 8192) for n in (0, 4096)]
    origin = {"hardware": {"cpu": "a CPU", "cores": 2}, "versions": {"torch": "2"}, "platform": "Linux"}
    page = pic_window.page({v: rows(70, 71, 72) for v in variants}, origin, "command", 51200, {"split": "train"})
    assert page.count("**The window, with") == page.count("**Negative sampling, window") == 2
    assert "`pic_fashion_mnist` with split=train; 51,200 images" in page
    assert page.count("71.0 ± 1.0") == 16 and "| 8,192 | 4,096 |" in page
