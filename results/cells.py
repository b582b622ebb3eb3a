"""How numbers become text: rounded to what their spread supports, and never without the n behind the spread."""

from __future__ import annotations

from dataclasses import dataclass

from .published import Fact
from .store import Summary, Verdict

MARKS = {"better": "▲", "worse": "▼", "same": "○", "unknown": ""}
DAGGER = "†"


@dataclass(frozen=True)
class Cell:
    """Text of one table cell and what it rests on: a published fact, a summary of records, or nothing."""

    text: str
    fact: Fact | None = None
    summary: Summary | None = None
    verdict: Verdict | None = None


def decimals(spread: float) -> int:
    """Digits after the point that a spread supports: one, or two when the first is a 1."""
    if spread <= 0:
        return 1
    first = f"{spread:.0e}"  # rounded to one digit: 0.0961 -> 1e-01
    return min(2, max(0, -int(first[2:]) + (first[0] == "1")))


def measured(summary: Summary) -> str:
    """``81.3 ± 0.4 (5)``: five pre-training seeds. ``81.3 ± 0.4 (1×5)``: one set of weights, five evaluation seeds."""
    count = f"({summary.seeds})" if summary.seeds > 1 or summary.inner == 1 else f"(1×{summary.inner})"
    if summary.sd is None:
        return f"{summary.value:.1f} {count}"
    digits = decimals(summary.sd)
    return f"{summary.value:.{digits}f} ± {summary.sd:.{digits}f} {count}"


def published(value: float) -> str:
    """The digits that were printed, at least one of them after the point."""
    text = f"{value:.4f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def plain(value: object) -> str:
    """A recipe's value for a descriptive column."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
