"""Kills a run with SIGKILL from within, at a chosen call of the work that makes assignments."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 240
Kill = tuple[str, dict[str, Any], Path, str, int]  # case, settings, run folder, place, number of the call


def places() -> dict[str, tuple[Any, str]]:
    """Where an assignment spends its time: reading the data set, passes of k-means, sweeps of optimal transport."""
    from engine.maths import kmeans, sela
    from reproduce.stream import Stream

    return {"features": (Stream, "_plain"), "k-means": (kmeans, "_pass"), "transport": (sela._Problem, "sweep")}


@contextlib.contextmanager
def counted(place: str = "", call: int = 0) -> Iterator[Counter]:
    """Counts calls of every place; call number `call` of `place` is the last thing that this process does."""
    calls: Counter = Counter()

    def wrap(name: str, plain: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = plain(*args, **kwargs)
            calls[name] += 1
            if name == place and calls[name] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return wrapped

    originals = {name: getattr(*where) for name, where in places().items()}
    try:
        for name, (owner, attribute) in places().items():
            setattr(owner, attribute, wrap(name, originals[name]))
        yield calls
    finally:
        for name, (owner, attribute) in places().items():
            setattr(owner, attribute, originals[name])


def _nursery(kills: list[Kill], answers: Any) -> None:
    """Each kill in a fork of its own; this process imports once, and never trains, so that forking is safe."""
    import contract_tools as tools
    import torch

    torch.set_num_threads(1)
    for name, settings, folder, place, call in kills:
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException), counted(place, call):
                tools.fit(tools.recipe(name, **settings), folder)
            os._exit(0)
        answers.put(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def kill(kills: list[Kill]) -> list[int]:
    """Run each until its moment; the exit codes, -9 for those that were killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel"])
    answers = context.Queue()
    process = context.Process(target=_nursery, args=(kills, answers))
    process.start()
    try:
        return [answers.get(timeout=SECONDS) for _ in kills]
    finally:
        process.join(timeout=5)
        process.kill()
