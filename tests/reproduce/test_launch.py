"""The front door of pre-training: plans, errors of one line, runs that go on, runs that are done."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import zoo
from engine.folder import lock
from reproduce import launch
from reproduce.__main__ import main
from zoo.errors import UserError, guard

SMALL = {"backbone.options.width": 16, "batch": 32, "schedule.images": 160, "tensorboard": False}


def command(capsys, *words: str) -> tuple[int, str, str]:
    status = guard(lambda: main(list(words)))
    out, err = capsys.readouterr()
    return status, out, err


def small(tmp_path, **more) -> list[str]:
    return [f"{k}={v}" for k, v in {**SMALL, "out": tmp_path, **more}.items()]


@pytest.mark.parametrize(
    "words, told",
    [
        (["swav_digit"], ["swav_digit", "did you mean 'swav_digits'"]),
        (["swav_digits", "optimzer.lr=1"], ["optimzer.lr", "did you mean 'optimizer.lr'"]),
        (["swav_digits", "optimizer.lr=fast"], ["optimizer.lr", "fast"]),
        (["swav_digits", "params.epsilon=-1"], ["params.epsilon", "-1", "greater than 0"]),
        (["swav_digits", "loginterval=5"], ["loginterval", "did you mean 'log_interval'"]),
        (["swav_digits", "lr"], ["'lr'", "path=value"]),
        (["swav_digits", "batch=4000"], ["batch=4000", "1258 images", "batch=1258"]),
        (["swav_digits", "views.crops.0.count=1"], ["at least 2 views", "views.crops.0.count=2"]),
        (["swav_800ep", "data=/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["swav_800ep", "data=/no/such/folder", "--plan"], ["/no/such/folder", "does not exist"]),
        (["swav_digits", "dataset=/no/such/folder", "--plan"], ["/no/such/folder", "does not exist"]),
        (["swav_digits", "dataset=images", "data=/no/such/folder", "--plan"], ["/no/such/folder", "does not exist"]),
        (["swav_digits", "split=fit@/no/such/list.txt", "--plan"], ["/no/such/list.txt", "no such file"]),
        (["swav_digits", "init=/no/such/weights.pth", "--plan"], ["/no/such/weights.pth", "no such"]),
        (["swav_digits", "init=random_digits", "--plan"], ["random_digits"]),
        (["pseudolabel_digits", "params.labels=/no/such/labels.npz", "--plan"], ["/no/such/labels.npz"]),
        (["swav_digits", "dataset=imagnet"], ["imagnet", "did you mean 'imagenet'"]),
    ],
)
def test_a_mistake_is_one_line_that_names_value_and_remedy(capsys, tmp_path, words, told):
    status, out, err = command(capsys, *words, f"out={tmp_path}")
    assert status == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in told), err
    assert not list(tmp_path.rglob("*.*"))  # nothing half-written


def test_a_place_for_data_that_does_not_exist_is_an_error_for_a_plan_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SELFZOO_DATA", str(tmp_path / "nowhere"))
    status, out, err = command(capsys, "swav_800ep", "--plan")
    assert (
        status == 2 and not out and f"SELFZOO_DATA={tmp_path / 'nowhere'} is no folder" in err and err.count("\n") == 1
    )
    monkeypatch.setenv("SELFZOO_DATA", str(tmp_path))  # a folder that has not got the set: it is said
    status, out, _ = command(capsys, "swav_800ep", "--plan")
    assert status == 0 and "NOT FOUND" in out


def test_python_m_reproduce_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "no_such_model"])
    monkeypatch.delitem(sys.modules, "reproduce.__main__")  # imported above: runpy wants it unread
    with pytest.raises(SystemExit) as left:
        runpy.run_module("reproduce", run_name="__main__")
    assert left.value.code == 2 and "no_such_model" in capsys.readouterr().err


def test_processes_that_cannot_share_the_batch_are_told_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    status, _, err = command(capsys, "swav_digits", "--plan", f"out={tmp_path}")
    assert status == 2 and "3 processes" in err and "batch=129" in err
    monkeypatch.setenv("WORLD_SIZE", "many")
    status, _, err = command(capsys, "swav_digits", "--plan", f"out={tmp_path}")
    assert status == 2 and "WORLD_SIZE=many: not a whole number" in err and err.count("\n") == 1


def test_the_plan_says_steps_images_memory_data_and_folder_and_writes_nothing(capsys, tmp_path):
    status, out, _ = command(capsys, "swav_digits", "--plan", *small(tmp_path))
    assert status == 0 and not list(tmp_path.iterdir())
    for part in (
        "swav",
        "digits/train, found: 1,258 images",
        "160 seen",
        "2x10",
        "32 = 1 process x 32",
        "39",
        "5 = ",
        "MiB a process",
        str(tmp_path / "swav_digits"),
        "(new)",
        "settings changed",
    ):
        assert part in out, part


def test_the_plan_of_a_large_recipe_needs_neither_data_nor_memory(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "64")
    status, out, _ = command(capsys, "swav_800ep", "--plan")
    assert status == 0
    for part in (
        "NOT FOUND",
        "1,281,167 in an epoch",
        "249,600 = 800 epochs of 312",
        "64 processes x 64",
        "28,354,752",
    ):
        assert part in out, part


def test_the_plan_of_a_set_of_unknown_size_says_how_to_get_it_and_leaves_its_steps_open(capsys, monkeypatch):
    monkeypatch.delenv("SELFZOO_DATA", raising=False)
    status, out, _ = command(
        capsys, "simclr_digits", "dataset=images", "schedule.images=null", "schedule.epochs=100", "--plan"
    )
    assert status == 0
    for part in (
        "images/train, NOT FOUND",
        "Next: say data=PATH",
        "known when the data are here",
        "100 epochs of as many",
        "parameters",
    ):
        assert part in out, part
    assert f"{1 << 20:,}" not in out, "the stand-in's size is nobody's number"
    status, out, _ = command(capsys, "simclr_digits", "dataset=images", "schedule.images=6400", "batch=64", "--plan")
    assert status == 0 and "6,400 seen in all; how many" in out and "steps      100\n" in out
    status, _, err = command(capsys, "deepercluster_vgg16_yfcc", "--plan", "data=/nowhere")
    assert status == 2 and "data=/nowhere does not exist" in err


def test_the_plan_of_yfcc_has_the_number_of_usable_photographs(capsys, monkeypatch):
    monkeypatch.delenv("SELFZOO_DATA", raising=False)
    status, out, _ = command(capsys, "deepercluster_vgg16_yfcc", "--plan")
    assert status == 0
    for part in ("yfcc100m/train, NOT FOUND", "Next: put the zips", "95,920,149 in an epoch", "= 100 epochs of 31,224"):
        assert part in out, part


def test_a_run_writes_its_files_and_the_next_command_and_a_second_call_does_nothing(capsys, tmp_path):
    status, out, _ = command(capsys, "simclr_digits", *small(tmp_path))
    [folder] = (tmp_path / "simclr_digits").iterdir()
    assert status == 0 and "finished: 5 steps" in out
    for name in ("recipe.yaml", "provenance.json", "log.jsonl", "weights.pth", "done.json"):
        assert (folder / name).exists() and f"{folder / name}" in out
    assert f"python -m evaluations run linear_digits {folder}" in out
    recipe = zoo.load_recipe(folder / "recipe.yaml")
    assert folder.name == f"{recipe.hash()}-s0" and recipe.batch == 32
    origin = json.loads((folder / "provenance.json").read_text())
    assert (
        origin["data"]["images"] == 1258
        and origin["id"] == "simclr_digits"
        and len(origin["data"]["fingerprint"]) == 32
    )
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    status, out, _ = command(capsys, "simclr_digits", *small(tmp_path))
    assert status == 0 and "finished before" in out
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_the_same_command_goes_on_where_it_stopped_and_resume_false_starts_again(capsys, tmp_path):
    words = ["rotnet_digits", *small(tmp_path, checkpoint_interval=2)]
    status, out, _ = command(capsys, *words, "stop_after=3")
    assert status == 0 and "stopped at step 3" in out
    status, out, err = command(capsys, *words, "--plan")
    assert "unfinished: would go on" in out
    status, out, err = command(capsys, *words)
    assert "resumed at step 3" in err and "finished: 5 steps" in out
    [folder] = (tmp_path / "rotnet_digits").iterdir()
    assert any(json.loads(line).get("event") == "resumed" for line in (folder / "log.jsonl").read_text().splitlines())
    weights = torch.load(folder / "weights.pth", weights_only=True)
    status, out, err = command(capsys, *words, "resume=false")
    assert "finished: 5 steps" in out and "resumed" not in err
    again = torch.load(folder / "weights.pth", weights_only=True)
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_a_folder_that_another_process_holds_is_refused(capsys, tmp_path):
    work = launch.job("rotnet_digits", {**SMALL, "out": str(tmp_path)})
    work.folder.mkdir(parents=True)
    with lock(work.folder):
        status, _, err = command(capsys, "rotnet_digits", *small(tmp_path))
    assert status == 2 and "in use by" in err and err.count("\n") == 1


def test_pretrain_is_a_function_that_can_be_quiet(capsys, tmp_path):
    folder = launch.pretrain("random_digits", {"out": str(tmp_path), "seed": 3}, quiet=True)
    out, err = capsys.readouterr()
    assert (folder / "weights.pth").exists() and folder.name.endswith("-s3") and not out and not err
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["seed"] == 3


def test_seeds_change_the_weights_and_the_folder_not_the_hash(tmp_path):
    runs = [launch.pretrain("random_digits", {"out": str(tmp_path), "seed": s}, quiet=True) for s in (0, 1)]
    assert runs[0].name.split("-")[0] == runs[1].name.split("-")[0]
    a, b = (torch.load(r / "weights.pth", weights_only=True)["module.conv1.weight"] for r in runs)
    assert not torch.equal(a, b)


def test_init_starts_from_the_weights_of_another_run_through_the_same_contract(tmp_path):
    first = launch.pretrain("random_digits", {"out": str(tmp_path), "seed": 5}, quiet=True)
    second = launch.pretrain("random_digits", {"out": str(tmp_path), "init": str(first)}, quiet=True)
    a, b = (torch.load(r / "weights.pth", weights_only=True) for r in (first, second))
    assert all(torch.equal(a[k], b[k]) for k in a) and first.name[:10] != second.name[:10]


def test_the_next_command_names_the_id_only_for_the_registrys_own_recipe():
    plain = launch.job("swav_digits", {"seed": 2, "out": "elsewhere"})
    assert launch.next_command(plain).endswith("run linear_digits swav_digits pretrain_seed=2 out=elsewhere")
    changed = launch.job("swav_digits", {"optimizer.lr": 0.5})
    assert str(changed.folder) in launch.next_command(changed)
    large = launch.job("swav_800ep", {})
    assert launch.next_command(large) == f"python -m evaluations suite {large.folder}"


def test_a_model_without_a_recipe_cannot_be_run(monkeypatch):
    entry = zoo.entry("swav_800ep").model_copy(update={"recipe": None})
    monkeypatch.setattr(zoo, "entry", lambda name: entry)
    with pytest.raises(UserError, match="never released"):
        launch.job("swav_800ep")


def test_labels_of_a_clustering_run_are_written_in_the_order_of_the_data(capsys, tmp_path):
    words = ["deepclusterv2_digits", *small(tmp_path), "params.prototypes=[12, 9]"]
    assert command(capsys, *words)[0] == 0
    [folder] = (tmp_path / "deepclusterv2_digits").iterdir()
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)["extra"]["labels"]
    status, out, _ = command(capsys, "labels", str(folder), "--to", str(tmp_path / "labels.pth"))
    assert status == 0 and "2 heads x 1258 images" in out
    assert torch.equal(
        torch.load(tmp_path / "labels.pth", weights_only=True)["labels"], kept.where(kept >= 0, torch.tensor(-1))
    )
    assert int(kept[1].max()) < 9


def test_a_run_without_labels_and_a_folder_that_is_no_run_say_so(capsys, tmp_path):
    assert command(capsys, "rotnet_digits", *small(tmp_path))[0] == 0
    [folder] = (tmp_path / "rotnet_digits").iterdir()
    for place, told in ((folder, "no labels in it"), (tmp_path, "no such file")):
        status, _, err = command(capsys, "labels", str(place), "--to", str(tmp_path / "x.csv"))
        assert status == 2 and told in err and not (tmp_path / "x.csv").exists()


def processes(tmp_path, *words, data=("", "")):
    """Two processes of the command as torchrun starts them; (exit status, stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        env = {
            **os.environ,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "-m",
            "reproduce",
            *words,
            *small(tmp_path / "runs"),
            *([data[rank]] if data[rank] else []),
        ]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    said = [process.communicate(timeout=120)[1] for process in started]
    return [process.returncode for process in started], said


def test_what_fails_on_one_process_is_told_by_the_first_and_ends_all(tmp_path):
    whole = painted(tmp_path / "whole")
    statuses, said = processes(
        tmp_path, "swav_digits", "dataset=folder", data=(f"data={whole}", "data=/no/such/folder")
    )
    assert statuses == [2, 2] and said[1] == ""
    assert said[0].startswith("error: process 1 of 2: ") and "/no/such/folder" in said[0] and said[0].count("\n") == 1


def test_processes_that_see_other_images_are_told_at_once(tmp_path):
    """As where a machine's copy of a folder is incomplete, or has another picture under a name."""
    whole, other = painted(tmp_path / "whole"), painted(tmp_path / "other")
    Image.new("L", (10, 10)).save(other / "train" / "a" / "0.png")
    statuses, said = processes(tmp_path, "swav_digits", "dataset=folder", data=(f"data={whole}", f"data={other}"))
    assert statuses == [2, 2] and said[1] == ""
    assert (
        said[0].startswith("error: process 1 of 2: folder/train: 160 images with fingerprint ")
        and said[0].count("\n") == 1
    )
    assert not list((tmp_path / "runs").rglob("checkpoint.pt"))


def painted(folder):
    """160 pictures of 10 x 10 in two folders."""
    for number in range(160):
        path = folder / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (10, 10), dtype=np.uint8)).save(path)
    return folder


def test_a_signal_to_the_whole_group_of_processes_saves_and_the_run_goes_on(tmp_path):
    """scancel, torchrun and Ctrl-C signal the workers too: they are left to the main process, which needs them for its last step."""
    words = [
        *small(tmp_path, **{"schedule.images": 32 * 4000, "log_interval": 1}),
        f"data={painted(tmp_path / 'own')}",
        "dataset=folder",
        "workers=2",
    ]
    command = [sys.executable, "-m", "reproduce", "simclr_digits", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while not any('"step": 3' in log.read_text() for log in tmp_path.glob("simclr_digits/*/log.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in said, said
    assert "the same command goes on from here" in said
    (saved,) = tmp_path.glob("simclr_digits/*/checkpoint.pt")
    assert torch.load(saved, weights_only=True)["step"] >= 3
