"""python -m benchmarks: what there is to measure, each with its command and, where one is kept, its report."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent


def programs() -> list[tuple[str, str, Path | None]]:
    """(command, what it measures, report) of every program here, read off its docstring without importing it."""
    found = []
    for file in sorted(HERE.glob("[!_]*.py")):
        lines = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()
        command = next(
            (line.strip() for line in lines if line.startswith("    python -m ")),
            f"python -m benchmarks.{file.stem} --help",
        )
        report = file.with_suffix(".md")
        found.append((command, lines[0] if lines else "", report if report.exists() else None))
    return found


if __name__ == "__main__":
    for command, what, report in programs():
        print(f"{command}\n    {what}" + (f"\n    report: benchmarks/{report.name}" if report else ""))
