"""Pre-training through Slurm: what is asked, the batch script, and a whole run by submitit's local executor."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from engine import dist
from reproduce import slurm
from zoo.errors import UserError

WORDS = [
    "simsiam_digits",
    "schedule.images=1280",
    "batch=64",
    "backbone.options.width=16",
    "log_interval=1",
    "threads=1",
]


@pytest.mark.parametrize(
    "time_, minutes", [("90", 90), (90, 90), ("1:30:00", 90), ("0:00:01", 1), ("2-03:04:00", 2 * 1440 + 184)]
)
def test_a_time_is_minutes_or_slurms(time_, minutes):
    assert slurm.Request(time=time_).minutes == minutes


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"time": "soon"}, "time=soon"),
        ({"time": "0"}, "time=0"),
        ({"nodes": 0}, "nodes=0"),
        ({"gpus": "8"}, "gpus=8"),
        ({"gpus": 0}, "tasks=N"),
        ({"executor": "pbs"}, "executor=pbs"),
    ],
)
def test_what_slurm_cannot_be_asked_is_one_clear_error(wrong, said):
    with pytest.raises(UserError, match=said):
        slurm.Request(**wrong)


def test_a_batch_that_the_processes_cannot_share_is_told_before_anything_is_submitted():
    with pytest.raises(UserError, match="batch=64 cannot be shared equally by nodes=3 x 5"):
        slurm.main([*WORDS, "nodes=3", "gpus=5"], run=None)
    with pytest.raises(UserError, match="did you mean"):
        slurm.main([*WORDS, "nodes=1", "gpus=2", "shcedule.epochs=1"], run=None)


def test_what_belongs_to_the_job_is_not_given_to_the_run():
    got = []
    submit = lambda *args: got.append(args) or type("Job", (), {"job_id": 7})
    assert slurm.main([*WORDS, "nodes=2", "gpus=4", "time=60", "partition=learn"], run=submit) == 0
    ((name, words, asked),) = got
    assert (name, words) == ("simsiam_digits", WORDS) and asked.processes == 8 and asked.partition == "learn"


def script(tmp_path, status, capsys):
    """Run the printed batch script with a srun that ends with `status`; what srun and scontrol were given, and the script's own status."""
    slurm.main([*WORDS, "nodes=2", "gpus=4", "time=60", "partition=learn", "--sbatch"])
    text = capsys.readouterr().out
    for name, ends in {"srun": status, "scontrol": 0}.items():
        tool = tmp_path / name
        tool.write_text(f'#!/bin/bash\necho "{name} $@" >> {tmp_path}/calls\nexit {ends}\n')
        tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    done = subprocess.run(["bash", "-c", text], env=env, cwd=tmp_path, timeout=60)
    return text, (tmp_path / "calls").read_text().splitlines(), done.returncode


@pytest.mark.parametrize("status, queued", [(138, True), (140, True), (143, False), (1, False), (0, False)])
def test_the_batch_script_queues_itself_again_after_a_notice_only(status, queued, tmp_path, capsys):
    text, calls, returned = script(tmp_path, status, capsys)
    flags = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", text))
    assert flags["nodes"] == "2" and flags["ntasks-per-node"] == flags["gpus-per-node"] == "4"
    assert flags["signal"] == "USR2@90" and flags["time"] == "60" and flags["partition"] == "learn"
    assert calls[0].endswith(" ".join(["-m", "reproduce", *WORDS])) and returned == status
    assert calls[1:] == (["scontrol requeue 42"] if queued else [])


def test_the_first_task_queues_the_job_again_and_the_others_wait_for_it(monkeypatch):
    asked, slept = [], []
    monkeypatch.setattr(time, "sleep", slept.append)
    for rank in (0, 1):
        here = type("Here", (), {"global_rank": rank, "cluster": "slurm"})
        slurm.leave(here, lambda *args: asked.append(args), signal.SIGUSR2)
    assert asked == [(signal.SIGUSR2, None)] and slept == [slurm.GRACE]


@pytest.mark.parametrize("url", ["tcp://node3:29500", "file:///tmp/not-there-yet", "env://"])
def test_processes_meet_where_the_environment_says(url):
    assert dist.meeting({"DIST_URL": url, "MASTER_ADDR": "x"}) == url
    assert dist.meeting({"MASTER_ADDR": "x"}) == "env://"


@pytest.mark.parametrize("url", ["tcp://node3", "http://x", "file://relative", "file:///no/such/folder/meeting"])
def test_a_place_that_is_none_is_one_clear_error(url):
    with pytest.raises(UserError, match=f"DIST_URL={url}"):
        dist.meeting({"DIST_URL": url})


# -- a whole run ----------------------------------------------------------------------------------------------------


def tasks_of(job):
    """Process ids of the tasks, whose parent is the executor's controller."""
    found = Path(f"/proc/{job._process.pid}/task/{job._process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def wait(condition, what, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.02)
    return found


def steps(out):
    logs = list((out / "simsiam_digits").glob("*/log.jsonl")) if (out / "simsiam_digits").exists() else []
    lines = (
        [json.loads(line) for line in logs[0].read_text().splitlines(keepends=True) if line.endswith("\n")]
        if logs
        else []
    )
    return [line["step"] for line in lines if "event" not in line]


def final(out):
    (folder,) = (out / "simsiam_digits").glob("*")
    return torch.load(folder / "weights.pth", weights_only=True)


def submitted(tmp_path, name):
    out = tmp_path / name
    asked = slurm.Request(gpus=0, tasks=2, time="10", executor="local", folder=str(tmp_path / f"{name}-logs"))
    return out, slurm.submit("test", [*WORDS, f"out={out}"], asked)


@pytest.mark.slow
def test_a_job_of_two_tasks_is_pre_empted_queued_again_and_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DIST_URL"):
        monkeypatch.delenv(name, raising=False)
    alone, job = submitted(tmp_path, "alone")
    wait(job.done, "the end of the undisturbed job")
    assert job.results() == [0, 0], job.stderr()
    disturbed, job = submitted(tmp_path, "disturbed")
    wait(lambda: len(steps(disturbed)) >= 5, "the fifth step")
    before = tasks_of(job)
    assert len(before) == 2
    for pid in before:  # as Slurm tells every task of a job step
        os.kill(pid, signal.SIGUSR2)
    wait(lambda: len(after := tasks_of(job)) == 2 and not set(after) & set(before), "the second attempt")
    wait(job.done, "the end of the disturbed job")
    assert job.results() == [0, 0], job.stderr()
    events = [
        json.loads(line) for line in next((disturbed / "simsiam_digits").glob("*/log.jsonl")).read_text().splitlines()
    ]
    (resumed,) = [line for line in events if line.get("event") == "resumed"]
    assert 5 <= resumed["step"] < 20 and resumed["processes"] == 2
    assert steps(disturbed) == steps(alone) == list(range(1, 21))
    expected, found = final(alone), final(disturbed)
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
