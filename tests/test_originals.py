"""docs/from-the-originals.md: every script and flag of the original repositories, and each command and setting that it names resolved."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import zoo
from engine.options import RunOptions
from evaluations import measure, protocol
from zoo import fetch
from zoo.errors import UserError
from zoo.export import FORMATS
from zoo.settings import leaves

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from-the-originals.md").read_text(encoding="utf-8")
SCRIPTS = yaml.safe_load(Path(__file__).with_name("originals.yaml").read_text(encoding="utf-8"))
SHARED = {
    "main_pretrain.py": "contrast/option.py",
    "main_linear.py": "contrast/option.py",
}  # scripts with a parser of their own file
SETTING = re.compile(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)`")


def repositories() -> dict[str, str]:
    """{repository @commit: its part of the page}."""
    parts = re.split(r"^## .*\((.+)\)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def sections() -> list[tuple[str, str, str, list[tuple[list[str], str]]]]:
    """(repository, script, command, [(flags, what is here)])."""
    found = []
    for repository, part in repositories().items():
        for script, command, body in re.findall(
            r"^### `([^`\n]+)` → `([^`\n]+)`\n(.*?)(?=^###|\Z)", part, re.MULTILINE | re.DOTALL
        ):
            rows = [line.strip("| ").split(" | ", 1) for line in body.splitlines() if line.startswith("| `")]
            found.append((repository, script, command, [(re.findall(r"`(.+?)`", flags), here) for flags, here in rows]))
    return found


SECTIONS = sections()


def test_the_page_has_every_repository_script_and_flag():
    assert repositories().keys() == SCRIPTS.keys()
    for repository, scripts in SCRIPTS.items():
        named = set(re.findall(r"`([\w./-]+\.(?:py|sh))`", repositories()[repository]))
        assert named - set(SHARED) >= scripts.keys() - set(SHARED), repository
        assert named <= scripts.keys(), "no script of that name"
        said: dict[str, set[str]] = {}
        for where, script, _, rows in SECTIONS:
            if where == repository:
                said.setdefault(SHARED.get(script, script), set()).update(f for flags, _ in rows for f in flags)
        assert said == {script: set(flags) for script, flags in scripts.items() if flags}


def check_command(command: str) -> None:
    """Raises when a command names what does not exist."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "reproduce"]:
        options, settings = RunOptions.split(zoo.settings.parse(words[4:]))
        assert zoo.resolve(words[3], settings) and options
    elif words[:4] == ["python", "-m", "evaluations", "run"]:
        assert protocol.load(words[4]) and zoo.entry(words[5])
    elif words[:4] == ["python", "-m", "zoo", "fetch"]:
        assert all(fetch.matching([pattern]) for pattern in words[4:])
    elif words[:4] == ["python", "-m", "zoo", "export"]:
        assert zoo.entry(words[4]).weights and words[6] in FORMATS
    else:
        assert words[:3] == ["python", "-m", "zoo"] and words[3] in ("data", "list", "show"), command


def commands(text: str) -> list[str]:
    return [c for c in re.findall(r"`(python -m [^`]+)`", text) if not re.search(r"[A-Z]{4,}|\[", c)]


@pytest.mark.parametrize("repository", list(SCRIPTS))
def test_every_command_names_what_exists(repository):
    found = commands(repositories()[repository])
    assert len(found) > 5
    for command in found:
        check_command(command)


def known_settings(command: str) -> set[str]:
    words = shlex.split(command)
    options = set(RunOptions.names())
    if words[2] == "reproduce":
        paths = leaves(zoo.resolve(words[3]).model_dump())
        known = {".".join(path.split(".")[:n]) for path in paths for n in range(1, path.count(".") + 2)}
        return known | options | {"schedule", "count", "size", "scale", "stem"}  # of crops and of the network
    found = protocol.load(words[4]).model_dump()
    known = {".".join(path.split(".")[:n]) for path in leaves(found) for n in range(1, path.count(".") + 2)}
    return known | options | set(measure.OWN_OPTIONS) | set(measure.FORM)


@pytest.mark.parametrize(
    ("repository", "script", "command", "rows"),
    SECTIONS,
    ids=[f"{r.split('/')[1].split()[0]}:{s}" for r, s, _, _ in SECTIONS],
)
def test_every_flag_is_a_setting_or_dropped_with_a_reason(repository, script, command, rows):
    known = known_settings(command)
    for flags, here in rows:
        settings = [s for s in SETTING.findall(here) if not s.startswith("python")]
        if here.startswith("dropped"):
            assert re.match(r"dropped: .{10,}", here), flags
        else:
            assert settings or here.startswith(("the model", "the protocol", "the evaluation")), (flags, here)
        of_others = {"params.momentum", "params.queue"} if script == "main_pretrain.py" else set()
        assert set(settings) - {"params.window.mode"} <= known | of_others, (script, flags, set(settings) - known)


def test_a_wrong_setting_and_a_wrong_command_are_noticed():
    assert "params.epsilom" not in known_settings("python -m reproduce swav_800ep")
    for wrong in ("python -m reproduce swav_801ep", "python -m evaluations run linear_imagnet swav_800ep"):
        with pytest.raises(UserError):
            check_command(wrong)
