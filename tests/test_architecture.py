"""docs/architecture.md is the code's: every module is on its map with the first line of its docstring, names exist, arrows are the imports.

``python tests/test_architecture.py`` writes the map again after a module was added, moved or described anew.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
ROOMS = ("zoo", "engine", "reproduce", "evaluations", "results")
LEAVES = ("results.record", "zoo.errors")
MARK = "## Every module\n"


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"), key=lambda path: (len(path.parts), path))


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].strip()


def atlas() -> str:
    """The generated half of the page: a table of modules for each room."""
    lines = [MARK, "", "Written by `python tests/test_architecture.py` from the first line of each docstring.", ""]
    for room in ROOMS:
        lines += [f"### {room}/", "", "| Module | What it is |", "|---|---|"]
        lines += [
            f"| `{path.relative_to(ROOT)}` | {first_line(path).replace('|', ';')} |" for path in modules(room)
        ] + [""]
    return "\n".join(lines)


def imported(room: str) -> set[str]:
    """The other rooms that a room's modules import, a leaf by its own name where nothing else of its room is imported."""
    found = set()
    for path in modules(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if name.split(".")[0] in ROOMS and name.split(".")[0] != room:
                    leaf = next((leaf for leaf in LEAVES if name.startswith(leaf)), None)
                    found.add(leaf or name.split(".")[0])
    return {name for name in found if name not in LEAVES or name.split(".")[0] not in found}


def test_every_module_says_what_it_is_and_stands_on_the_map():
    assert not [str(path) for room in ROOMS for path in modules(room) if not first_line(path)]
    written = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert written[1] + written[2] == atlas(), "run: python tests/test_architecture.py"


def test_the_arrows_are_the_imports():
    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    drawn = {room: set(re.findall(r"`([\w.]+)`", arrows)) for room, arrows in rows}
    assert drawn == {room: imported(room) for room in ROOMS}


def test_every_path_that_the_page_names_exists():
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    named = {name for name in re.findall(r"`([\w./-]+/[\w./*-]*)`", text) if "*" not in name}
    assert len(named) > 30
    assert not sorted(name for name in named if not (ROOT / name).exists())


if __name__ == "__main__":
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + atlas(), encoding="utf-8")
    sys.exit(0)
