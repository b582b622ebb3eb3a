import math
import statistics

import numpy as np
import pytest
from result_samples import sample
from scipy.special import stdtrit

from results.record import Metric, write
from results.store import FALSE_ALARMS, LEVEL, RecordStore, better_than_random, welch
from zoo.errors import UserError


def store(tmp_path, *records):
    for record in records:
        write(record, tmp_path)
    return RecordStore([tmp_path])


def summary(found, model="swav_digits", metric="top1", **overrides):
    return found.summary(model, "linear_digits", 1, metric, overrides)


def test_a_summary_is_the_mean_and_sample_deviation_over_pretraining_seeds(tmp_path):
    found = summary(store(tmp_path, sample(seed=0, value=80), sample(seed=1, value=82), sample(seed=2, value=87)))
    assert found.value == pytest.approx(83.0) and found.sd == pytest.approx(statistics.stdev([80, 82, 87]))
    assert found.seeds == 3 and [s.record.pretrain_seed for s in found.records] == [0, 1, 2]


def test_evaluation_seeds_are_averaged_within_their_weights_first(tmp_path):
    runs = [sample(seed=0, value=v, evaluation_seed=e) for e, v in enumerate((70, 80))] + [sample(seed=1, value=95)]
    found = summary(store(tmp_path, *runs))
    assert found.values == (75.0, 95.0) and found.value == 85.0


def test_one_set_of_weights_has_the_spread_of_its_evaluation_seeds(tmp_path):
    metric = Metric.over_seeds([60.0, 62.0, 64.0])
    found = summary(store(tmp_path, sample(seed=None, metrics={"top1": metric})))
    assert (found.seeds, found.inner, found.value, found.sd) == (1, 3, 62.0, 2.0)


def test_weights_that_no_command_makes_again_are_kept_apart(tmp_path):
    for number, value in enumerate((80.0, 90.0)):
        write(sample(pretrain_command=None, value=value, weights_sha256=f"{number}" * 64), tmp_path)
    assert summary(RecordStore([tmp_path])).values == (80.0, 90.0)
    write(sample(pretrain_command=None, value=91.0, weights_sha256="1" * 64, version=2), tmp_path)
    assert len(RecordStore([tmp_path])) == 2, "the older version of the same weights is replaced"


def test_weights_that_a_command_makes_again_are_replaced_whatever_their_bits(tmp_path):
    for number, value in enumerate((80.0, 90.0)):
        write(sample(value=value, weights_sha256=f"{number}" * 64), tmp_path)
    assert summary(RecordStore([tmp_path])).values == (90.0,)


def test_records_of_other_data_are_not_replaced(tmp_path):
    write(sample(data_fingerprint="one"), tmp_path)
    write(sample(data_fingerprint="two"), tmp_path)
    assert len(RecordStore([tmp_path])) == 2


def test_a_fold_spread_is_not_taken_for_a_seed_spread(tmp_path):
    metric = Metric(value=62.0, sd=5.0, per_fold=(57.0, 67.0))
    assert summary(store(tmp_path, sample(metrics={"top1": metric}))).sd is None


def test_nothing_measured_is_none(tmp_path):
    assert summary(RecordStore([tmp_path])) is None
    assert summary(store(tmp_path, sample(overrides={"folds": 9}))) is None


def test_overrides_are_another_question(tmp_path):
    found = store(tmp_path, sample(value=1), sample(value=2, overrides={"folds": 9}))
    assert summary(found).value == 1 and summary(found, folds=9).value == 2


def test_another_version_than_asked_for_is_an_error_with_the_command(tmp_path):
    found = store(tmp_path, sample(seed=0), sample(seed=1, version=2))
    with pytest.raises(UserError, match="linear_digits@2, but @1 is asked for; measure again: python -m evaluations"):
        summary(found)


def test_records_of_different_data_are_not_averaged(tmp_path):
    with pytest.raises(UserError, match="different data"):
        summary(store(tmp_path, sample(seed=0), sample(seed=1, data_fingerprint="other")))


def test_honest_and_paper_style_numbers_are_not_averaged(tmp_path):
    paper = sample(seed=1, metrics={"top1": Metric(value=1.0, style="paper")})
    with pytest.raises(UserError, match="paper-style"):
        summary(store(tmp_path, sample(seed=0), paper))


def test_an_unknown_metric_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"no metric 'top5'; did you mean 'top1'\? \(it has top1\)"):
        summary(store(tmp_path, sample()), metric="top5")


def test_two_records_of_one_question_are_refused(tmp_path):
    first = write(sample(), tmp_path)
    other = sample(weights_sha256="a" * 64)
    path = write(other, tmp_path / "elsewhere")
    path.rename(first.parent / path.name)
    with pytest.raises(UserError, match="two records of the same model"):
        RecordStore([tmp_path])


