"""The frame of the rows of RESULTS.md: two sides in turn, CPU time, peak memory, equality, and the machine's own limits in the same run.

A row is a file of this folder with a function ``rows(options)`` that yields ``Row`` and ends in ``sys.exit(_frame.main(rows))``. It is
runnable alone; ``python -m benchmarks`` runs every one in a process of its own and writes the page.

All times are CPU seconds of the process and of the children that it waited for, one thread: on a shared machine they move by some
per cent where wall time doubles. Sides run in turn (A, B, A, B, ...), and a ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MEASURED = HERE / "measured"
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "sve", "asimd")  # those that decide speed


@dataclass(frozen=True)
class Options:
    """What a row is told: at most so many rounds and (soft) wall seconds; ``small`` sizes are for tests, seconds in all."""

    rounds: int = 7
    seconds: float = 40.0
    small: bool = False

    def share(self, part: float) -> Options:
        """The same with a part (0 to 1) of the seconds, for a program of several rows."""
        return Options(self.rounds, self.seconds * part, self.small)


@dataclass
class Timed:
    """One side: CPU seconds of each round, MiB that its first run held at most beyond what was there, and what that run returned."""

    seconds: list[float]
    peak_mib: float | None
    result: Any


@dataclass(frozen=True)
class Row:
    """A line of RESULTS.md. Times are milliseconds of ``unit``; ratios are reference : here, (median, least, most) over rounds."""

    work: str
    size: str
    reference: str
    here: str
    unit: str
    reference_ms: float
    here_ms: float
    ratio: tuple[float, float, float]
    rounds: int
    equal: bool
    equality: str
    goal: float | None
    limit: str | None
    limit_ms: float | None
    reference_mib: float | None
    here_mib: float | None
    note: str | None = None


def cpu_seconds() -> float:
    """User and system seconds of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def interleave(sides: dict[str, Callable[[], Any]], options: Options) -> dict[str, Timed]:
    """Each side once per round, until the rounds or the seconds are used up.

    The first round warms up and finds results and peak memory; its times count only where there is time for no other.
    """
    began = time.monotonic()
    found = {}
    for name, work in sides.items():
        result, seconds, peak = _first(work)
        found[name] = Timed([seconds], peak, result)
    lasted = time.monotonic() - began
    for number in range(options.rounds):
        if time.monotonic() - began + lasted > options.seconds:
            break
        for name, work in sides.items():
            start = cpu_seconds()
            work()
            spent = cpu_seconds() - start
            found[name].seconds = [spent] if number == 0 else [*found[name].seconds, spent]
    return found


def row(
    found: dict[str, Timed],
    *,
    work: str,
    size: str,
    reference: str,
    here: str,
    equal: tuple[bool, str],
    unit: str = "call",
    per: dict[str, float] | float = 1,
    goal: float | None = None,
    limit: str | None = None,
    note: str | None = None,
) -> Row:
    """A row from ``interleave`` of the sides "reference" and "here", and "limit" (the least that the machine must do) if there is one.

    per    units of work in one call, one number or one for each side: iterations, images.
    equal  whether the results agree as they must, and in words how nearly.
    limit  what the side "limit" does.
    """
    units = per if isinstance(per, dict) else dict.fromkeys(found, per)
    each = {name: [s / units.get(name, 1) for s in side.seconds] for name, side in found.items()}
    ratios = [a / b for a, b in zip(each["reference"], each["here"], strict=True)]
    ms = {name: 1000 * statistics.median(values) for name, values in each.items()}
    return Row(
        work, size, reference, here, unit, ms["reference"], ms["here"],
        (statistics.median(ratios), min(ratios), max(ratios)), len(ratios), bool(equal[0]), equal[1], goal,
        limit, ms.get("limit"), found["reference"].peak_mib, found["here"].peak_mib, note,
    )  # fmt: skip


def _first(work: Callable[[], Any]) -> tuple[Any, float, float | None]:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0) if hasattr(ctypes.CDLL(None), "malloc_trim") else None
    before = memory(reset=True)
    start = cpu_seconds()
    result = work()
    spent = cpu_seconds() - start
    after = memory()
    return result, spent, None if before is None or after is None else max(after["VmHWM"] - before["VmRSS"], 0.0)


def memory(reset: bool = False) -> dict[str, float] | None:
    """MiB resident now (VmRSS) and at most since the last reset (VmHWM); None where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines)
    return {name: float(found[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS") if name in found} or None


def machine() -> dict[str, Any]:
    """CPU, its flags, versions, and what one thread reaches: GFLOP/s of a matrix product, GB/s of a copy (read and written)."""
    import torch

    from engine import provenance
    from zoo.precision import has_bfloat16

    made = provenance.collect()
    limits = {"float32 product, GFLOP/s": _product(torch.float32), "float64 product, GFLOP/s": _product(torch.float64)}
    if has_bfloat16("cpu"):
        limits["bfloat16 product, GFLOP/s"] = _product(torch.bfloat16)
    source, target = torch.ones(2**24), torch.empty(2**24)
    limits["copy, GB/s"] = 2 * source.nbytes / _best(lambda: target.copy_(source)) / 1e9
    hardware = {name: made["hardware"][name] for name in ("cpu", "cores", "kernels")}
    return {
        **hardware,
        "flags": _flags(),
        "versions": made["versions"],
        "commit": made["git"]["commit"],
        "load": round(os.getloadavg()[0], 1),
        "limits": {name: round(value, 1) for name, value in limits.items()},
    }


def _product(dtype: Any, n: int = 1024) -> float:
    import torch

    a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
    return 2 * n**3 / _best(lambda: a @ b) / 1e9


def _best(work: Callable[[], Any], times: int = 7) -> float:
    found = []
    for _ in range(times):
        start = cpu_seconds()
        work()
        found.append(cpu_seconds() - start)
    return min(found[1:])


def _flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = next((x for x in text.splitlines() if x.lower().startswith(("flags", "features"))), ":")
    return sorted(set(FLAGS) & set(line.partition(":")[2].split()))


def main(rows: Callable[[Options], Iterator[Row]], argv: list[str] | None = None) -> int:
    """Run one program's rows, print them, and with --save keep them for the page. Exit status 1 where results differ."""
    module = sys.modules[rows.__module__]
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="at most so many (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=Options.seconds, help="wall seconds, about (default %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="sizes of a test: nothing is said about speed")
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/measured/ for RESULTS.md")
    args = parser.parse_args(argv)
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        limits = machine()
        found = []
        for each in rows(Options(args.rounds, args.seconds, args.small)):
            found.append(each)
            print(sentence(each), flush=True)
    if args.save and not args.small:
        MEASURED.mkdir(exist_ok=True)
        name = Path(str(module.__file__)).stem
        report = {"program": name, "machine": limits, "rows": [asdict(r) for r in found]}
        (MEASURED / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(r.equal for r in found) else 1


def sentence(r: Row) -> str:
    middle, low, high = r.ratio
    bound = f"; limit {r.limit_ms:,.4g} ms ({r.limit})" if r.limit_ms is not None else ""
    word = "equal" if r.equal else "NOT EQUAL"
    return (
        f"{r.work}, {r.size}: {r.reference} {r.reference_ms:,.4g} ms, here {r.here_ms:,.4g} ms a {r.unit}, "
        f"{middle:.2f}x ({low:.2f}-{high:.2f}, {r.rounds} rounds){bound}; {word}: {r.equality}"
    )
