"""How much code a reader meets on three common commands: functions, files, and changes of file.

``python -m benchmarks.journeys [REVISION ...]`` runs each command in a process of its own, in this checkout and in each of the revisions
(``git archive``), and notes every function of the project in the order of its first call. Bodies of modules and of classes are
no functions: they run at the import, whether a command needs them or not. A change of file is counted where a function and
the one first called before it stand in different files.
The report goes to benchmarks/journeys.md. Numbers are counts, the same on every machine for the same commit; a process that is slower
may print a line of progress more, which is a function more.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "benchmarks" / "journeys.md"
JOURNEYS = {
    "pre-train": ["reproduce", "swav_digits", "out={out}"],
    "linear probe": ["evaluations", "run", "linear_digits", "swav_digits", "out={out}"],
    "tables": ["results", "tables", "--check"],
}
BEFORE = {"e020f6d": "before the files moved", "f4820e5": "before the journeys were shortened"}
MOST = 8  # changes of file that are listed by name


def traced(module: str, words: list[str]) -> list[tuple[str, str]]:
    """(file, qualified name) of every project function that the command calls, in the order of first calls."""
    seen: dict[object, tuple[str, str]] = {}
    inside = os.getcwd() + os.sep

    def note(frame: object, event: str, _: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and code not in seen and code.co_filename.startswith(inside):
            file = code.co_filename[len(inside) :]
            function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
            if function and file.split(os.sep)[0] not in (".venv", "tests", "benchmarks"):
                seen[code] = (file, getattr(code, "co_qualname", code.co_name))

    sys.argv = [module, *words]
    sys.setprofile(note)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    finally:
        sys.setprofile(None)
    return list(seen.values())


def counts(visits: list[tuple[str, str]]) -> dict[str, int]:
    files = [file for file, _ in visits]
    return {
        "functions": len(visits),
        "files": len(set(files)),
        "changes of file": sum(a != b for a, b in itertools.pairwise(files)),
    }


def frequent(visits: list[tuple[str, str]]) -> list[tuple[str, int]]:
    """Pairs of files between which a reader changes most often, in either direction."""
    files = [file for file, _ in visits]
    pairs = Counter(" - ".join(sorted(pair)) for pair in itertools.pairwise(files) if pair[0] != pair[1])
    return sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:MOST]


def walk(checkout: Path) -> dict[str, list[tuple[str, str]]]:
    """The visits of each journey through the code of a checkout."""
    found = {}
    with tempfile.TemporaryDirectory() as out:
        for name, (module, *words) in JOURNEYS.items():
            target = Path(out) / "visits.json"
            words = [word.format(out=out) for word in words]
            subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--trace", str(target), module, *words],
                cwd=checkout,
                env={**os.environ, "PYTHONPATH": str(checkout)},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            found[name] = [(file, function) for file, function in json.loads(target.read_text(encoding="utf-8"))]
            print(checkout.name, name, counts(found[name]), flush=True)
    return found


def at(revision: str) -> dict[str, list[tuple[str, str]]]:
    """The journeys of an earlier revision of this repository."""
    with tempfile.TemporaryDirectory() as place:
        checkout = Path(place).resolve() / revision
        checkout.mkdir()
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "x"], cwd=checkout, input=archive, check=True)
        return walk(checkout)


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--trace":
        target, module, *words = sys.argv[2:]
        sys.path[0] = os.getcwd()  # not this script's folder
        Path(target).write_text(json.dumps(traced(module, words)), encoding="utf-8")
        return
    revisions = sys.argv[1:] or list(BEFORE)
    walked = {f"{r}, {BEFORE[r]}" if r in BEFORE else r: at(r) for r in revisions}
    walked["now"] = walk(ROOT)
    lines = ["| journey | at | functions | files | changes of file |", "|:--|:--|--:|--:|--:|"]
    for name in JOURNEYS:
        for when, found in walked.items():
            lines.append(f"| {name} | {when} | " + " | ".join(map(str, counts(found[name]).values())) + " |")
    lines += [
        "",
        "Commands: " + ", ".join(f"`python -m {' '.join(words)}`".format(out="…") for words in JOURNEYS.values()) + ".",
    ]
    for name, visits in walked["now"].items():
        lines += [
            "",
            f"Most frequent changes of file, {name}: " + ", ".join(f"{p} {n}" for p, n in frequent(visits)) + ".",
        ]
    text = "# Journeys through the code\n\n" + (__doc__ or "").split("\n\n", 1)[1].strip() + "\n\n"
    REPORT.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
