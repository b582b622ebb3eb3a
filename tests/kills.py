"""`python -m tests.kills`: SIGKILL at random moments of short runs of every method, and a report of how they ended (`make test-kills`).

Each run is a digits recipe cut down to nine steps with a checkpoint every other step, by one process, or by two. It is killed as often as
asked, at random times and while a checkpoint is being written (onto a disk that is made slow), started again each time, and in the end
compared with an undisturbed one: the bytes of weights.pth, and step and loss of the checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent / "contracts"), str(Path(__file__).parent)]

import contract_tools as tools  # noqa: E402
import torch  # noqa: E402
import torch.distributed as td  # noqa: E402

from engine import checkpoint, dist  # noqa: E402

SLOW = 0.03  # seconds that each write to the disk takes longer
TOGETHER = ("swav", "deepercluster in two levels", "pic", "mocov2", "sela")  # also by two processes


@dataclass
class Case:
    """One method or variant by so many processes, and what became of it."""

    name: str
    size: int
    kills: int = 0
    after_checkpoint: int = 0
    while_writing: int = 0
    same: bool = False
    folder: Path = Path()  # of the run that was killed last


def train(name: str, folder: Path, rank: int, size: int, meeting: Path) -> None:
    """In a fork of its own."""
    torch.set_num_threads(1)
    fsync = os.fsync
    os.fsync = lambda file: (time.sleep(SLOW), fsync(file))[1]  # type: ignore[assignment]
    if size > 1:
        td.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    tools.fit(tools.recipe(name), folder, world=dist.World(rank, size, rank))


def start(name: str, folder: Path, size: int) -> list[int]:
    meeting = Path(tempfile.mkdtemp()) / "meeting"
    children = []
    sys.stdout.flush()
    for rank in range(size):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                train(name, folder, rank, size, meeting)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    return children


def finish(children: list[int]) -> bool:
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]  # every one of them
    return not any(statuses)


def running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def disturb(case: Case, folder: Path, seconds: float, draw: random.Random, kills: int) -> None:
    """Kill and start again until `kills` came in time; a kill that comes too late starts a new run, from nothing."""
    tries = 0
    while case.kills < kills and tries < 5 * kills:
        tries += 1
        if (folder / "done.json").exists():
            folder = folder.with_name(f"{folder.name}+")
        writing, moment = case.kills % 3 == 2, draw.uniform(0.0, seconds)
        children, began = start(case.name, folder, case.size), time.monotonic()
        part = folder / ("checkpoint.pt" + checkpoint.TEMPORARY)
        while running(children[0]) and not (part.exists() if writing else time.monotonic() - began >= moment):
            time.sleep(0.001)
        alive = [running(pid) for pid in children]
        saved, half = (folder / "checkpoint.pt").exists(), part.exists()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
        if all(alive):
            case.kills += 1
            case.after_checkpoint += saved
            case.while_writing += half or part.exists()
    case.folder = folder


def ended(folder: Path) -> Any:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return (folder / "weights.pth").read_bytes(), state["step"], state["loss"]


def judge(case: Case, home: Path, draw: random.Random, kills: int) -> Case:
    whole, parts = home / "whole", home / "parts"
    began = time.monotonic()
    if not finish(start(case.name, whole, case.size)):
        return case
    disturb(case, parts, time.monotonic() - began, draw, kills)
    case.same = finish(start(case.name, case.folder, case.size)) and ended(whole) == ended(case.folder)
    return case


def report(cases: list[Case], seed: int) -> str:
    kills, saved, writing = (sum(getattr(c, n) for c in cases) for n in ("kills", "after_checkpoint", "while_writing"))
    good = sum(c.same for c in cases)
    rows = [
        f"| {c.name} | {c.size} | {c.kills} | {c.after_checkpoint} | {c.while_writing} | {'yes' if c.same else 'NO'} |"
        for c in cases
    ]
    return "\n".join(
        [
            "# Kills",
            "",
            f"Written by `python -m tests.kills` (seed {seed}); nine steps of digits each, a checkpoint every other step, on a CPU; "
            "detection protocols are not among them.",
            "",
            f"{kills} SIGKILLs, {saved} of them after a first checkpoint, {writing} while a checkpoint was being written; "
            f"{good} of {len(cases)} runs ended with the bits of an undisturbed one.",
            "",
            "| case | processes | kills | after a checkpoint | while one was written | same bits |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--kills", type=int, default=4, help="of each case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="", help="file of the report")
    args = parser.parse_args(argv)
    cases = [Case(name, 1) for name in tools.cases()] + [Case(name, 2) for name in TOGETHER]
    cases = [case for case in cases if args.only in case.name]
    tools.source()  # before the forks
    draw = random.Random(args.seed)
    for case in cases:
        with tempfile.TemporaryDirectory() as home:
            judge(case, Path(home), draw, args.kills)
        print(f"{case.name} x {case.size}: {case.kills} kills, {'same bits' if case.same else 'DIFFERENT'}", flush=True)
    text = report(cases, args.seed)
    Path(args.to).write_text(text) if args.to else print(text)
    return 0 if all(case.same for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
