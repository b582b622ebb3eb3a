import pytest
from result_fakes import catalogue
from result_samples import sample

from engine.options import RunOptions
from results.compare import allowance, changes, compare, report
from results.record import Metric, write
from results.store import RecordStore
from zoo.errors import UserError


def compared(tmp_path, *values, model="swav_big", **options):
    for seed, value in enumerate(values):
        write(sample(model, seed=seed, value=value, protocol="linear_big", **options), tmp_path)
    return compare(model, RecordStore([tmp_path]), catalogue(tmp_path))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((75.1, 75.2, 75.3), "agrees"),
        ((74.0, 74.1, 74.2), "below"),
        ((76.4, 76.5, 76.6), "above"),
        ((), "not measured"),
    ],
)
def test_the_verdict_allows_for_the_spread_of_the_seeds(tmp_path, values, verdict):
    (found,) = compared(tmp_path, *values)
    assert found.verdict == verdict


def test_the_allowance_is_two_deviations_of_a_draw_against_a_mean(tmp_path):
    (found,) = compared(tmp_path, 74.0, 75.0, 76.0)
    assert (
        found.allowed == pytest.approx(2 * 1.0 * (1 + 1 / 3) ** 0.5 + 0.05)
        and found.spread_from == "3 pre-training seeds"
    )


def test_without_seeds_the_sampling_error_of_the_test_split_is_named(tmp_path):
    write(sample(seed=None, metrics={"top1": Metric(value=75.0, n=50_000)}), tmp_path)
    allowed, source = allowance(RecordStore([tmp_path]).summary("swav_digits", "linear_digits", 1, "top1"))
    assert allowed == pytest.approx(0.38 + 0.05, abs=0.01) and "50000 test samples" in source


def test_evaluation_seeds_are_a_spread_when_weights_are_fixed(tmp_path):
    write(sample(seed=None, metrics={"top1": Metric.over_seeds([74.0, 76.0])}), tmp_path)
    allowed, source = allowance(RecordStore([tmp_path]).summary("swav_digits", "linear_digits", 1, "top1"))
    assert source == "2 evaluation seeds" and allowed == pytest.approx(2 * 2**0.5 * 1.5**0.5 + 0.05)


def test_a_difference_comes_with_its_likely_reasons(tmp_path):
    metrics = {"top1": Metric(value=70.0), "top1_best_on_test": Metric(value=71.0, style="paper")}
    command = "python -m reproduce swav_big seed=0 schedule.epochs=50 out=x"
    compared(tmp_path)
    write(sample("swav_big", metrics=metrics, protocol="linear_big", pretrain_command=command), tmp_path)
    found = compare("swav_big", RecordStore([tmp_path]), catalogue(tmp_path))
    said = "\n".join(next(c for c in found if c.metric == "top1").reasons)
    assert "fast form" in said and "schedule.epochs=50" in said and "71.00" in said and "a test" in said
    text = report(found)
    assert "top1 is below" in text and "authors/code:README.md" in text and "linear_big--" in text


def test_agreement_needs_no_excuses(tmp_path):
    assert compared(tmp_path, 75.2, 75.3, 75.4)[0].reasons == ()


def test_measurements_that_nobody_published_are_listed_too(tmp_path):
    (found,) = compared(tmp_path, 80.0, 81.0, model="swav_digits")
    assert found.verdict == "not published" and "80.5 ± 0.7 / 3.0 (2)" in report([found])


def test_a_measurement_with_other_settings_is_not_held_against_the_published_one(tmp_path):
    compared(tmp_path)
    write(sample("swav_big", value=75.3, protocol="linear_big", overrides={"head.epochs": 1}), tmp_path)
    (found,) = compare("swav_big", RecordStore([tmp_path]), catalogue(tmp_path))
    assert found.verdict == "not measured"


def test_an_unknown_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="unknown model"):
        compare("swaw", RecordStore([tmp_path]), catalogue(tmp_path))


def test_changed_settings_are_read_off_the_command():
    how = " ".join(f"{name}=1" for name in RunOptions.names())
    command = f"python -m reproduce m seed=1 {how} optimizer.lr=1 batch=64 --plan"
    assert changes(command) == ["optimizer.lr=1", "batch=64"] and changes(None) == []
