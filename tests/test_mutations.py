"""The list of planted faults fits the code that it is about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutations import faults


def test_every_planted_fault_still_has_its_place_and_its_tests():
    found = faults.read()
    assert not faults.complaints(found)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"old": "no such text"}, "occurs 0 times"),
        ({"old": "import"}, "times; update it"),
        ({"tests": ("tests/gone.py",)}, "no such test: tests/gone.py"),
        ({"file": "gone.py"}, "occurs 0"),
    ],
)
def test_a_list_that_no_longer_fits_is_a_complaint(change, word):
    fault = faults.read()[0]
    assert any(word in line for line in faults.complaints([replace(fault, **change)]))


def test_a_fault_is_planted_in_the_copy_alone(tmp_path):
    fault = faults.read()[0]
    (tmp_path / fault.file).parent.mkdir(parents=True)
    text = (faults.ROOT / fault.file).read_text(encoding="utf-8")
    (tmp_path / fault.file).write_text(text, encoding="utf-8")
    fault.apply(tmp_path)
    planted = (tmp_path / fault.file).read_text(encoding="utf-8")
    assert (
        planted == text.replace(fault.old, fault.new) != text == (faults.ROOT / fault.file).read_text(encoding="utf-8")
    )
