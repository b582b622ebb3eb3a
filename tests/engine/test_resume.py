"""A run that is killed, anywhere and however often, ends with the bits of one that was left alone."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import engine_processes as processes
import engine_toys as toys
import pytest
import torch

from engine import checkpoint, signals
from engine.errors import CheckpointError, LockedError
from engine.folder import lock


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    toys.run(folder)
    return folder


def numbers(folder):
    """log.jsonl without events and clocks."""
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines if "event" not in line]


class Fuse:
    """Kills its process at the n-th of the moments that make up a run, among them five inside every checkpoint's writing."""

    def __init__(self, n):
        self.left = n

    def burn(self):
        self.left -= 1
        if self.left < 0:
            processes.commit_suicide()

    def wire(self, owner, name, *, torn=False):
        original = getattr(owner, name)

        def wired(*args, **kwargs):
            self.burn()
            if torn:  # half of a file
                args[1].write(b"PK\x03\x04 half of a checkpoint")
                args[1].flush()
                self.burn()
                args[1].seek(0)
                args[1].truncate()
            result = original(*args, **kwargs)
            self.burn()
            return result

        setattr(owner, name, wired)


def run_with_fuse(folder, n):
    fuse, method = Fuse(n), toys.Toy()
    for name in ("before_epoch", "before_step", "loss", "after_backward", "extra_state", "export"):
        fuse.wire(method, name)
    fuse.wire(torch, "save", torn=True)
    fuse.wire(os, "fsync")
    fuse.wire(os, "replace")
    toys.run(folder, method)


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_ends_with_the_same_bits(tmp_path, undisturbed, seed):
    draw, kills, steps = random.Random(seed), 0, []
    while processes.status_of(processes.fork(run_with_fuse, tmp_path, draw.randrange(5, 110))) == -signal.SIGKILL:
        kills += 1
        state = checkpoint.load(tmp_path / "checkpoint.pt")  # whole or absent, after every kill
        steps.append(state["step"] if state else 0)
        assert kills < 60, "no progress"
    assert kills >= 2 and steps == sorted(steps)
    assert toys.bits(tmp_path) == toys.bits(undisturbed)
    assert numbers(tmp_path) == numbers(undisturbed)
    events = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines() if '"event"' in text]
    assert [e["step"] for e in events if e["event"] == "resumed"] == [s for s in steps if s]
    assert [e["event"] for e in events].count("alarm") == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_kill_loses_at_most_one_checkpoint_interval(tmp_path):
    def train():
        method = toys.Toy()
        before, method.before_step = (
            method.before_step,
            lambda step, ctx: (before(step, ctx), step == 14 and processes.commit_suicide()),
        )
        toys.run(tmp_path, method)

    assert processes.status_of(processes.fork(train)) == -signal.SIGKILL
    result, method = toys.run(tmp_path)
    assert 14 - toys.QUIET.checkpoint_interval <= result.resumed_from <= 14
    assert method.calls[0] == ("step", result.resumed_from, result.resumed_from // 5), (
        "a prepared epoch was prepared again"
    )


def test_an_interrupted_preparation_of_an_epoch_starts_again(tmp_path, undisturbed):
    def train():
        method = toys.Toy()
        before = method.before_epoch

        def half(epoch, ctx):
            before(epoch, ctx)
            if epoch == 3:
                processes.commit_suicide()

        method.before_epoch = half
        toys.run(tmp_path, method, options=replace(toys.QUIET, checkpoint_interval=5))

    assert processes.status_of(processes.fork(train)) == -signal.SIGKILL
    result, method = toys.run(tmp_path)
    assert result.resumed_from == 15 and method.calls[0] == ("epoch", 3)
    assert toys.bits(tmp_path) == toys.bits(undisturbed)


# At step 14, after the agreement of the epoch's last step: the next epoch is not prepared.
@pytest.mark.parametrize("moment, step", [("before_step", 7), ("after_backward", 14)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_polite_signal_saves_and_leaves(tmp_path, undisturbed, number, moment, step, capfd):
    def train():
        method = toys.Toy()
        original = getattr(method, moment)

        def signalled(at, *rest):
            original(at, *rest)
            for _ in range(2 * (at == step)):  # the launcher passes on what it gets as well
                os.kill(os.getpid(), number)

        setattr(method, moment, signalled)
        toys.run(tmp_path, method, options=replace(toys.QUIET, checkpoint_interval=10**6))

    assert processes.status_of(processes.fork(train)) == 128 + number
    assert f"stopped at step {step + 1}: the same command goes on" in capfd.readouterr().err
    assert toys.run(tmp_path)[0].resumed_from == step + 1
    assert toys.bits(tmp_path) == toys.bits(undisturbed)


def test_a_second_notice_leaves_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    noted = signals.Signals()
    noted.note(signal.SIGTERM, None)
    noted.note(signal.SIGINT, None)
    assert noted.received == signal.SIGTERM
    now[0] += 1.5
    with pytest.raises(SystemExit) as left:
        noted.note(signal.SIGINT, None)
    assert left.value.code == 130


def test_stop_after_leaves_a_checkpoint_and_the_rest_for_later(tmp_path, undisturbed):
    first, _ = toys.run(tmp_path, options=replace(toys.QUIET, stop_after=7))
    assert (first.finished, first.steps) == (False, 7) and not (tmp_path / "weights.pth").exists()
    second, _ = toys.run(tmp_path)
    assert (second.finished, second.resumed_from) == (True, 7)
    assert toys.bits(tmp_path) == toys.bits(undisturbed)


def test_a_finished_run_is_left_alone(undisturbed):
    before = (undisturbed / "weights.pth").stat().st_mtime_ns
    result, method = toys.run(undisturbed)
    assert result.already and result.finished and not method.calls
    assert (undisturbed / "weights.pth").stat().st_mtime_ns == before


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(tmp_path):
    toys.run(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another recipe: seed is"):
        toys.run(tmp_path, seed=9)


def test_resume_false_starts_again(tmp_path, undisturbed):
    toys.run(tmp_path, seed=9, options=replace(toys.QUIET, stop_after=7))
    result, _ = toys.run(tmp_path, options=replace(toys.QUIET, resume=False))
    assert result.resumed_from is None
    assert toys.bits(tmp_path) == toys.bits(undisturbed)


def test_two_processes_cannot_share_a_run_folder_and_a_dead_one_leaves_no_lock(tmp_path):
    ready = tmp_path / "ready"

    def hold():
        with lock(tmp_path):
            ready.touch()
            time.sleep(60)

    pid = processes.fork(hold)
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(LockedError, match=f"in use by process {pid} on .*out="):
        toys.run(tmp_path)
    os.kill(pid, signal.SIGKILL)
    processes.status_of(pid)
    assert toys.run(tmp_path)[0].finished


def test_one_process_cannot_run_twice_in_a_folder(tmp_path):
    with lock(tmp_path), pytest.raises(LockedError, match="this very process"):
        toys.run(tmp_path)


def test_without_an_interval_checkpoints_are_frequent_unless_saving_is_dear(tmp_path, monkeypatch):
    saved, write = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: (saved.append(state["step"]), write(path, state)))
    for share, expected in [(1e9, [20, 40, 60, 65]), (1e-9, [20, 65])]:  # of the time that saving may take
        monkeypatch.setattr("engine.loop._SHARE", share)
        toys.run(
            tmp_path / str(share), stream=toys.Stream(epochs=13), options=replace(toys.QUIET, checkpoint_interval=0)
        )
        assert saved == expected
        saved.clear()
