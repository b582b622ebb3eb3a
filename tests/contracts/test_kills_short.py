"""The short form of `make test-kills`: a few runs killed at random and while a checkpoint is written; and that it can fail."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import kills
from tests.kills import Case


@pytest.mark.parametrize(
    "case",
    [
        Case("simsiam", 1),
        Case("deepercluster in two levels", 2),
        Case("simclr", 1, workers=1),
        Case("detr_scenes", 1, workers=1),
    ],
    ids=lambda case: f"{case.name} x {case.size}, {case.workers} workers",
)
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(case, tmp_path):
    kills.judge(case, tmp_path, random.Random(1), 3)
    assert case.kills == 3 and case.same and case.while_writing


@pytest.mark.parametrize(("name", "other"), [("simsiam", "simclr"), ("detect_scenes", "segment_scenes")])
def test_a_run_that_ends_otherwise_is_told(name, other, tmp_path, monkeypatch):
    """The undisturbed run of another recipe is no witness."""
    plain, names = kills.start, iter([name, *[other] * 20])
    monkeypatch.setattr(kills, "start", lambda case, folder: plain(Case(next(names), case.size), folder))
    case = kills.judge(Case(name, 1), tmp_path, random.Random(1), 1)
    assert case.kills == 1 and not case.same and "| NO |" in kills.report([case], 0)


def test_workers_read_the_files_of_a_case_with_workers(tmp_path):
    """A source in memory would leave them without work."""
    kills.prepare(case := Case("simclr", 1, workers=2), tmp_path)
    images = kills.tools.files(tmp_path / "files")
    recipe = kills.tools.recipe(case.name)
    batches = kills.tools.stream(recipe, kills.tools.build(recipe), images=images, workers=case.workers)
    next(iter(batches.epoch(0)))
    assert batches._loader is not None and batches._loader.num_workers == 2
    assert (images.pixels(3) == kills.tools.source().pixels(3)).all() and (
        images.labels == kills.tools.source().labels
    ).all()


def test_every_method_and_detector_is_among_the_cases_of_the_committed_report_and_ended_with_the_same_bits():
    found = kills.earlier(Path(kills.__file__).with_name("KILLS.md"))
    kinds = {(case.name, case.size, case.workers) for case in found}
    assert {(case.name, case.size, case.workers) for case in kills.every()} <= kinds
    assert all(case.same for case in found) and sum(case.kills for case in found) >= 100
    assert sum(case.after_checkpoint for case in found) >= 80


def test_rows_of_an_earlier_report_stay_and_those_that_ran_again_are_replaced(tmp_path):
    old = [Case("swav", 1, 0, 4, 3, 2, True), Case("swav", 1, 2, 4, 1, 1, True)]
    (tmp_path / "report.md").write_text(kills.report(old, 0))
    assert kills.earlier(tmp_path / "report.md") == old and kills.earlier(tmp_path / "none.md") == []
    new = [Case("swav", 1, 2, 3, 2, 0, False), Case("pic", 2, 0, 1, 0, 1, True)]
    assert kills.merged(old, new) == [old[0], *new]
    assert "8 SIGKILLs, 5 of them after a first checkpoint, 3 while" in kills.report(kills.merged(old, new), 0)
