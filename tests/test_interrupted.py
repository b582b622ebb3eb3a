"""Ctrl-C at every door: one last line with what is kept and the command that goes on; nothing is claimed of a command that does not."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.errors import guard

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

# Whether the same command goes on where it stopped, by tests of its own: test_kill_resume, test_suite, test_rank, test_fill,
# test_fetch, test_data_commands, test_bench.
GOES_ON = {
    "reproduce swav_digits seed=1": True,
    "reproduce extend runs/a/b schedule.images=9": True,
    "reproduce labels runs/a/b --to x.csv": False,
    "reproduce runs": False,
    "evaluations run linear_digits swav_digits": True,
    "evaluations suite swav_digits 'only=*digits*'": True,
    "evaluations pair a b knn_digits": True,
    "evaluations rank 'my photos'": True,
    "evaluations cluster swav_digits 'my photos' clusters=20": True,
    "evaluations pictures swav_digits digits": True,
    "evaluations list": False,
    "results fill digits": True,
    "results --help fill": True,
    "results replay r.json": False,
    "results tables": False,
    "results figures": False,
    "results site": False,
    "zoo fetch 'swav*'": True,
    "zoo verify": False,
    "zoo export swav_digits --to onnx": False,
    "zoo data prepare imagenet-val d": True,
    "zoo data check d": False,
    "zoo data shard d --to e": False,
    "benchmarks.bench digits": True,
    "benchmarks.demo digits --seeds 1": True,
}


def stopped():
    raise KeyboardInterrupt


def begun(monkeypatch, line):
    """The manners of `python -m LINE`: what guard is given there."""
    module, *words = shlex.split(line)
    package = module if "." in module else f"{module}.__main__"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name=package)))
    monkeypatch.setattr(sys, "argv", ["x", *words])
    return getattr(importlib.import_module(package), "KEPT", {})


@pytest.mark.parametrize("line", GOES_ON)
def test_the_last_line_names_the_command_and_claims_what_is_true(monkeypatch, capsys, line):
    kept = begun(monkeypatch, line)
    assert guard(stopped, kept=kept) == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    said, command = last.split(": python -m ")
    assert shlex.split(command) == shlex.split(line)
    assert (said.endswith(" kept. Go on") and len(said) > 25) if GOES_ON[line] else said == "interrupted. Once more", (
        last
    )


def test_every_door_hands_its_table_to_guard():
    for name in ("reproduce", "evaluations", "results", "zoo"):
        assert "KEPT))" in (ROOT / name / "__main__.py").read_text().replace("kept=", ""), name
    for name in ("bench", "demo"):
        assert "guard(main, kept=KEPT)" in (ROOT / "benchmarks" / f"{name}.py").read_text(), name


def test_one_of_several_processes_says_it_and_names_no_command_that_is_not_the_launchers(monkeypatch, capsys):
    kept = begun(monkeypatch, "reproduce swav_digits")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert guard(stopped, kept=kept) == 130
    assert capsys.readouterr().err.strip().endswith("Go on: the same command")
    assert guard(stopped, lambda: "process 1 of 2: ", kept) == 130 and capsys.readouterr().err == ""


def test_a_training_that_saved_after_a_signal_keeps_its_status(monkeypatch, capsys):
    kept = begun(monkeypatch, "reproduce swav_digits")

    def leaves(status):
        raise SystemExit(status)

    for status, says in ((130, True), (143, True), (0, False), (2, False), (138, False)):
        with pytest.raises(SystemExit) as left:
            guard(lambda status=status: leaves(status), kept=kept)
        assert left.value.code == status and ("Go on: " in capsys.readouterr().err) == says


def interrupted(command, moment, patience=300):
    """Ctrl-C as a terminal sends it, to the whole group, as soon as moment() holds; (exit status, what it said on stderr)."""
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)[1:]],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + patience
    while not moment():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the moment never came:\n{process.communicate()[1]}")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=patience)[1]
    assert "Traceback" not in said, said
    return process.returncode, said.strip().splitlines()[-1]


def goes_on(last):
    """Run the command that the last line names, word for word."""
    words = shlex.split(last.split("Go on: ")[1])
    assert words[0] == "python"
    return subprocess.run([sys.executable, *words[1:]], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True)


SMALL = "backbone.options.width=8 batch=16 schedule.images=3200 schedule.warmup_epochs=0 tensorboard=false device=cpu log_interval=1"


def test_a_pretraining_goes_on_with_the_printed_command(tmp_path):
    out = tmp_path / "my runs"
    command = shlex.join(shlex.split(f"python -m reproduce simclr_digits {SMALL}") + [f"out={out}"])

    def lines():
        return [line for log in out.glob("*/*/log.jsonl") for line in log.read_text().splitlines()]

    status, last = interrupted(command, lambda: len(lines()) > 5)
    assert status == 130 and last.startswith("interrupted; ")
    assert last.endswith(f"Go on: {command}") and not list(out.glob("*/*/weights.pth"))
    goes_on(last)
    events = [json.loads(line) for line in lines()]
    assert list(out.glob("*/*/weights.pth")) and [e for e in events if e.get("event") == "resumed" and e["step"] > 0]


def test_a_suite_goes_on_with_the_printed_command(tmp_path):
    out = tmp_path / "my runs"
    command = shlex.join(
        ["python", "-m", "evaluations", "suite", "pixels_digits", "only=[kc][nl]*_digits", f"out={out}"]
    )

    def records():
        return {path: path.stat().st_mtime_ns for path in out.glob("measured/*/*.json")}

    status, last = interrupted(command, records)
    first = records()
    assert status == 130 and last.endswith(f"are kept. Go on: {command}") and len(first) == 1
    goes_on(last)
    assert len(records()) > 1 and first.items() <= records().items(), "what was finished is not measured again"


def test_filling_waits_for_the_command_that_saves(tmp_path, monkeypatch):
    """subprocess.run would give it a quarter of a second and then kill it."""
    from results import fill

    work = "import signal, sys, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: time.sleep(1.0); open(sys.argv[1], 'w').close()"
    said = tmp_path / "saved"
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))  # this process alone is told
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    with pytest.raises(KeyboardInterrupt):
        fill._run(["python", "-c", work, str(said)])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert said.exists()
