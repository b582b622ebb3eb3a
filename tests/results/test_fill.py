"""``python -m results fill``: what is missing is found, ordered and, on a laptop table, really made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from results import fill as filling
from results import missing as lacking
from results.published import Catalogue
from results.record import COMMITTED, read
from results.store import RecordStore
from results.tables import load, pick
from zoo.errors import UserError

FOUR = ["linear_digits", "fewlabel_digits", "knn_digits", "cluster_digits"]


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The committed records without the row of raw pixels, which needs no pre-training."""
    copy = tmp_path / "committed"
    shutil.copytree(COMMITTED, copy)
    shutil.rmtree(copy / "pixels_digits")
    return copy


def here(words):
    """A command of this project in this process: its exit status."""
    import evaluations.__main__
    import reproduce.__main__

    mains = {"reproduce": reproduce.__main__.main, "evaluations": evaluations.__main__.main}
    return mains[words[2]](list(words[3:]))


def value(page: str, row: str) -> list[float]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {row} "))
    return [float(re.match(r"[\d.]+", cell.strip())[0]) for cell in line.split("|")[2:-1] if "±" in cell]


def test_a_deleted_row_comes_back_and_an_interrupted_filling_goes_on(tmp_path, committed, capsys):
    done = []

    def stops_at_the_fourth(words):
        done.append(words)
        if len(done) == 4:
            raise KeyboardInterrupt
        return here(words)

    with pytest.raises(KeyboardInterrupt):
        filling.fill("digits", out=tmp_path / "runs", runner=stops_at_the_fourth, committed=committed)
    assert [words[2] for words in done] == ["reproduce", *["evaluations"] * 3]
    done.clear()
    capsys.readouterr()

    def notes(words):
        done.append(words)
        return here(words)

    assert filling.fill("digits", out=tmp_path / "runs", runner=notes, committed=committed) == 0
    assert [words[4] for words in done if words[2] == "evaluations"] == FOUR[2:]  # the first two are kept
    page = capsys.readouterr().out
    official = (COMMITTED.parent / "tables" / "digits.md").read_text()
    assert value(page, "pixels_digits") == pytest.approx(value(official, "pixels_digits"), abs=1.0)
    assert "swav_digits`, linear: " in page  # ends with the verdicts
    assert filling.fill("digits", out=tmp_path / "runs", runner=pytest.fail, committed=committed) == 0
    assert "digits: no empty measured cell" in capsys.readouterr().out


def test_what_fails_is_told_at_the_end_and_the_rest_goes_on(tmp_path, committed, capsys):
    def knn_fails(words):
        return 2 if "knn_digits" in words else 0

    assert filling.fill("digits", out=tmp_path / "runs", runner=knn_fails, committed=committed) == 2
    out, err = capsys.readouterr()
    assert "knn_digits pixels_digits" in err and "ended with status 2" in err
    assert out.count("$ python -m evaluations") == 4 and "still to be made; the same command goes on" in out


def test_without_weights_nothing_is_evaluated(tmp_path, committed, capsys):
    done = []

    def no_training(words):
        done.append(words[2])
        return 2 if words[2] == "reproduce" else 0

    assert filling.fill("digits", out=tmp_path / "runs", runner=no_training, committed=committed) == 2
    assert done == ["reproduce"]


def test_a_missing_seed_of_committed_records_asks_for_all_seeds_elsewhere_and_for_one_in_place(tmp_path, committed):
    (gone,) = [p for p in (committed / "swav_digits").glob("knn_digits--*.json") if read(p).pretrain_seed == 0]
    gone.unlink()
    table, catalogue = pick(load(), "digits")[0], Catalogue()

    def wanted(roots, record):
        runs = lacking.missing(table, roots, catalogue, out=tmp_path, record=record)
        return [r.seed for r in runs if r.model == "swav_digits"]

    assert sorted(wanted([committed, tmp_path / "measured"], False)) == [0, 1, 2]  # own records replace a cell's
    assert wanted([committed], True) == [0]


