"""A disk without room for the features of an evaluation: one error, on every process, and nothing left behind."""

import errno
import os

import pytest
from engine_processes import together

from engine.errors import UserError
from evaluations.inputs.features import FeatureStore
from zoo.errors import guard


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def opened(rank, root):
    os.posix_fallocate = full  # in this forked process only
    try:
        with FeatureStore(root).create("ab12", (1000, 7)):
            return "open"
    except UserError as error:
        return str(error)


def test_every_process_is_told_that_there_is_no_room(tmp_path):
    first, second = together(opened, tmp_path)
    assert (
        first == second
        and "needs 28,000 bytes" in first
        and "No space left on device" in first
        and str(tmp_path) in first
    )
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_the_command_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "posix_fallocate", full)

    def main():
        with FeatureStore(tmp_path).create("ab12", (1000, 7)):
            pytest.fail("written to")

    assert guard(main) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "out=" in err
