"""Real processes without the price of importing torch again: forks of the test process (one thread, so forking is safe)."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as td


def fork(function, *args):
    """Run function(*args) in a child. Returns its pid; the child leaves with status 0, or 1 after printing a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        function(*args)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001  a child must not return into the test
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(pid):
    """The exit status of a child; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def commit_suicide():
    os.kill(os.getpid(), signal.SIGKILL)


def together(function, *args, size=2):
    """function(rank, *args) on `size` gloo processes; the list of what they return."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp())

    def member(rank):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
        from engine import dist

        dist.init("cpu")
        try:
            result = function(rank, *args)
            (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))
            td.barrier()
        finally:
            dist.finish()

    statuses = [status_of(pid) for pid in [fork(member, rank) for rank in range(size)]]
    assert statuses == [0] * size, f"processes left with {statuses}"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]
