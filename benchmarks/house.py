"""Which files the five rooms had before issue 14 moved them, which they have now, and how long each is.

``python -m benchmarks.house [REVISION]`` compares a revision (by default the last one before the move) with this checkout and
writes benchmarks/house.md. Lines are lines of the file, comments and blank ones included.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "benchmarks" / "house.md"
ROOMS = ("zoo", "engine", "reproduce", "evaluations", "results")
BEFORE = "e020f6d"
LONG = 400  # lines


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def files(revision: str) -> dict[str, int]:
    """Path -> lines of every Python file of the rooms at a revision, ``HEAD`` for what is committed here."""
    found = {}
    for path in git("ls-tree", "-r", "--name-only", revision, *ROOMS).splitlines():
        if path.endswith(".py"):
            found[path] = git("show", f"{revision}:{path}").count("\n")
    return found


def by_folder(found: dict[str, int]) -> dict[str, dict[str, int]]:
    folders: dict[str, dict[str, int]] = {}
    for path, lines in sorted(found.items()):
        folders.setdefault(str(PurePosixPath(path).parent), {})[PurePosixPath(path).name] = lines
    return folders


def listed(names: dict[str, int]) -> str:
    return ", ".join(f"{name.removesuffix('.py')} {lines}" for name, lines in names.items()) or "-"


def report(revision: str) -> str:
    before, after = files(revision), files("HEAD")
    old, new = by_folder(before), by_folder(after)
    lines = ["# The files of the house", "", (__doc__ or "").split("\n\n", 1)[1].strip(), ""]
    lines += [f"| folder | files at {revision} | lines | files now | lines |", "|:--|--:|--:|--:|--:|"]
    for folder in sorted({*old, *new}):
        each = [(len(house.get(folder, {})), sum(house.get(folder, {}).values())) for house in (old, new)]
        lines.append(f"| {folder}/ | " + " | ".join(f"{files} | {total:,}" for files, total in each) + " |")
    total = [f"{len(found)} | {sum(found.values()):,}" for found in (before, after)]
    lines += [f"| all | {total[0]} | {total[1]} |", ""]
    long = [[f"`{path}` {n}" for path, n in sorted(found.items()) if n > LONG] for found in (before, after)]
    lines += [
        f"Longer than {LONG} lines: before {', '.join(long[0]) or 'none'}; now {', '.join(long[1]) or 'none'}.",
        "",
    ]
    for title, house in ((f"Before ({revision})", old), ("Now", new)):
        lines += [f"## {title}", ""]
        lines += [f"- `{folder}/`: {listed(names)}" for folder, names in house.items()] + [""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    REPORT.write_text(report(sys.argv[1] if len(sys.argv) > 1 else BEFORE), encoding="utf-8")
    print(f"wrote {REPORT}")
