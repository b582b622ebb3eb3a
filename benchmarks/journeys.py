"""How much code a reader meets on three common commands: functions, files, and changes of file.

``python -m benchmarks.journeys`` runs each command in a process of its own and notes every function of the project in the order of its first call,
module bodies excluded. A change of file is counted where a function and the one first called before it stand in different files.
The report goes to benchmarks/journeys.md. Numbers are counts, the same on every machine for the same commit.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "benchmarks" / "journeys.md"
JOURNEYS = {
    "pre-train": ["reproduce", "swav_digits", "out={out}"],
    "linear probe": ["evaluations", "run", "linear_digits", "swav_digits", "out={out}"],
    "tables": ["results", "tables", "--check"],
}


def traced(module: str, words: list[str]) -> list[tuple[str, str]]:
    """(file, qualified name) of every project function that the command calls, in the order of first calls."""
    seen: dict[object, tuple[str, str]] = {}
    inside = str(ROOT) + os.sep

    def note(frame: object, event: str, _: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and code not in seen and code.co_filename.startswith(inside):
            file = code.co_filename[len(inside) :]
            if not code.co_name.startswith("<") and file.split(os.sep)[0] not in (".venv", "tests", "benchmarks"):
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


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--trace":
        target, module, *words = sys.argv[2:]
        Path(target).write_text(json.dumps(traced(module, words)), encoding="utf-8")
        return
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for name, (module, *words) in JOURNEYS.items():
            target = Path(out) / "visits.json"
            words = [word.format(out=out) for word in words]
            command = [sys.executable, "-m", "benchmarks.journeys", "--trace", str(target), module, *words]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            found = counts([(file, function) for file, function in json.loads(target.read_text(encoding="utf-8"))])
            rows.append(
                f"| {name} | `python -m {module} {words[0]} …` | " + " | ".join(map(str, found.values())) + " |"
            )
            print(name, found)
    head = "| journey | command | functions | files | changes of file |\n|:--|:--|--:|--:|--:|\n"
    text = "# Journeys through the code\n\n" + (__doc__ or "").split("\n\n", 1)[1].strip() + "\n\n" + head
    REPORT.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
