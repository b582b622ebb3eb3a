"""Plant every listed fault, one at a time, in a copy of the tree, and see whether the tests that belong to it fail.

    python -m tests.mutations [PATTERN ...] [--jobs N] [--limit SECONDS] [--again] [--report]

PATTERN picks faults whose file or consequence contains it. Outcomes are kept in build/mutations/, so that a run that was stopped goes
on, and only faults whose source or tests have changed since are run again. A complete run writes tests/mutations/REPORT.md; ``--report``
writes it from what is known, with the number of faults that were not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import Any

from tqdm import tqdm

from tests.mutations.faults import ROOT, Fault, complaints, read
from tests.mutations.runs import BROKEN, KILLED, SURVIVED, TIMEOUT, run_tests

STATE = ROOT / "build" / "mutations" / "outcomes.jsonl"
REPORT = Path(__file__).parent / "REPORT.md"
PASSED: dict[str, bool] = {}  # tests that were run without a fault


def copy_tree(target: Path) -> Path:
    """The files of the working tree that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def try_fault(fault: Fault, root: Path, limit: float) -> dict[str, Any]:
    """Plant a fault, run its tests, take it out again. A test that fails must pass without the fault."""
    path, began = root / fault.file, time.perf_counter()
    original = path.read_bytes()
    fault.apply(root)
    try:
        outcome, test = run_tests(root, fault.tests, limit, fault.select)
    finally:
        path.write_bytes(original)
    if outcome == KILLED and not passes(test, root, limit):
        outcome, test = BROKEN, f"{test} fails without the fault too"
    seen = [test.split("::")[0]] if outcome == KILLED and (ROOT / test.split("::")[0]).is_file() else list(fault.tests)
    return {
        "key": key(fault),
        "outcome": outcome,
        "test": test,
        "seconds": round(time.perf_counter() - began, 1),
        "digests": digests([fault.file, *seen], root),
    }


def passes(test: str, root: Path, limit: float) -> bool:
    """Whether a test passes in the tree as it is; each is run once."""
    if test not in PASSED:
        PASSED[test] = run_tests(root, (test,), limit)[0] == SURVIVED
    return PASSED[test]


def key(fault: Fault) -> str:
    return hashlib.sha256(json.dumps([fault.file, fault.old, fault.new]).encode()).hexdigest()[:16]


def digests(files: list[str], root: Path = ROOT) -> dict[str, str]:
    """Of files, and of the helpers beside tests: while they stay, so does an outcome."""
    names = {name.split("::")[0] for name in files}
    helpers = {
        str(p.relative_to(root))
        for name in names
        if name.startswith("tests/") and (root / name).parent.is_dir()
        for p in (root / name).parent.glob("*.py")
        if not p.name.startswith("test_")
    }
    paths = {name: root / name for name in sorted(names | helpers) if (root / name).is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in paths.items()}


def known_outcomes() -> dict[str, dict[str, Any]]:
    """Those that still hold, by key."""
    lines = STATE.read_text(encoding="utf-8").splitlines() if STATE.exists() else []
    latest = {line["key"]: line for line in map(json.loads, lines)}
    return {k: line for k, line in latest.items() if line["digests"] == digests(list(line["digests"]))}


def run(faults: list[Fault], jobs: int, limit: float) -> None:
    """Try faults on ``jobs`` copies of the tree, noting each outcome as it comes."""
    STATE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(jobs) as pool:
        copies: Queue[Path] = Queue()
        for number in range(jobs):
            copies.put(copy_tree(Path(home) / str(number)))

        def one(fault: Fault) -> tuple[Fault, dict[str, Any]]:
            root = copies.get()
            try:
                return fault, try_fault(fault, root, limit)
            finally:
                copies.put(root)

        waiting = [pool.submit(one, fault) for fault in faults]
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), unit="fault", mininterval=5):
                fault, outcome = done.result()
                with STATE.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(outcome) + "\n")
                if outcome["outcome"] != KILLED:
                    tqdm.write(
                        f"{outcome['outcome']}: {fault.file}: {fault.breaks} {outcome['test'] * (outcome['outcome'] == BROKEN)}"
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def report(faults: list[Fault], outcomes: dict[str, dict[str, Any]]) -> str:
    """The page: counts per package, survivors with their reason, then every fault with the test that noticed it."""
    of = {fault: outcomes[key(fault)] for fault in faults if key(fault) in outcomes}
    lines = [
        "# Planted faults",
        "",
        "Written by `python -m tests.mutations`, which plants each fault of `tests/mutations/faults/` by itself and runs the tests "
        "named beside it. A timeout counts as noticed.",
        "",
        "| package | planted | not run | killed | timeout | survived | noticed of those run |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for package in [*sorted({fault.package for fault in faults}), "all"]:
        count = Counter(outcome["outcome"] for fault, outcome in of.items() if package in ("all", fault.package))
        planted = sum(package in ("all", fault.package) for fault in faults)
        tried, noticed = sum(count.values()), count[KILLED] + count[TIMEOUT]
        share = f"{100 * noticed / tried:.0f} %" if tried else "-"
        lines.append(
            f"| {package} | {planted} | {planted - tried} | {count[KILLED]} | {count[TIMEOUT]} | {count[SURVIVED]} | {share} |"
        )
    alive = [fault for fault, outcome in of.items() if outcome["outcome"] == SURVIVED]
    lines += (
        ["", "## Survivors", ""]
        + [f"- `{f.file}`: {f.breaks}. {f.lives or 'No test notices it yet.'}" for f in alive]
        + ["- none"] * (not alive)
    )
    for file in dict.fromkeys(fault.file for fault in of):
        lines += ["", f"## {file}", ""]
        for fault, outcome in of.items():
            if fault.file == file:
                lines.append(
                    f"- {fault.breaks}: {outcome['outcome']}"
                    + (f" by `{outcome['test']}`" if outcome["outcome"] == KILLED else "")
                )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.split("\n\n")[0])
    parser.add_argument("pattern", nargs="*", help="part of a file's name or of a consequence")
    parser.add_argument("--jobs", type=int, default=2, help="faults at once, each in a copy of its own (2)")
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of a fault (300)")
    parser.add_argument("--again", action="store_true", help="try all of them, whatever is known")
    parser.add_argument("--report", action="store_true", help="only write the page, from what is known")
    args = parser.parse_args(argv)
    faults = read()
    chosen = [f for f in faults if not args.pattern or any(p in f.file or p in f.breaks for p in args.pattern)]
    if wrong := complaints(chosen):
        sys.exit("error: " + "\n".join(wrong))
    known = {} if args.again else known_outcomes()
    todo = [fault for fault in chosen if key(fault) not in known or known[key(fault)]["outcome"] == BROKEN]
    if todo and not args.report:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run(todo, args.jobs, args.limit)
    known = known_outcomes()
    count = Counter(known[key(f)]["outcome"] for f in chosen if key(f) in known)
    print(", ".join(f"{n} {outcome}" for outcome, n in sorted(count.items())) + f", of {len(chosen)} faults")
    missing = [fault for fault in faults if key(fault) not in known]
    if missing and not args.report:
        print(f"{len(missing)} of all {len(faults)} faults are not tried yet: no page written")
        return 1
    REPORT.write_text(report(faults, known), encoding="utf-8")
    print(f"wrote {REPORT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
