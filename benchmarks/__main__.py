"""python -m benchmarks: every row of RESULTS.md measured anew, or those that are named; --list says what else there is to measure.

python -m benchmarks [NAME ...] [--minutes 10]     measure, keep in benchmarks/measured/, write benchmarks/RESULTS.md
python -m benchmarks --page                        write the page from what is kept
python -m benchmarks --list                        every program: command, what it measures, report
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

from . import _page

HERE = Path(__file__).parent
STARTING = 8.0  # seconds to import and to measure the machine's limits


def parsed() -> dict[str, ast.Module]:
    """{name: syntax tree} of every program here: none is imported."""
    return {f.stem: ast.parse(f.read_text(encoding="utf-8")) for f in sorted(HERE.glob("[!_]*.py"))}


def programs() -> list[tuple[str, str, Path | None]]:
    """(command, what it measures, report) of every program here, read off its docstring."""
    found = []
    for name, tree in parsed().items():
        lines = (ast.get_docstring(tree) or "").splitlines()
        command = next(
            (line.strip() for line in lines if line.startswith("    python -m ")), f"python -m benchmarks.{name} --help"
        )
        report = _page.PAGE if name in row_programs() else HERE / f"{name}.md"
        found.append((command, lines[0] if lines else "", report if report.exists() else None))
    return found


def row_programs() -> list[str]:
    """Names of the programs that measure rows of RESULTS.md: those that end in ``_frame.main(rows)``."""
    calls = {n: {ast.unparse(c) for c in ast.walk(tree) if isinstance(c, ast.Call)} for n, tree in parsed().items()}
    return [name for name, made in calls.items() if made & {"_frame.main(rows)", "main(rows)"}]


def measure(names: list[str], minutes: float) -> list[str]:
    """Run each program in a process of its own with an equal share of the time. Returns the names of those that failed."""
    share, failed = 60 * minutes / len(names), []
    for name in names:
        print(f"-- {name}", flush=True)
        words = [sys.executable, "-m", f"benchmarks.{name}", "--save", "--seconds", f"{max(share - STARTING, 1):.0f}"]
        try:
            done = subprocess.run(
                words, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=3 * share + 60, check=False
            )
        except subprocess.TimeoutExpired:
            failed.append(name)
            continue
        if done.returncode:
            failed.append(name)
    return failed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks kmeans svm --minutes 3",
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every program that measures rows")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them, about (default %(default)s)")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--list", action="store_true", help="what else there is to measure")
    args = parser.parse_args(argv)
    if args.list:
        for command, what, report in programs():
            print(f"{command}\n    {what}" + (f"\n    report: benchmarks/{report.name}" if report else ""))
        return 0
    there = row_programs()
    if unknown := sorted(set(args.names) - set(there)):
        parser.error(f"{' '.join(unknown)}: no such program; there are: {' '.join(there)}")
    failed = [] if args.page else measure(args.names or there, args.minutes)
    _page.PAGE.write_text(_page.render(), encoding="utf-8")
    print(f"written: {_page.PAGE.relative_to(HERE.parent)}")
    if failed:
        print(f"error: {' '.join(failed)}: failed, differed from the reference, or ran out of time", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
