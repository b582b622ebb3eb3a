"""The demo's own arithmetic: which runs are planned, and one real run of the cheapest row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import demo
from zoo.errors import UserError


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match="swaw: no such model on digits; there are: .*swav"):
        demo.main(["digits", "--methods", "swaw"])


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match=r"--protocols nope\*: none matches"):
        demo.main(["digits", "--protocols", "nope*"])


def test_one_row_is_measured_tabulated_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["digits", "--methods", "pixels", "--protocols", "knn_digits", "--out", str(tmp_path), "--processes", "1"]
    assert demo.main(command) == 0
    first = capsys.readouterr().out
    assert "1 runs of 1 models" in first and "[ 1/1] pixels_digits seed 0" in first
    (record,) = tmp_path.glob("measured/pixels_digits/*.json")
    top1 = json.loads(record.read_text())["metrics"]["top1"]["value"]
    assert f"{top1:.1f}" in first  # the table that is printed has the number that was recorded
    before = record.stat().st_mtime_ns
    assert demo.main(command) == 0
    assert record.stat().st_mtime_ns == before  # the same command measures nothing twice


def test_what_cannot_run_is_told_and_the_rest_is_kept_and_tabulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "pixels", "--protocols", "knn_digits", "linear_imagenet_pic", "--processes", "1"]
    assert demo.main(["digits", *words, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "error: pixels_digits seed 0: imagenet: no data found" in err
    (record,) = tmp_path.glob("measured/pixels_digits/*.json")
    assert record.name.startswith("knn_digits") and "| pixels_digits" in out
