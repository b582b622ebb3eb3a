"""How numbers become text: rounded to what their spread supports, and never without the n behind the spread."""

from __future__ import annotations

from dataclasses import dataclass

from .published import Fact
from .store import Summary, Verdict

MARKS = {"better": "▲", "worse": "▼", "not shown": "○", "unknown": ""}
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
    """``81.3 ± 0.4 / 1.7 (5)``: mean, standard deviation over five pre-training seeds, half the 95 % interval for other test images.

    ``(1×5)``: one set of weights, five evaluation seeds. ``81.3 ± – / 1.7 (1)``: one measurement, whose spread is not known. Digits are
    those that the larger of the two supports, one after the point where the smaller is below two or the spread is not known.
    """
    count = f"({summary.seeds})" if summary.seeds > 1 or summary.inner == 1 else f"(1×{summary.inner})"
    spreads = [s for s in (summary.sd, summary.images) if s is not None]
    least = 1 if summary.sd is None else min(1, decimals(min(spreads)))
    digits = max(decimals(max(spreads)), least) if spreads else 1
    shown = [f"{summary.sd:.{digits}f}" if summary.sd is not None else "–"]
    shown += [f"{summary.images:.{digits}f}"] if summary.images is not None else []
    return f"{summary.value:.{digits}f}" + (f" ± {' / '.join(shown)}" if spreads else "") + f" {count}"


def published(value: float, unit: str = "percent") -> str:
    """Percent: the digits that were printed, at least one of them after the point. Seconds: ``52 min 10 s``. Counts as they are."""
    if unit == "seconds":
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    text = f"{value:.4f}".rstrip("0")
    if unit == "count":
        return text.rstrip(".")
    return text + "0" if text.endswith(".") else text


def plain(value: object) -> str:
    """A recipe's value for a descriptive column."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
