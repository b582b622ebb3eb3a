"""The real command, killed ten times with SIGKILL and restarted each time: `make test-faults` (about two minutes)."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

pytestmark = pytest.mark.slow

INTERVAL = 10
WORDS = ["swav_digits", f"checkpoint_interval={INTERVAL}", "log_interval=1"]
# The same command on a disk so slow that a kill meets it at work.
SLOW_DISK = """
import os, runpy, sys, time
fsync = os.fsync
os.fsync = lambda file: (time.sleep(1.0), fsync(file))
sys.argv[0] = "reproduce"
runpy.run_module("reproduce", run_name="__main__")
"""


def start(out, slow_disk=False):
    program = ["-c", SLOW_DISK] if slow_disk else ["-m", "reproduce"]
    command = [sys.executable, *program, *WORDS, f"out={out}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def folder_of(out):
    found = list((out / "swav_digits").glob("*")) if (out / "swav_digits").exists() else []
    return found[0] if found else None


def lines_of(folder):
    text = (folder / "log.jsonl").read_text() if folder and (folder / "log.jsonl").exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def step_reached(out):
    return max((line["step"] for line in lines_of(folder_of(out))), default=0)


def kill_when(process, moment, patience=900):
    """SIGKILL as soon as moment() holds; after `patience` seconds without it, fail with what the process said."""
    deadline = time.monotonic() + patience
    while not moment():
        assert process.poll() is None, f"left by itself:\n{process.stderr.read()}"
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the moment never came:\n{process.communicate()[1]}")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def final(out):
    folder = folder_of(out)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return (folder / "weights.pth").read_bytes(), state["step"], state["loss"], state["extra"]


@pytest.mark.parametrize("seed", [0])
def test_ten_kills_of_the_real_command_lose_an_interval_at_most_and_no_bit(tmp_path, seed):
    draw, interrupted, alone = random.Random(seed), tmp_path / "interrupted", tmp_path / "alone"
    assert start(alone).wait() == 0
    total = json.loads((folder_of(alone) / "done.json").read_text())["steps"]
    moments = [("before the first checkpoint", draw.randrange(1, INTERVAL))]
    moments += [("at step", step) for step in sorted(draw.sample(range(2 * INTERVAL, total - INTERVAL), 6))]
    for place in (3, 6, 9):  # between the others
        moments.insert(place, ("while a checkpoint is written", 0))

    def saved():
        path = folder_of(interrupted) / "checkpoint.pt" if folder_of(interrupted) else interrupted / "none"
        return torch.load(path, weights_only=True)["step"] if path.exists() else 0

    def writing():
        return bool(list(folder_of(interrupted).glob("checkpoint.pt.part")))

    for what, step in moments:
        known, reached = saved(), step_reached(interrupted)
        assert reached - known <= INTERVAL, f"a kill at step {reached} left the checkpoint of step {known}"
        if what == "while a checkpoint is written":
            kill_when(start(interrupted, slow_disk=True), writing)
            assert saved() == known and writing(), "the kill came too late"
        else:
            kill_when(start(interrupted), lambda step=step: step_reached(interrupted) >= step)
        resumed = [line["step"] for line in lines_of(folder_of(interrupted)) if line.get("event") == "resumed"]
        assert not known or resumed[-1] == known
    process = start(interrupted)
    assert process.wait() == 0, process.stderr.read()

    assert final(interrupted)[:3] == final(alone)[:3]
    steps = [line["step"] for line in lines_of(folder_of(interrupted)) if "event" not in line]
    assert steps == list(range(1, total + 1)), "a step is missing from the log, or there twice"
    again = start(interrupted)
    assert again.wait() == 0 and folder_of(interrupted).joinpath("weights.pth").read_bytes() == final(alone)[0]
