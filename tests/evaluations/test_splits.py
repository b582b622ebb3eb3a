"""Folds are disjoint, stratified and cover everything; few-label draws have what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations.inputs import splits
from golden import load


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 7, 200) ** 2 % 11


def test_folds_cover_everything_and_share_every_class_evenly(labels):
    fold = splits.stratified_folds(labels, 4, seed=3)
    assert set(fold) == {0, 1, 2, 3}
    sizes = np.bincount(fold)
    assert sizes.sum() == len(labels) and sizes.max() - sizes.min() <= 1
    for c in np.unique(labels):
        counts = np.bincount(fold[labels == c], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_folds_depend_on_the_seed_and_not_on_other_samples_classes(labels):
    assert (splits.stratified_folds(labels, 4, 1) == splits.stratified_folds(labels, 4, 1)).all()
    assert (splits.stratified_folds(labels, 4, 1) != splits.stratified_folds(labels, 4, 2)).any()


def test_folds_refuse_more_folds_than_samples():
    with pytest.raises(ValueError, match="folds=5"):
        splits.stratified_folds(np.array([0, 1, 0]), 5)


def test_the_authors_kfold_is_reproduced_with_its_unused_tail():
    g = load("deepercluster/kfold.npz")
    labels, folds = g.given("labels"), int(g.given("K"))
    seen = []
    for i in range(folds):
        training, validation = splits.deepercluster_folds(labels, folds, i)
        g.exact(f"val_{i}", validation)
        g.exact(f"train_sorted_{i}", np.sort(training))
        g.exact(f"len_{i}", np.array([len(training), len(validation)]))
        legacy = np.random.RandomState(11 + i)
        shuffled = list(training)
        legacy.shuffle(shuffled)
        g.exact(f"train_seed{11 + i}_{i}", np.array(shuffled))
        seen.append(validation)
    used = np.concatenate(seen)
    assert len(set(used)) == len(used) < len(labels)


def test_few_label_draws_hold_so_many_of_each_class(labels):
    a, b = (splits.per_class(labels, 3, seed=0, draw=d) for d in (0, 1))
    assert (np.unique(labels[a], return_counts=True)[1] == 3).all()
    assert (np.diff(a) > 0).all() and not np.array_equal(a, b)
    with pytest.raises(ValueError, match="have fewer samples"):
        splits.per_class(labels, 1000)


def test_percent_rounds_within_each_class_and_keeps_at_least_one(labels):
    chosen = splits.percent(labels, 10, seed=0)
    values, sizes = np.unique(labels, return_counts=True)
    _, got = np.unique(labels[chosen], return_counts=True)
    assert (got == np.maximum(1, np.rint(sizes / 10))).all()
    assert len(splits.percent(labels, 0.001)) == len(values)
    with pytest.raises(ValueError, match="percent=0"):
        splits.percent(labels, 0)
