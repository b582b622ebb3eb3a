"""RESULTS.md from the rows that were kept: a function of benchmarks/measured/*.json and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
TITLE = """\
# Speed beside the references

Written by `make benchmarks` (`python -m benchmarks`) from `benchmarks/measured/`; do not edit. CPU time of the process, one thread, both
sides in turn in one process; the ratio is reference : here, the median of the rounds with its range. The machine was shared with
other work. "Limit" is the least that the work must do, measured in the same run. Peak memory is what one call holds at
most beyond its input. Not run on a GPU.

| work | size | reference | here | ratio (range, rounds) | at least | equal | limit | peak MiB, reference / here |
|:--|:--|--:|--:|--:|--:|:--|:--|--:|
"""


def reports() -> list[dict[str, Any]]:
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted((HERE / "measured").glob("*.json"))]


def render() -> str:
    found = reports()
    lines = [_line(r) for report in found for r in report["rows"]]
    return TITLE + "\n".join(lines) + "\n" + _notes(found) + _machines(found)


def _line(r: dict[str, Any]) -> str:
    middle, low, high = r["ratio"]
    goal = "–" if r["goal"] is None else f"{r['goal']:g}x{'' if middle >= r['goal'] else ' (missed)'}"
    limit = "–" if r["limit_ms"] is None else f"{r['limit']}: {_ms(r['limit_ms'])}"
    equal = r["equality"] if r["equal"] else f"**no**: {r['equality']}"
    memory = " / ".join("–" if r[k] is None else f"{r[k]:,.0f}" for k in ("reference_mib", "here_mib"))
    sides = [f"{r[name]} {_ms(r[f'{name}_ms'])}" for name in ("reference", "here")]
    ratio = f"{middle:.2f} ({low:.2f}–{high:.2f}, {r['rounds']})"
    cells = [r["work"], f"{r['size']}; a {r['unit']}", *sides, ratio, goal, equal, limit, memory]
    return "| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |"


def _ms(value: float) -> str:
    return f"{value / 1000:,.2f} s" if value >= 10_000 else f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _notes(found: list[dict[str, Any]]) -> str:
    notes = [f"- {r['work']}: {r['note']}" for report in found for r in report["rows"] if r.get("note")]
    return "\n## Notes\n\n" + "\n".join(notes) + "\n" if notes else ""


def _machines(found: list[dict[str, Any]]) -> str:
    """One paragraph for each machine and set of versions, with the limits of its runs as ranges."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for report in found:
        m = report["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
        key = f"{m['cpu']}, {m['cores']} cores, torch uses {m['kernels']}; flags: {' '.join(m['flags'])}. {versions}."
        groups.setdefault(key, []).append(report)
    text = "\n## Machines\n"
    for key, of in groups.items():
        limits = {
            n: [r["machine"]["limits"][n] for r in of if n in r["machine"]["limits"]]
            for n in of[0]["machine"]["limits"]
        }
        reached = "; ".join(f"{name} {min(v):,.0f}–{max(v):,.0f}" for name, v in limits.items())
        loads = [r["machine"]["load"] for r in of]
        text += f"\n{key} One thread reached, in the runs of {', '.join(r['program'] for r in of)}: {reached}. Load average {min(loads)} to {max(loads)}.\n"
    return text