def test_cheapest_first_and_with_its_reasons(monkeypatch):
    monkeypatch.setattr(lacking, "_gpu", lambda given: False)
    monkeypatch.delenv("SELFZOO_DATA", raising=False)
    runs = lacking.missing(pick(load(), "pic")[0], [COMMITTED], Catalogue())
    by_name = {run.model: run for run in runs}
    assert by_name["pic_200ep"].first == ("python", "-m", "zoo", "fetch", "pic_200ep")
    assert by_name["pic_200ep"].evaluations[0].words[4:] == ("linear_imagenet_pic", "pic_200ep")
    simclr = by_name["simclr_pic_100ep"]  # nobody released it, and its authors measured it by another probe
    assert simclr.first[:4] == ("python", "-m", "reproduce", "simclr_pic_100ep")
    assert simclr.evaluations[0].protocol == "linear_imagenet_pic_simclr"
    assert filling._short(filling._lacks(simclr)) == ["data imagenet", "a GPU"]
    assert not simclr.ready and "put train/<class>" in filling.report("pic", runs, {})
    scenes = lacking.missing(pick(load(), "scenes")[0], [COMMITTED], Catalogue())
    assert [r.cost for r in scenes] == sorted(r.cost for r in scenes)


@pytest.mark.parametrize("table", load(), ids=lambda table: table.id)
def test_every_command_of_every_table_names_what_exists(table):
    catalogue, models = Catalogue(), set(Catalogue().models())
    for run in lacking.missing(table, [COMMITTED], catalogue):
        assert run.model in models
        for one in run.evaluations:
            exists = (lacking.PROTOCOLS / f"{one.protocol}.yaml").is_file()
            assert exists or any("does not exist" in said for said in one.missing)


def test_a_batch_script_is_shell_that_says_how_many_gpus(monkeypatch, tmp_path):
    runs = {r.model: r for r in lacking.missing(pick(load(), "moco")[0], [COMMITTED], Catalogue())}
    runs |= {r.model: r for r in lacking.missing(pick(load(), "sela")[0], [COMMITTED], Catalogue())}
    script = filling.batch_script(runs["sela_alexnet_1k"])
    (tmp_path / "job.sh").write_text(script)
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0
    assert "#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4" in script  # batch 256
    assert "srun --kill-on-bad-exit=0 python -m reproduce sela_alexnet_1k seed=0" in script
    fetched = filling.batch_script(runs["mocov2_800ep"]).splitlines()
    assert "python -m zoo fetch mocov2_800ep || exit $?" in fetched  # by one process


@pytest.mark.parametrize(
    "status, after", [(0, "evaluated"), (138, "queued"), (140, "queued"), (143, "neither"), (1, "neither")]
)
def test_a_batch_script_is_queued_again_after_a_notice_and_evaluates_only_what_is_finished(status, after, tmp_path):
    """srun and scontrol are stand-ins that note how they were called; the pre-training ends with ``status``."""
    run = next(
        r for r in lacking.missing(pick(load(), "sela")[0], [COMMITTED], Catalogue()) if r.model == "sela_alexnet_1k"
    )
    (tmp_path / "srun").write_text(
        f'#!/bin/bash\necho "srun $@" >> {tmp_path}/calls\n[[ "$*" == *reproduce* ]] && exit {status}\nexit 0\n'
    )
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "scontrol $@" >> {tmp_path}/calls\n')
    for tool in ("srun", "scontrol"):
        (tmp_path / tool).chmod(0o755)
    there = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    ended = subprocess.run(["bash", "-c", filling.batch_script(run)], check=False, env=there).returncode
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "reproduce" in calls[0] and ended == status
    said = (
        "queued"
        if calls[1:] == ["scontrol requeue 7"]
        else "evaluated"
        if len(calls) == 1 + len(run.evaluations)
        else "neither"
    )
    assert said == after and (after != "neither" or len(calls) == 1)


def test_a_setting_that_makes_another_cell_is_refused():
    with pytest.raises(UserError, match="batch=: fill passes on data, device, workers, precision only"):
        filling.fill("digits", options={"batch": 3})
    with pytest.raises(UserError, match="no table 'swav_zo'; did you mean 'swav_zoo'"):
        filling.fill("swav_zo")


def test_durations_are_medians_of_records():
    store = RecordStore([COMMITTED])
    spent = sorted(s.record.provenance.seconds for s in store.all() if s.record.protocol == "knn_digits")
    assert spent[0] <= lacking.durations(store)["knn_digits"] <= spent[-1]
