"""Replays of made-up records with a stand-in for the processes; one real record is replayed in test_replayed_record."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from result_samples import PROVENANCE, sample

from results.record import Metric, write
from results.replay import DRIFT, drift, environment_differences, flips, replay, report, rewrite
from zoo.errors import UserError


def again(tmp_path, recorded, made):
    """Replay ``recorded`` where the evaluation writes ``made``; returns (outcome, the commands that ran)."""
    path = write(recorded, tmp_path / "measured")
    ran = []

    def run(words, environment):
        ran.append(list(words))
        if "evaluations" in words and made is not None:
            write(made, Path(next(w for w in words if w.startswith("out="))[4:]) / "measured")

    return replay(path, run=run), ran


def test_equal_numbers_on_the_same_surroundings_agree(tmp_path):
    outcome, ran = again(tmp_path, sample(), sample())
    assert outcome.agrees and outcome.allowed == {"top1": 0}
    assert [w[1:4] for w in ran] == [["-m", "reproduce", "swav_digits"], ["-m", "evaluations", "run"]]
    assert "agrees with the record" in report(outcome)


def test_on_the_same_surroundings_the_last_digit_counts(tmp_path):
    outcome, _ = again(tmp_path, sample(value=80.0), sample(value=80.0000001))
    assert not outcome.agrees and "DIFFERS" in report(outcome) and "DOES NOT AGREE" in report(outcome)


MOVED = drift("linear_digits", ["top1"])["top1"]


@pytest.mark.parametrize(("by", "agrees"), [(MOVED - 0.01, True), (MOVED + 0.01, False)])
@pytest.mark.parametrize(
    "change", [{"libraries": {"torch": "2.99"}}, {"hardware": {"device": "cpu", "name": "another"}}, {"threads": 8}]
)
def test_elsewhere_a_metric_may_move_by_what_was_measured(tmp_path, by, agrees, change):
    made = sample(value=80.0 + by, provenance=replace(PROVENANCE, **change))
    outcome, _ = again(tmp_path, sample(value=80.0), made)
    assert outcome.agrees is agrees and outcome.allowed == {"top1": MOVED}
    assert (
        next(iter(change)) in report(outcome)
        or "torch 2.10.0 -> 2.99" in report(outcome)
        or "name a test" in report(outcome)
    )


@pytest.mark.parametrize(
    "old, new, said",
    [
        ({}, {"kernels": "AVX512"}, []),  # older records do not name what the CPU itself decides
        ({"kernels": "AVX512"}, {"kernels": "AVX512", "cores": 64, "memory_gib": 3}, []),
        ({}, {"kernels": "AVX2, ATEN_CPU_CAPABILITY=avx2"}, ["kernels None -> AVX2, ATEN_CPU_CAPABILITY=avx2"]),
        ({"kernels": "AVX512"}, {"cpu": "another", "kernels": "AVX2"}, ["cpu one -> another"]),
    ],
)
def test_the_same_kind_of_cpu_is_one_name_with_kernels_of_its_own(old, new, said):
    base = {"cpu": "one", "cores": 2}
    records = [sample(provenance=replace(PROVENANCE, hardware={**base, **more})) for more in (old, new)]
    assert environment_differences(*records) == said


def test_the_drift_is_that_of_the_measured_rows():
    told = json.loads(DRIFT.read_text())
    knn = [
        r["values"].values()
        for r in told["rows"] + told["reported"]
        if (r["protocol"], r["metric"]) == ("knn_digits", "top1")
    ]
    assert (
        drift("knn_digits", ["top1"])["top1"]
        == pytest.approx(max(max(v) - min(v) for v in knn))
        == pytest.approx(97.22 - 94.43)
    )
    largest = max(max(r["values"].values()) - min(r["values"].values()) for r in told["rows"])
    assert drift("linear_imagenet", ["top1"])["top1"] == pytest.approx(largest, abs=1e-3)
    changed, of = flips()
    assert of == len(told["verdicts"]) and 0 <= changed < of and all(len(r["marks"]) == 3 for r in told["verdicts"])


def test_the_docs_quote_the_drift():
    text, told = (
        (DRIFT.parents[1] / "docs" / "results.md").read_text(encoding="utf-8"),
        json.loads(DRIFT.read_text(encoding="utf-8")),
    )
    assert "{} of {} verdicts".format(*flips()) in text and told["command"] in text
    asked = {
        "knn_digits": ["top1"],
        "linear_digits": ["top1"],
        "fewlabel_digits": ["top1"],
        "cluster_digits": ["nmi", "hungarian"],
    }
    for protocol, metrics in asked.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{protocol}`")]
        assert f"| {'; '.join(f'{v:.2f}' for v in drift(protocol, metrics).values())} |" in line


def test_a_metric_that_is_gone_does_not_agree(tmp_path):
    outcome, _ = again(tmp_path, sample(), sample(metrics={"other": Metric(value=80.0)}))
    assert not outcome.agrees and "absent" in report(outcome)


def test_a_record_of_released_weights_is_only_evaluated(tmp_path):
    _, ran = again(tmp_path, sample(pretrain_command=None), sample(pretrain_command=None))
    assert [w[2] for w in ran] == ["evaluations"]


@pytest.mark.parametrize("made", [None, sample(version=2), sample(seed=3), sample(overrides={"folds": 3})])
def test_a_replay_that_made_another_record_is_an_error(tmp_path, made):
    with pytest.raises(UserError, match="made no record of swav_digits linear_digits@1"):
        again(tmp_path, sample(), made)


def test_commands_run_in_a_fresh_folder_with_this_python_and_not_into_the_committed_records():
    words = rewrite("python -m evaluations run p m seed=1 out=runs data=old --record", "/tmp/new", None, "r.json")
    assert words == [sys.executable, "-m", "evaluations", "run", "p", "m", "seed=1", "data=old", "out=/tmp/new"]
    assert rewrite("python3 -m reproduce m data=old", "/n", "/d", "r")[3:] == ["m", "out=/n", "data=/d"]
    several = rewrite("torchrun --nproc_per_node=2 -m reproduce m", "/n", None, "r")
    assert several[1:] == ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "reproduce", "m", "out=/n"]


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf x",
        "python -c 'print(1)'",
        "python -m http.server",
        "",
        "bash -m reproduce",
        "python x.py -m reproduce",
        "torchrun --no-python -m reproduce",
        "python -m reproducer",
    ],
)
def test_a_record_cannot_choose_a_program(command):
    with pytest.raises(UserError, match="is not run"):
        rewrite(command, "/tmp/new", None, "r.json")


def test_a_command_that_fails_is_an_error_with_its_last_words(tmp_path):
    path = write(sample(command="python -m evaluations no-such-command", pretrain_command=None), tmp_path)
    with pytest.raises(UserError, match="no-such-command .*ended with status"):
        replay(path)
