"""Run options: told apart from recipe settings, typed, and with suggestions."""

import io

import pytest
import torch

from engine import provenance
from engine.batch import Batch
from engine.errors import UserError
from engine.log import RunLog, read
from engine.options import RunOptions
from engine.progress import Progress, duration


def test_options_are_split_from_recipe_settings():
    options, rest = RunOptions.split(
        {"out": "x", "workers": 2, "resume": False, "optimizer.lr": 0.1, "seed": 3, "data": 2012}
    )
    assert options == RunOptions(out="x", workers=2, resume=False, data="2012")
    assert rest == {"optimizer.lr": 0.1, "seed": 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"worker": 2}, "unknown option 'worker'; did you mean 'workers'"),
        ({"resum": True}, "did you mean 'resume'"),
        ({"workers": "two"}, "workers=two: must be int"),
        ({"resume": 1}, "resume=1: must be bool"),
        ({"workers": True}, "workers=True: must be int"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
        ({"log_interval": 0}, "log_interval=0: must be at least 1"),
        ({"data": ["a"]}, "data=.*: must be str or null"),
    ],
)
def test_a_wrong_option_is_named(given, message):
    with pytest.raises(UserError, match=message):
        RunOptions.split(given)


@pytest.mark.parametrize(
    "setting",
    [
        "method",
        "backbone",
        "input",
        "layouts",
        "dataset",
        "split",
        "init",
        "views",
        "batch",
        "optimizer",
        "schedule",
        "params",
        "seed",
        "precision",
        "sync_bn",
    ],
)
def test_no_recipe_setting_is_taken_for_a_misspelt_option(setting):
    assert RunOptions.split({setting: 1})[1] == {setting: 1}


def test_progress_says_loss_rate_time_left_and_memory(monkeypatch):
    now = iter(float(t) for t in range(1000))
    monkeypatch.setattr("engine.progress.time.perf_counter", lambda: next(now))
    out = io.StringIO()
    progress = Progress("swav_digits", 100, images=64, device=torch.device("cpu"), every=3.0, stream=out)
    for step in range(1, 11):
        progress.update(step, 0, 2.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and lines[-1].startswith(
        "swav_digits  step 9/100  epoch 0  loss 2.5000  64 images/s  waiting for data 0%  left 1:31"
    )
    assert lines[-1].endswith("MB")
    assert [duration(s) for s in (5, 65, 3725, 200000)] == ["0:05", "1:05", "1:02:05", "2d 07:33"]


def test_a_pause_does_not_count_as_a_step(monkeypatch):
    times = iter([0.0, 1.0, 2.0, 1000.0, 1001.0])
    monkeypatch.setattr("engine.progress.time.perf_counter", lambda: next(times))
    progress = Progress("x", 9, images=10, device=torch.device("cpu"), quiet=True)
    progress.update(1, 0, 0.0)
    progress.update(2, 0, 0.0)
    progress.pause()
    progress.update(3, 0, 0.0)
    progress.update(4, 0, 0.0)
    assert progress.images_per_second == 10.0


def test_the_log_drops_lost_steps_and_torn_lines(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    for step in (2, 4, 6):
        log.write(step, loss=float(step))
    log.event("alarm", 6, message="late")
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    log = RunLog(tmp_path, step=5, tensorboard=False)
    log.write(6, loss=float("nan"))
    log.close()
    assert log.reached == 6 and log.alarms == []
    assert read(tmp_path / "log.jsonl") == [
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 4.0},
        {"step": 6, "loss": "nan"},
    ]


def test_a_batch_moves_as_a_whole():
    batch = Batch(torch.arange(2), [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)], torch.ones(2), epoch=3)
    moved = batch.to("cpu", channels_last=True)
    assert len(moved) == 2 and moved.epoch == 3 and moved.labels is not None
    assert moved.views[0].is_contiguous(memory_format=torch.channels_last) and moved.views[1].shape == (2, 5)


def test_provenance_names_the_kernels_that_torch_uses_and_who_chose_them(monkeypatch):
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    own = torch.backends.cpu.get_cpu_capability()
    assert provenance.collect()["hardware"]["kernels"] == own and "=" not in own
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert provenance.collect()["hardware"]["kernels"] == f"{own}, ONEDNN_MAX_CPU_ISA=AVX2"


def test_provenance_names_code_libraries_and_hardware_but_no_machine():
    found = provenance.collect()
    assert len(found["git"]["commit"]) == 40 and isinstance(found["git"]["dirty"], bool)
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert found["hardware"]["cores"] >= 1 and found["threads"] == torch.get_num_threads()
    import socket

    assert socket.gethostname() not in str(found)
    later = {**found, "threads": 99, "time": "later", "versions": {**found["versions"], "torch": "9"}}
    assert provenance.changes(found, later) == {
        "threads": [found["threads"], 99],
        "versions.torch": [found["versions"]["torch"], "9"],
    }
