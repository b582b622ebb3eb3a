"""Exponents of known costs, and the page and figure of what was kept."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benchmarks import scaling
from results.figures import agrees


def test_a_known_power_is_found_and_its_error_is_that_of_the_line():
    exponent, error = scaling.fit([1, 2, 4, 8], [3.0 * n**1.5 for n in (1, 2, 4, 8)])
    assert exponent == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-7)
    x, y = np.log([1, 2, 4, 8, 16]), np.array([0.1, 0.9, 1.2, 2.4, 2.6])
    theirs, covariance = np.polyfit(x, y, 1, cov="unscaled")
    left = y - np.polyval(theirs, x)
    found = scaling.fit([1, 2, 4, 8, 16], np.exp(y))
    assert found == pytest.approx((theirs[0], np.sqrt(covariance[0, 0] * (left @ left) / 3)))


def test_a_sweep_times_the_work_and_not_its_making():
    def make(size: int):
        time.sleep(0.01)

        def work() -> None:
            start = time.process_time()
            while time.process_time() - start < 0.004 * size:
                pass

        return work

    sweep = scaling.Sweep("burning", "size", (1, 2, 4, 8), "nothing", make)
    found = scaling.run(sweep, 2)
    assert found["exponent"] == pytest.approx(1, abs=0.1) and found["seconds"][3] == pytest.approx(0.032, rel=0.2)


@pytest.mark.parametrize("sweep", scaling.SWEEPS, ids=lambda s: f"{s.work}-{s.axis}")
def test_every_sweep_runs_at_a_small_size(sweep):
    assert sweep._replace(make=sweep.make).make(sweep.sizes[0])() is not None


def test_large_sizes_say_what_they_did():
    kmeans, labels = scaling.large_kmeans(20_000, 50), scaling.large_labelling(20_000, 20)
    assert "20,000 x 128, 50 clusters" in kmeans["size"] and kmeans["gflop"] == pytest.approx(0.256)
    assert "stopped by the rule" in labels["size"] and labels["mib"] < 100, "the matrix is not held"


def test_page_and_figure_are_made_from_what_was_kept():
    kept = scaling.read()
    wanted = [(s.work, s.axis, list(s.sizes)) for s in scaling.SWEEPS]
    assert [(s["work"], s["axis"], s["sizes"]) for s in kept["sweeps"]] == wanted, "run: python -m benchmarks.scaling"
    assert [r["work"] for r in kept["large"]] == list(scaling.LARGE), "run: python -m benchmarks.scaling --large"
    for s in kept["sweeps"]:
        assert (s["exponent"], s["error"]) == pytest.approx(scaling.fit(s["sizes"], s["seconds"]))
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.page(kept), "run: python -m benchmarks.scaling --page"
    assert agrees(scaling.PLOT.read_text(encoding="utf-8"), scaling.plot(kept)), (
        "run: python -m benchmarks.scaling --page"
    )
