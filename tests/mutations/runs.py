"""Runs of pytest on a copy of the tree, each in a process of its own that is ended when its time is over."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "torch", "torch.nn.parallel", "torchvision", "scipy.stats", "sklearn.metrics", "hypothesis"]
)
KILLED, SURVIVED, TIMEOUT, BROKEN = "killed", "survived", "timeout", "broken"


def run_tests(root: Path, tests: tuple[str, ...], limit: float, select: str = "") -> tuple[str, str]:
    """Outcome of pytest in the tree at ``root``, and the first test that failed. The libraries are imported once, by a common parent."""
    arguments = [
        "-x",
        "-q",
        "--tb=no",
        "-rfE",
        "-p",
        "no:cacheprovider",
        *dict.fromkeys(tests),
        *(["-k", select] if select else []),
    ]
    with tempfile.NamedTemporaryFile("r") as out:
        process = CONTEXT.Process(target=_pytest, args=(str(root), arguments, out.name))
        process.start()
        process.join(limit)
        code = process.exitcode
        assert process.pid
        _end(process.pid)
        text = out.read()
    if code is None:
        return TIMEOUT, ""
    named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    outcome = {0: SURVIVED, 1: KILLED}.get(code, BROKEN)
    return outcome, named[1] if named else text.strip()[-300:] if outcome == BROKEN else ""


def _pytest(root: str, arguments: list[str], out: str) -> None:
    """In a process of its own: pytest on the tree at ``root``, which comes before every other place that modules are found in."""
    os.setsid()
    with open(out, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(root)
    os.environ |= {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, root)
    import pytest

    sys.exit(int(pytest.main(arguments)))


def _end(group: int) -> None:
    """The tests' own processes too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