@pytest.mark.parametrize("place", ["swav_digits/renamed.json", "simclr_digits/linear_digits--0123456789ab.json"])
def test_a_record_in_the_wrong_place_is_refused(tmp_path, place):
    path = write(sample(), tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    path.rename(tmp_path / place)
    with pytest.raises(UserError, match="belongs in"):
        RecordStore([tmp_path])


def test_a_users_records_take_the_place_of_committed_ones_and_are_never_mixed_in(tmp_path):
    for seed in range(3):
        write(sample(seed=seed, value=50), tmp_path / "committed")
    write(sample("simclr_digits", value=40), tmp_path / "committed")
    write(sample(seed=7, value=90), tmp_path / "own")
    found = RecordStore([tmp_path / "committed", tmp_path / "own"])
    assert summary(found).values == (90.0,)
    assert summary(found, model="simclr_digits").value == 40


def seeds(tmp_path, model, values, **changes):
    return summary(store(tmp_path, *(sample(model, seed=i, value=v, **changes) for i, v in enumerate(values))), model)


RANDOM = (60.0, 61.0, 62.0, 63.0, 64.0)


@pytest.mark.parametrize(
    ("by", "mark"), [(1.02, "better"), (0.98, "not shown"), (-0.98, "not shown"), (-1.02, "worse")]
)
def test_better_means_beyond_the_standard_errors_of_welchs_test(tmp_path, by, mark):
    """By hand: variances 2.5 / 5 and 1 / 3, 5.85 degrees of freedom, whose 99.5 % point is 3.746 (tables: 4.032 at 5, 3.707 at 6)."""
    line = 3.746 * math.sqrt(2.5 / 5 + 1 / 3)
    random = seeds(tmp_path / "a", "random_digits", RANDOM)
    row = seeds(tmp_path / "b", "swav_digits", [62.0 + by * line + o for o in (-1.0, 0.0, 1.0)])
    assert better_than_random(row, random).mark == mark


def test_welchs_test_is_scipys():
    from scipy.stats import ttest_ind

    for one, two in (([1.0, 2.0, 4.0], [3.0, 3.5, 9.0, 2.0, 1.0]), ([5.0, 5.1], [5.3, 9.0, 6.0])):
        expected = ttest_ind(one, two, equal_var=False)
        assert welch(one, two) == pytest.approx((expected.statistic, expected.pvalue))
    assert welch([1.0, 1.0], [1.0, 1.0]) == (0.0, 1.0) and welch([2.0, 2.0], [1.0, 1.0])[1] == 0.0


def test_the_false_alarm_rate_that_tables_state_is_that_of_the_rule():
    """Nothing differs, three seeds against five, spreads from 1:3 to 3:1: how often is there a mark all the same?"""
    random, rates = np.random.default_rng(0), []
    for ratio in (1 / 3, 1 / 2, 1, 2, 3):
        one, two = random.normal(0, ratio, (20_000, 3)), random.normal(0, 1, (20_000, 5))
        a, b = one.var(1, ddof=1) / 3, two.var(1, ddof=1) / 5
        errors = np.abs(one.mean(1) - two.mean(1)) / np.sqrt(a + b)
        limit = stdtrit((a + b) ** 2 / (a * a / 2 + b * b / 4), 1 - LEVEL / 2)
        marked = errors > limit
        rates.append(100 * marked.mean())
        for i in range(50):  # the rule itself on some of them
            assert (welch(one[i].tolist(), two[i].tolist())[1] < LEVEL) == marked[i]
    low, high = FALSE_ALARMS
    assert min(rates) == pytest.approx(low, abs=0.2) and max(rates) == pytest.approx(high, abs=0.3)


def test_fewer_than_five_random_seeds_prove_nothing(tmp_path):
    random = seeds(tmp_path / "a", "random_digits", RANDOM[:4])
    verdict = better_than_random(seeds(tmp_path / "b", "swav_digits", (99.0, 99.1)), random)
    assert verdict.mark == "unknown" and "4 seeds, 5 are needed" in verdict.said


def test_one_seed_of_the_method_proves_nothing(tmp_path):
    verdict = better_than_random(
        seeds(tmp_path / "b", "swav_digits", (99.0,)), seeds(tmp_path / "a", "random_digits", RANDOM)
    )
    assert verdict.mark == "unknown" and "one pre-training seed" in verdict.said


def test_other_data_cannot_be_compared(tmp_path):
    random = seeds(tmp_path / "a", "random_digits", RANDOM)
    with pytest.raises(UserError, match="cannot be compared"):
        better_than_random(seeds(tmp_path / "b", "swav_digits", (99.0, 98.0), data_fingerprint="other"), random)
