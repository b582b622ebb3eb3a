"""The study of quality without labels: correlations, intervals and directions with known answers, and the committed report."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from benchmarks import quality_study
from benchmarks.quality_study import BETTER, Model


def models(count=12, **measures):
    """Methods whose probe grows with their number, and measures of that number."""
    return [Model(f"m{k}", 1, 50.0 + k, {name: of(k) for name, of in measures.items()}) for k in range(count)]


def test_the_correlation_is_spearmans_with_ties():
    random = np.random.default_rng(1)
    a, b = random.integers(0, 5, 30).astype(float), random.normal(size=30)
    value, low, high = quality_study.correlation(a, a + 2 * b, draws=200)
    assert value == pytest.approx(stats.spearmanr(a, a + 2 * b).statistic) and low < value < high


def test_the_interval_covers_as_often_as_it_says():
    """Of pairs with a known rank correlation of 0, about 95 of 100 intervals hold it."""
    random = np.random.default_rng(2)
    held = [
        low <= 0 <= high
        for _ in range(200)
        for _, low, high in [quality_study.correlation(*random.normal(size=(2, 30)), draws=300)]
    ]
    assert 0.88 <= np.mean(held) <= 0.99


def test_each_measure_is_turned_in_its_own_direction():
    found = quality_study.study(
        models(
            rankme=lambda k: k,
            uniformity=lambda k: -k,
            alignment=lambda k: k,
            alpha_req=lambda k: 2 - k / 24,
            lidar=lambda k: -(k**3),
        )
    )
    assert {name: round(value, 6) for name, (_, (value, _, _)) in found.items()} == {
        "rankme": 1,
        "uniformity": 1,
        "alignment": -1,
        "alpha_req": 1,
        "lidar": -1,
    }
    lines = quality_study.verdict(found, {})
    above, below = (set(re.findall(r"[a-z_]+", part.split(": ", 1)[1])) for part in lines[0].split("; below zero"))
    assert above == {"rankme", "uniformity", "alpha_req"} and below == {"lidar", "alignment"}


def test_a_measure_of_few_methods_has_no_correlation():
    some = models(3, rankme=lambda k: k) + models(5, lidar=lambda k: k)
    assert set(quality_study.study(some)) == {"lidar"}


def test_the_committed_report_is_of_every_method_and_its_table_agrees_with_its_correlations():
    """The correlations are computed again from the table, which shows three digits."""
    text = (quality_study.Path(quality_study.__file__).with_suffix(".md")).read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    at = next(k for k, row in enumerate(rows) if row[0] == "method")
    names, table = rows[at][3:], rows[at + 1 :]
    assert len(table) == 18 and set(names) == set(BETTER)
    told = {row[0]: float(row[1].split()[0]) for row in rows[1:at] if row[0] in BETTER}
    probe = [float(row[2]) for row in table]
    for name in names:
        values = [quality_study.goodness(name, float(row[3 + names.index(name)])) for row in table]
        assert told[name] == pytest.approx(stats.spearmanr(values, probe).statistic, abs=0.03), name
