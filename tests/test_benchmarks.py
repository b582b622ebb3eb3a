"""The frame of the benchmarks against known costs, every row at a small size, and the page that is made from what was kept."""

from __future__ import annotations

import dataclasses
import importlib
import time

import numpy as np
import pytest

from benchmarks import __main__ as front
from benchmarks import _frame, _page

PROGRAMS = front.row_programs()


def burn(seconds: float) -> float:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    return seconds


def row_of(found, **more):
    return _frame.row(
        found, **{"work": "w", "size": "s", "reference": "r", "here": "h", "equal": (True, "yes"), "goal": 3, **more}
    )


def test_a_ratio_is_that_of_cpu_time_and_does_not_see_waiting():
    def slow() -> float:
        time.sleep(0.05)
        return burn(0.04)

    found = _frame.interleave(
        {"reference": slow, "here": lambda: burn(0.01), "limit": lambda: burn(0.005)}, _frame.Options(3)
    )
    made = row_of(found, limit="half", per={"reference": 2})
    assert made.ratio[0] == pytest.approx(2, rel=0.2) and made.rounds == 3, "20 ms a unit against 10 ms"
    assert made.reference_ms == pytest.approx(20, rel=0.2) and made.limit_ms == pytest.approx(5, rel=0.3)
    assert found["here"].result == 0.01


def test_children_that_were_waited_for_count():
    import subprocess
    import sys

    code = "import time\nwhile time.process_time() < .2: pass"
    found = _frame.interleave(
        {"reference": lambda: subprocess.run([sys.executable, "-c", code], check=True)}, _frame.Options(1)
    )
    assert 0.2 <= found["reference"].seconds[0] < 0.6


def test_peak_memory_is_what_a_side_holds_beyond_what_was_there():
    there = np.ones(2**23)  # 64 MiB that no side made

    def holds(mib: int) -> float:
        return float(np.ones(mib * 2**17).sum() + there[0])

    found = _frame.interleave({"reference": lambda: holds(96), "here": lambda: holds(16)}, _frame.Options(0))
    if found["here"].peak_mib is not None:  # systems that tell
        assert found["reference"].peak_mib == pytest.approx(96, abs=8) and found["here"].peak_mib == pytest.approx(
            16, abs=8
        )


def test_where_time_is_short_the_first_round_counts():
    found = _frame.interleave(
        {"reference": lambda: burn(0.02), "here": lambda: burn(0.02)}, _frame.Options(5, seconds=0)
    )
    assert row_of(found).rounds == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_sides_of_every_row_give_the_same(program):
    module = importlib.import_module(f"benchmarks.{program}")
    rows = list(module.rows(_frame.Options(rounds=1, seconds=0, small=True)))
    assert rows and not [r.equality for r in rows if not r.equal]


def test_the_page_is_made_from_what_was_kept_and_every_program_is_on_it():
    assert _page.PAGE.read_text(encoding="utf-8") == _page.render(), "run: python -m benchmarks --page"
    assert [r["program"] for r in _page.reports()] == PROGRAMS, "run: python -m benchmarks NAME"


def test_a_missed_goal_and_a_difference_are_said_on_the_page():
    found = _frame.interleave({"reference": lambda: burn(0.01), "here": lambda: burn(0.01)}, _frame.Options(1))
    made = row_of(found, equal=(False, "2 labels differ"))
    line = _page._line(dataclasses.asdict(made))
    assert "3x (missed)" in line and "**no**: 2 labels differ" in line


def test_results_that_differ_are_an_error(capsys):
    def rows(options):
        found = _frame.interleave({"reference": lambda: 1, "here": lambda: 2}, options)
        yield row_of(found, equal=(False, "1 and 2"))

    assert _frame.main(rows, ["--seconds", "0"]) == 1
    assert "NOT EQUAL: 1 and 2" in capsys.readouterr().out
