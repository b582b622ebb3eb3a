"""Runs functions of this folder in two gloo processes at once and brings back what each rank returned."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any


def _rank(rank: int, world: int, function: Callable[..., Any], args: tuple, rendezvous: str, answers: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        answers.put((rank, function(rank, *args)))
    finally:
        dist.destroy_process_group()


def run(function: Callable[..., Any], *args: Any, world: int = 2, seconds: float = 120) -> list[Any]:
    """``[function(0, *args), function(1, *args)]``; torch is imported once, by the server that the ranks are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        place = (f"{folder}/rendezvous", answers)
        ranks = [context.Process(target=_rank, args=(r, world, function, args, *place)) for r in range(world)]
        for process in ranks:
            process.start()
        try:
            found = dict(answers.get(timeout=seconds) for _ in ranks)
        finally:
            for process in ranks:
                process.join(timeout=5)
                process.kill()
    return [found[r] for r in range(world)]
