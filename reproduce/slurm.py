"""`python -m reproduce slurm ID path=value … nodes=8 gpus=8 partition=… time=…`: many machines through Slurm (submitit), or its sbatch text.

One task for each GPU. A minute and a half before the time is over, or when the job is pre-empted, Slurm sends SIGUSR2: every process
finishes its step, saves and leaves, and the job is queued again; the same command then goes on. A job that is cancelled (SIGTERM) saves
and leaves too, and stays away. Not run on a cluster here: submitit's local executor, and a stand-in for srun, run the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zoo import settings
from zoo.errors import Parser, UserError

AGAIN = (signal.SIGUSR1, signal.SIGUSR2)  # a notice after which a job is queued again
NOTICE = 90  # seconds before the end of its time at which a job gets SIGUSR2
GRACE = 10.0  # seconds that the other tasks wait for the first, which queues the job again
OFTEN = 1_000_000  # times that a job may come to the end of its time


@dataclass(frozen=True)
class Request:
    """What is asked of Slurm. One task per GPU; without GPUs `tasks` of each node, on its CPU."""

    nodes: int = 1
    gpus: int = 8  # of each node; 0: none
    tasks: int = 0  # of each node, where gpus=0
    time: str = "1-00:00:00"  # minutes, hours:minutes:seconds, or days-hours:minutes:seconds
    partition: str | None = None
    account: str | None = None
    cpus: int = 10  # cores of each task
    memory: str | None = None  # of each node, as 500G; null: what the cluster gives
    folder: str = "runs/slurm"  # of logs
    executor: str = "slurm"  # or local: submitit's, on this machine, to try it

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus", "tasks", "cpus"):
            value, least = getattr(self, name), 1 if name in ("nodes", "cpus") else 0
            if type(value) is not int or value < least:
                raise UserError(f"{name}={value}: a whole number of at least {least}")
        if not self.per_node:
            raise UserError("gpus=0 tasks=0: no process; say tasks=N for N processes a node on CPUs")
        if self.executor not in ("slurm", "local"):
            raise UserError(f"executor={self.executor}: slurm or local")
        self.minutes  # noqa: B018  refuses a time that is none

    @property
    def per_node(self) -> int:
        return self.gpus or self.tasks

    @property
    def processes(self) -> int:
        return self.nodes * self.per_node

    @property
    def minutes(self) -> int:
        """`time` in minutes, upwards."""
        text = str(self.time)
        if re.fullmatch(r"\d+", text) and int(text):
            return int(text)
        found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
        if found is None:
            raise UserError(
                f"time={text}: minutes (120), hours:minutes:seconds (2:00:00) or days-hours:minutes:seconds (3-00:00:00)"
            )
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)

    @classmethod
    def split(cls, overrides: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
        """The request among the words of a command, and the other words."""
        known = {field.name for field in fields(cls)}
        own = {name: value for name, value in overrides.items() if name in known}
        for name in ("time", "partition", "account", "memory"):
            if own.get(name) is not None:
                own[name] = str(own[name])
        return cls(**own), {name: value for name, value in overrides.items() if name not in known}


class Pretraining:
    """One task of a submitit job: `python -m reproduce WORDS`, queued again after a notice."""

    def __init__(self, words: Sequence[str], attempt: int = 0) -> None:
        self.words, self.attempt = list(words), attempt

    def __call__(self) -> int:
        import submitit

        from reproduce.__main__ import main

        here, queue_again = submitit.JobEnvironment(), signal.getsignal(signal.SIGUSR2)
        if here.cluster != "slurm":  # srun's own variables say who a task is, and which GPU is its own
            os.environ |= {"RANK": str(here.global_rank), "WORLD_SIZE": str(here.num_tasks)}
            os.environ |= {"LOCAL_RANK": str(here.local_rank)}
            meeting = here.paths.folder / f"{here.job_id}-{self.attempt}.meeting"
            os.environ.setdefault("DIST_URL", f"file://{meeting.resolve()}")
        try:
            return main(self.words)
        except SystemExit as leaving:
            number = leaving.code - 128 if isinstance(leaving.code, int) else 0
            if number not in AGAIN:
                raise
            leave(here, queue_again, signal.Signals(number))
            raise

    def checkpoint(self) -> Any:
        """What is queued instead: the same command."""
        import submitit

        return submitit.helpers.DelayedSubmission(Pretraining(self.words, self.attempt + 1))


def leave(here: Any, queue_again: Any, number: signal.Signals) -> None:
    """The first task queues the job again, which ends it. The others give it time to: a task that leaves may take a job with it."""
    if here.global_rank == 0 and callable(queue_again):
        queue_again(number, None)
    elif here.cluster == "slurm":
        time.sleep(GRACE)


def command(words: Sequence[str]) -> str:
    return shlex.join([sys.executable, "-m", "reproduce", *words])


def text(name: str, words: Sequence[str], asked: Request) -> str:
    """A batch script for sbatch, complete: it needs neither submitit nor anything else of this file."""
    rows = {
        "job-name": name,
        "nodes": asked.nodes,
        "ntasks-per-node": asked.per_node,
        "gpus-per-node": asked.gpus or None,
        "cpus-per-task": asked.cpus,
        "mem": asked.memory,
        "time": asked.time,
        "partition": asked.partition,
        "account": asked.account,
        "signal": f"USR2@{NOTICE}",
        "output": f"{asked.folder}/%j.log",
        "open-mode": "append",
    }
    flags = [f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in rows.items() if value is not None]
    again = "|".join(str(128 + number) for number in AGAIN)
    return "\n".join(
        [
            "#!/bin/bash",
            *flags,
            "#SBATCH --requeue",
            f"srun --kill-on-bad-exit=0 {command(words)}",
            "status=$?",
            f"case $status in {again}) scontrol requeue $SLURM_JOB_ID ;; esac  # saved after a notice: the same command goes on",
            "exit $status",
            "",
        ]
    )


def submit(name: str, words: Sequence[str], asked: Request) -> Any:
    """The submitit job."""
    try:
        import submitit
    except ImportError:
        raise UserError(
            "submitit is not installed: pip install 'selfzoo[slurm]', or --sbatch for a script without it"
        ) from None
    folder = Path(asked.folder)
    if asked.executor == "local":
        if asked.nodes > 1:
            raise UserError(f"nodes={asked.nodes}: executor=local has this machine alone; set nodes=1")
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=OFTEN)
        executor.update_parameters(timeout_min=asked.minutes, tasks_per_node=asked.per_node, gpus_per_node=asked.gpus)
    else:
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=OFTEN)
        except RuntimeError:
            raise UserError(
                "this machine has no srun: run it where jobs are submitted, or take --sbatch's text there"
            ) from None
        given = {"partition": asked.partition, "account": asked.account, "mem": asked.memory}
        executor.update_parameters(
            job_name=name,
            time=asked.minutes,
            nodes=asked.nodes,
            ntasks_per_node=asked.per_node,
            cpus_per_task=asked.cpus,
            signal_delay_s=NOTICE,
            srun_args=["--kill-on-bad-exit=0"],
            additional_parameters={"requeue": True},
            **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
            **{key: value for key, value in given.items() if value is not None},
        )
    return executor.submit(Pretraining(words))


def main(argv: Sequence[str], run: Callable[..., Any] = submit) -> int:
    """`slurm ID path=value …`: check everything here, then submit, or print the batch script."""
    names = ", ".join(f"{field.name}=" for field in fields(Request))
    parser = Parser(
        prog="python -m reproduce slurm",
        description="Submit a pre-training to Slurm through submitit; it is queued again after a notice, and goes on.",
        example="python -m reproduce slurm swav_800ep nodes=8 gpus=8 --sbatch",
        epilog=f"Options of the job beside the recipe's settings: {names}",
    )
    parser.add_argument("id", help="a model of the registry, or a method's name with data=FOLDER")
    parser.add_argument(
        "settings", nargs="*", metavar="path=value", help="recipe settings, options, and those of the job"
    )
    parser.add_argument("--sbatch", action="store_true", help="print the batch script, and submit nothing")
    parser.add_argument("--plan", action="store_true", help="say what would run on so many processes, and stop")
    args = parser.parse_intermixed_args(list(argv))
    from reproduce import launch, plan

    asked, rest = Request.split(settings.parse(args.settings))
    work = launch.job(args.id, rest)
    if work.recipe.batch % asked.processes:
        raise UserError(
            f"batch={work.recipe.batch} cannot be shared equally by nodes={asked.nodes} x {asked.per_node} processes; choose another "
            f"number, or batch={max(1, round(work.recipe.batch / asked.processes)) * asked.processes}"
        )
    own = {field.name for field in fields(Request)}
    if args.plan:
        print(plan.plan(work, asked.processes))
        return 0
    words = [args.id, *(word for word in args.settings if word.partition("=")[0] not in own)]
    if args.sbatch:
        print(text(work.id, words, asked), end="")
        return 0
    job = run(work.id, words, asked)
    print(
        f"{work.id}: job {job.job_id}, {asked.processes} processes; logs in {asked.folder}/, results in {work.folder}/"
    )
    return 0
