"""``python -m results compare A B …``: pairs by seed, Student's test, Holm's correction."""

from __future__ import annotations

import pytest
from result_fakes import catalogue
from result_samples import sample

from results import __main__ as cli
from results import against
from results.published import Catalogue
from results.record import write
from results.store import RecordStore
from zoo.errors import UserError


def test_holms_correction_of_a_textbooks_numbers():
    """p = 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 not below the one before it."""
    assert against.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert against.holm([0.5, 0.9]) == [1.0, 1.0] and against.holm([]) == []


def test_the_paired_test_is_scipys():
    from scipy.stats import ttest_rel

    one, two = [80.0, 81.0, 85.0], [79.0, 80.5, 82.0]
    expected = ttest_rel(one, two).pvalue
    assert against.paired([a - b for a, b in zip(one, two, strict=True)]) == pytest.approx(expected)
    assert against.paired([0.0, 0.0]) == 1.0 and against.paired([1.0, 1.0]) == 0.0


def measure(folder, model, values, **changes):
    for seed, value in values.items():
        write(sample(model, seed=seed, value=value, **changes), folder)


def duels(tmp_path, *models):
    return against.duels(models, RecordStore([tmp_path / "measured"]), catalogue(tmp_path), "linear_digits")


def test_models_are_paired_by_seed_whatever_seeds_they_have(tmp_path):
    measure(tmp_path / "measured", "swav_digits", {0: 90.0, 1: 91.0, 2: 92.0, 7: 10.0})
    measure(tmp_path / "measured", "simclr_digits", {2: 82.1, 1: 81.0, 0: 80.0, 5: 99.0})
    (found,) = duels(tmp_path, "swav_digits", "simclr_digits")
    assert found.differences == pytest.approx((10.0, 10.0, 9.9)) and found.verdict == "swav_digits is better"
    assert "swav_digits is better" in against.report([found]) and "below 5 %" in against.report([found])


def test_a_difference_within_the_spread_is_not_shown_and_never_equal(tmp_path):
    measure(tmp_path / "measured", "swav_digits", {0: 90.0, 1: 80.0, 2: 85.0})
    measure(tmp_path / "measured", "simclr_digits", {0: 84.0, 1: 84.0, 2: 84.0})
    (found,) = duels(tmp_path, "swav_digits", "simclr_digits")
    assert found.verdict == "not shown" and "does not say that two models are equal" in against.report([found])


def test_every_pair_is_corrected_together(tmp_path):
    for model, shift in (("swav_digits", 0.0), ("simclr_digits", 1.0), ("random_digits", 3.0)):
        measure(tmp_path / "measured", model, {s: 80.0 + shift + 0.1 * s * shift for s in range(4)})
    found = duels(tmp_path, "swav_digits", "simclr_digits", "random_digits")
    assert len(found) == 3
    assert [d.corrected for d in found] == pytest.approx(against.holm([d.p for d in found]))
    assert all(d.corrected >= d.p for d in found)


def test_what_cannot_be_tested_says_why(tmp_path):
    measure(tmp_path / "measured", "swav_digits", {0: 90.0, 1: 91.0})
    measure(tmp_path / "measured", "simclr_digits", {1: 80.0, 2: 82.0})
    measure(tmp_path / "measured", "random_digits", {0: 60.0, 1: 61.0}, data_fingerprint="other")
    reasons = {(d.one, d.two): d.verdict for d in duels(tmp_path, "swav_digits", "simclr_digits", "random_digits")}
    assert reasons["swav_digits", "simclr_digits"] == "no test: 1 pre-training seeds in common, 2 are needed"
    assert reasons["swav_digits", "random_digits"] == "no test: other test data"
    with pytest.raises(UserError, match="no protocol matching"):
        duels(tmp_path, "swav_digits", "swav_big")


def test_the_committed_records_can_be_compared_on_the_command_line(capsys):
    assert cli.main(["compare", "simclr_digits", "random_digits", "--protocol", "knn_digits"]) == 0
    assert "simclr_digits is better" in capsys.readouterr().out
    store = RecordStore()
    swav = store.summary("swav_digits", "linear_digits", 1, "top1")
    assert list(against.by_seed(swav).values()) == list(swav.values)
    assert Catalogue().entry("swav_digits").id == "swav_digits"
