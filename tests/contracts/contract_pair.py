"""Runs a function in two gloo processes, or more, and brings back what each returned; torch is imported once, by their common parent."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 240


def _rank(rank: int, size: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str, answers: Any) -> None:
    import torch
    import torch.distributed as td

    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    try:
        answers.put((rank, function(rank, Path(folder), *args)))
    except Exception:  # noqa: BLE001  whatever it was, the parent raises it
        answers.put((rank, RuntimeError(traceback.format_exc())))
    finally:
        td.destroy_process_group()


def run(function: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
    """[function(0, folder, *args), function(1, folder, *args), ...]; what a rank raised is raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel"])
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(r, size, function, args, folder, answers)) for r in range(size)]
        for process in ranks:
            process.start()
        try:
            found = dict(answers.get(timeout=SECONDS) for _ in ranks)
        finally:
            for process in ranks:
                process.join(timeout=5)
                process.kill()
    for answer in found.values():
        if isinstance(answer, RuntimeError):
            raise answer
    return [found[rank] for rank in range(size)]
