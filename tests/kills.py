"""`python -m tests.kills`: SIGKILL at random moments of short runs of every method and detector, and a report of how they ended (`make test-kills`).

Each run is a digits recipe cut down to nine steps, or an evaluation of a detection protocol on a few scenes, with a checkpoint every other
step; by one process, or by two; without workers, or with some that read files. It is killed as often as asked, at random times and while a
checkpoint is being written (onto a disk that is made slow), started again each time, and in the end compared with an undisturbed one: the
bytes of weights.pth, and step and loss of the checkpoint; of an evaluation also the metrics and predictions of its record.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent / name) for name in ("contracts", "detection", ".")]

import contract_tools as tools  # noqa: E402
import detection_fakes as scenes  # noqa: E402
import torch  # noqa: E402
import torch.distributed as td  # noqa: E402

from engine import checkpoint, dist  # noqa: E402
from evaluations import measure  # noqa: E402
from zoo.data import specs  # noqa: E402

SLOW = 0.03  # seconds that each write to the disk takes longer
TOGETHER = ("swav", "deepercluster in two levels", "pic", "mocov2", "sela", "detr_scenes")  # also by two processes
# Also with workers: (case, processes, workers of each).
WORKING = (
    ("simclr", 1, 1),
    ("swav with small crops", 1, 2),
    ("deepclusterv2", 1, 2),
    ("mocov2", 2, 1),
    ("detect_scenes", 1, 1),
    ("detr_scenes", 1, 2),
)
# Of a detection protocol: more steps than its tests take, so that most kills come after a first checkpoint.
LONGER = {
    "detect_scenes": {"head.iterations": 8},
    "detr_scenes": {"head.epochs": 3},
    "segment_scenes": {"head.iterations": 8},
}
COLUMNS = ("case", "processes", "workers", "kills", "after a checkpoint", "while one was written", "same bits")


@dataclass
class Case:
    """One method, variant or detection protocol by so many processes with so many workers each, and what became of it."""

    name: str
    size: int
    workers: int = 0
    kills: int = 0
    after_checkpoint: int = 0
    while_writing: int = 0
    same: bool = False
    folder: Path = Path()  # of the run that was killed last

    @property
    def detects(self) -> bool:
        return self.name in scenes.CASES

    def run_folder(self, folder: Path) -> Path:
        """Where the checkpoint is, of what writes below `folder`."""
        return next(folder.glob("probes/*/*/seed0"), folder / "none") if self.detects else folder

    def done(self, folder: Path) -> bool:
        return bool(list(folder.glob("measured/*/*.json"))) if self.detects else (folder / "done.json").exists()

    def row(self) -> tuple[Any, ...]:
        ended = "yes" if self.same else "NO"
        return self.name, self.size, self.workers, self.kills, self.after_checkpoint, self.while_writing, ended

    @classmethod
    def of_row(cls, line: str) -> Case:
        """The case of a row of the report."""
        name, *counts, ended = (cell.strip() for cell in line.strip().strip("|").split("|"))
        return cls(name, *map(int, counts), same=ended == "yes")


def train(case: Case, home: Path, folder: Path, rank: int, meeting: Path) -> None:
    """In a fork of its own. home: where images are that all runs of the case share."""
    torch.set_num_threads(1)
    fsync = os.fsync
    os.fsync = lambda file: (time.sleep(SLOW), fsync(file))[1]  # type: ignore[assignment]
    if case.detects:
        detect(case, home, folder, rank, meeting)
        return
    if case.size > 1:
        td.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=case.size)
    images = tools.files(home / "files") if case.workers else None
    world = dist.World(rank, case.size, rank)
    tools.fit(tools.recipe(case.name), folder, world=world, images=images, workers=case.workers)


def detect(case: Case, home: Path, folder: Path, rank: int, meeting: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    if case.size > 1:
        os.environ.update(WORLD_SIZE=str(case.size), RANK=str(rank), LOCAL_RANK=str(rank), DIST_URL=f"file://{meeting}")
    table = scenes.small_scenes()
    specs.load = lambda *_: table  # type: ignore[assignment]
    how = {"data": str(home / "coco"), "workers": case.workers, "device": "cpu"}
    settings = {**scenes.CASES[case.name], **LONGER[case.name], **scenes.CHECKED, **how}
    measure.evaluate(case.name, str(home / "net"), settings, out=str(folder), quiet=True)


def prepare(case: Case, home: Path) -> None:
    """The images of a case, and the network that a detector begins with."""
    if case.detects:
        scenes.scenes_and_network(home)
    elif case.workers:
        (home / "files").mkdir()
        tools.files(home / "files")


def start(case: Case, folder: Path) -> list[int]:
    meeting = Path(tempfile.mkdtemp()) / "meeting"
    children = []
    sys.stdout.flush()
    for rank in range(case.size):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                train(case, folder.parent, folder, rank, meeting)
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
        if case.done(folder):
            folder = folder.with_name(f"{folder.name}+")
        writing, moment = case.kills % 3 == 2, draw.uniform(0.0, seconds)
        children, began = start(case, folder), time.monotonic()

        def half_written(folder: Path = folder) -> bool:
            return (case.run_folder(folder) / ("checkpoint.pt" + checkpoint.TEMPORARY)).exists()

        while running(children[0]) and not (half_written() if writing else time.monotonic() - began >= moment):
            time.sleep(0.001)
        alive = [running(pid) for pid in children]
        saved, half = (case.run_folder(folder) / "checkpoint.pt").exists(), half_written()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
        if all(alive):
            case.kills += 1
            case.after_checkpoint += saved
            case.while_writing += half or half_written()
    case.folder = folder


def ended(case: Case, folder: Path) -> Any:
    place = case.run_folder(folder)
    weights = (place / "weights.pth").read_bytes()
    if not case.detects:
        state = torch.load(place / "checkpoint.pt", weights_only=True)
        return weights, state["step"], state["loss"]
    (record,) = (json.loads(path.read_text()) for path in folder.glob("measured/*/*.json"))
    done = json.loads((place / "done.json").read_text())
    return weights, done["steps"], done["loss"], record["metrics"], record["predictions_sha256"]


def judge(case: Case, home: Path, draw: random.Random, kills: int) -> Case:
    whole, parts = home / "whole", home / "parts"
    prepare(case, home)
    began = time.monotonic()
    if not finish(start(case, whole)):
        return case
    disturb(case, parts, time.monotonic() - began, draw, kills)
    case.same = finish(start(case, case.folder)) and ended(case, whole) == ended(case, case.folder)
    return case


def report(cases: list[Case], seed: int) -> str:
    kills, saved, writing = (sum(getattr(c, n) for c in cases) for n in ("kills", "after_checkpoint", "while_writing"))
    good = sum(c.same for c in cases)
    rows = [f"| {' | '.join(map(str, case.row()))} |" for case in cases]
    return "\n".join(
        [
            "# Kills",
            "",
            f"Written by `python -m tests.kills` (seed {seed}) on a CPU, a checkpoint every other step: nine steps of digits each, and "
            "detection protocols of eight or nine steps on twelve composed scenes with their evaluation. With workers the images are files.",
            "",
            f"{kills} SIGKILLs, {saved} of them after a first checkpoint, {writing} while a checkpoint was being written; "
            f"{good} of {len(cases)} runs ended with the bits of an undisturbed one.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            *rows,
            "",
        ]
    )


def every() -> list[Case]:
    alone = [Case(name, 1) for name in (*tools.cases(), *scenes.CASES)]
    return alone + [Case(name, 2) for name in TOGETHER] + [Case(*chosen) for chosen in WORKING]


def merged(old: list[Case], new: list[Case]) -> list[Case]:
    """The cases of an earlier report, each in its place with what was found now, and then the others."""
    found = {(case.name, case.size, case.workers): case for case in old}
    return list((found | {(case.name, case.size, case.workers): case for case in new}).values())


def earlier(path: Path) -> list[Case]:
    """The cases of a report; none where there is no report."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line for line in lines if line.startswith("| ")]
    return [Case.of_row(line) for line in rows[1:]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--kills", type=int, default=4, help="of each case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--new", action="store_true", help="only cases that the report of --to lacks")
    parser.add_argument("--to", default="", help="file of the report; with --only or --new its other rows stay")
    args = parser.parse_args(argv)
    cases = every()
    cases = [case for case in cases if args.only in case.name]
    old = earlier(Path(args.to)) if args.to and (args.only or args.new) else []
    if args.new:
        known = {(case.name, case.size, case.workers) for case in old}
        cases = [case for case in cases if (case.name, case.size, case.workers) not in known]
    torch.set_num_threads(1)
    tools.source()  # before the forks
    draw = random.Random(args.seed)
    for case in cases:
        with tempfile.TemporaryDirectory() as home:
            judge(case, Path(home), draw, args.kills)
        how = f"{case.name} x {case.size}, {case.workers} workers"
        print(f"{how}: {case.kills} kills, {'same bits' if case.same else 'DIFFERENT'}", flush=True)
    text = report(merged(old, cases), args.seed)
    Path(args.to).write_text(text) if args.to else print(text)
    return 0 if all(case.same for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
