"""The page about detection: its commands plan, its protocols exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from evaluations import __main__ as cli
from evaluations import protocol
from evaluations.measure import Settings
from zoo import settings

PAGE = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m evaluations (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_plans(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert cli.main([*words, "--plan"]) == 0
    told = capsys.readouterr().out
    changes = Settings.of(settings.parse(words[3:])).overrides
    protocol.head_of(protocol.complete(protocol.load(words[1], changes)))  # a misspelled setting raises
    assert protocol.load(words[1]).title in told and f"python -m zoo fetch {words[2]}" in told


def test_the_table_lists_every_protocol_of_detection():
    kinds = {n for n in protocol.names() if protocol.load(n).kind in ("rcnn", "detr", "segmentation")}
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`([a-z0-9_]+)`", table)) & set(protocol.names()) == kinds
    assert len(COMMANDS) >= 6
