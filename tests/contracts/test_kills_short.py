"""The short form of `make test-kills`: a few runs killed at random and while a checkpoint is written; and that it can fail."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import kills


@pytest.mark.parametrize("name, size", [("simsiam", 1), ("deepercluster in two levels", 2)])
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(name, size, tmp_path):
    case = kills.judge(kills.Case(name, size), tmp_path, random.Random(1), 3)
    assert case.kills == 3 and case.same and case.while_writing


def test_a_run_that_ends_otherwise_is_told(tmp_path, monkeypatch):
    """The undisturbed run of another recipe is no witness."""
    plain, names = kills.start, iter(["simsiam", *["simclr"] * 20])
    monkeypatch.setattr(kills, "start", lambda name, folder, size: plain(next(names), folder, size))
    case = kills.judge(kills.Case("simsiam", 1), tmp_path, random.Random(1), 1)
    assert not case.same and "| NO |" in kills.report([case], 0)
