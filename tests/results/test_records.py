import json
import os
from pathlib import Path

import pytest
from result_samples import sample

from results import record as records
from results.record import Metric, RecordError


def test_a_record_read_back_is_the_record_written(tmp_path):
    metric = Metric.over_seeds([80.0, 81.0, 85.0], n=540, ci=(77.0, 87.0), per_fold=(79.5, 80.5))
    selection = records.Selection(
        on="folds of train", metric="top1", chosen={"lr": 0.3}, score=80.0, grid=[[0.3, 80.0]]
    )
    written = sample(metrics={"top1": metric}, selection=selection, overrides={"folds": 3})
    assert records.read(records.write(written, tmp_path)) == written


def test_a_record_lies_in_its_models_folder_under_its_protocol_and_key(tmp_path):
    one = sample()
    assert records.write(one, tmp_path) == tmp_path / "swav_digits" / f"linear_digits--{one.key}.json"
    assert records.find(tmp_path, "swav_digits", "linear_digits", one.key) is not None
    assert records.find(tmp_path, "swav_digits", "knn_digits", one.key) is None


def test_equal_records_are_equal_bytes(tmp_path):
    first = records.write(sample(overrides={"b": 1, "a": 2}), tmp_path / "x").read_bytes()
    assert first == records.write(sample(overrides={"a": 2, "b": 1}), tmp_path / "y").read_bytes()
    assert first.endswith(b"}\n") and list(json.loads(first)) == sorted(json.loads(first))


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "a" * 64},
        {"data_fingerprint": "other"},
        {"protocol": "knn_digits"},
        {"version": 2},
        {"overrides": {"folds": 5}},
        {"evaluation_seed": 1},
    ],
)
def test_the_key_changes_with_everything_that_makes_another_measurement(change):
    assert sample().key != sample(**change).key


@pytest.mark.parametrize("change", [{"value": 1.0}, {"command": "x"}, {"provenance": records.Provenance(
    git=records.Git(commit=None), libraries={}, hardware={}, threads=4, seconds=9.0)}])  # fmt: skip
def test_the_key_does_not_change_with_what_was_found(change):
    assert sample().key == sample(**change).key


def test_the_same_key_again_changes_nothing(tmp_path):
    path = records.write(sample(value=80.0), tmp_path)
    before = path.read_bytes(), os.stat(path).st_mtime_ns
    assert records.write(sample(value=10.0), tmp_path) == path
    assert (path.read_bytes(), os.stat(path).st_mtime_ns) == before


def test_the_same_key_again_is_replaced_when_forced(tmp_path):
    records.write(sample(value=80.0), tmp_path)
    assert records.read(records.write(sample(value=10.0), tmp_path, force=True)).metrics["top1"].value == 10.0


def test_a_newer_record_replaces_the_older_one_of_the_same_question(tmp_path):
    old = records.write(sample(), tmp_path)
    new = records.write(sample(weights_sha256="a" * 64, version=2), tmp_path)
    assert list(records.files(tmp_path)) == [new] and not old.exists()


@pytest.mark.parametrize("change", [{"overrides": {"folds": 5}}, {"evaluation_seed": 1}, {"protocol": "knn_digits"}])
def test_a_record_of_another_question_is_kept(tmp_path, change):
    records.write(sample(), tmp_path)
    records.write(sample(weights_sha256="a" * 64, **change), tmp_path)
    assert len(list(records.files(tmp_path))) == 2


def test_another_pretraining_seed_is_another_record(tmp_path):
    records.write(sample(seed=0), tmp_path)
    records.write(sample(seed=1), tmp_path)
    assert len(list(records.files(tmp_path))) == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError):
        records.write(sample(), tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_values_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecordError, match="plain finite JSON"):
        records.write(sample(overrides={"path": Path("x")}), tmp_path)
    assert not list(records.files(tmp_path))


def _spoil(path: Path, *keys: str, value: object) -> Path:
    tree = json.loads(path.read_text())
    place = tree
    for name in keys[:-1]:
        place = place[name]
    place[keys[-1]] = value
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("metrics", "top1", "value"), "75", "metrics.top1.value"),
        (("metrics", "top1", "value"), float("nan"), "metrics.top1.value"),
        (("metrics", "top1", "top5"), 1.0, "metrics.top1.top5"),
        (("metrics",), {}, "metrics"),
        (("weights_sha256",), "abc", "weights_sha256"),
        (("form",), "quick", "form"),
        (("version",), True, "version"),
        (("schema",), 99, "schema 1, the file has 99"),
        (("model",), "../up", "model"),
        (("extra",), 1, "extra"),
    ],
)
def test_a_wrong_field_is_named_with_file_value_and_next_step(tmp_path, keys, value, said):
    path = _spoil(records.write(sample(), tmp_path), *keys, value=value)
    with pytest.raises(RecordError) as error:
        records.read(path)
    assert said in str(error.value) and str(path) in str(error.value)
    assert "python -m evaluations run linear_digits" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_file_that_is_no_record_is_a_clear_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="x.json.*measure again"):
        records.read(path)


def test_a_missing_file_and_field_are_clear_errors(tmp_path):
    with pytest.raises(RecordError, match="no such record"):
        records.read(tmp_path / "none.json")
    path = records.write(sample(), tmp_path)
    tree = json.loads(path.read_text())
    del tree["test_reads"]
    path.write_text(json.dumps(tree))
    with pytest.raises(RecordError, match="test_reads"):
        records.read(path)


def test_the_spread_over_seeds_is_the_sample_standard_deviation():
    metric = Metric.over_seeds([1.0, 2.0, 3.0])
    assert (metric.value, metric.sd, metric.per_seed) == (2.0, 1.0, (1.0, 2.0, 3.0))
    assert Metric.over_seeds([4.0]).sd is None


def test_the_interval_is_wilsons():
    low, high = records.interval(50.0, 100)  # textbook: 0.404 to 0.596
    assert (round(low, 1), round(high, 1)) == (40.4, 59.6)
    assert records.interval(100.0, 10)[1] <= 100.0 and records.interval(100.0, 10)[0] < 80


def test_the_interval_of_a_score_is_of_1_96_errors_within_its_range():
    assert records.around(50.0, 2.0) == pytest.approx((46.08, 53.92), abs=1e-3)
    assert records.around(99.0, 2.0)[1] == 100.0


def test_a_path_becomes_a_model_name():
    assert records.slug("runs/swav_digits/ab12-s0") == "runs-swav_digits-ab12-s0"
    assert sample(model=records.slug("../x/y.pth")).model == "x-y.pth"
