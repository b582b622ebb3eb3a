"""Evaluations on features whose score is known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_fakes import FakeFeatures, blobs, protocol
from sklearn.neighbors import KNeighborsClassifier

from evaluations.kinds import clustering, fewlabel, knn, linear
from zoo.errors import UserError

CLASSES = 5
QUICK = {"head__epochs": 15, "head__batch": 64}


def features(train=300, test=200, layers=None, distance=8.0):
    splits = {
        "train": blobs(train, CLASSES, seed=1, distance=distance),
        "test": blobs(test, CLASSES, seed=2, distance=distance),
    }
    if layers:
        splits = {s: ({n: x * f for n, f in layers.items()}, y) for s, (x, y) in splits.items()}
    return FakeFeatures(splits, CLASSES, layers=tuple(layers or ("output",)))


@pytest.mark.parametrize("preprocess", ["none", "unit", "standardise", "standardise_unit"])
def test_clustering_in_memory_and_in_blocks_agree(preprocess, monkeypatch):
    wanted = protocol("cluster_digits", seeds=1, head__preprocess=preprocess)
    f = features(distance=1.5)
    here = clustering.run(wanted, f, seed=0).predictions
    monkeypatch.setattr(clustering, "IN_MEMORY", 0)
    assert (clustering.run(wanted, features(distance=1.5), seed=0).predictions == here).all()


def test_knn_equals_scikit_learn_for_every_k_and_temperature():
    f = features(distance=0.6)
    (x, y), (queries, truth) = f.splits["train"], f.splits["test"]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, queries)]
    for k in (1, 7, 50):
        for temperature in (0.07, 0.5):
            wanted = protocol("knn_digits", grid={"k": [k], "temperature": [temperature]}, select__on="none")
            found = knn.run(wanted, features(distance=0.6), seed=0)
            weigh = lambda d, t=temperature: np.exp((1 - d) / t)
            theirs = KNeighborsClassifier(k, weights=weigh, metric="cosine", algorithm="brute").fit(unit[0], y)
            assert (found.predictions == theirs.predict(unit[1])).mean() > 0.99
            assert abs(found.metrics["top1"].value - 100 * (theirs.predict(unit[1]) == truth).mean()) < 1


def test_knn_never_counts_an_image_as_its_own_neighbour():
    x, y = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32), np.arange(200) % 2
    f = FakeFeatures({"train": (x, y), "test": (x[:50], y[:50])}, 2)
    result = knn.run(protocol("knn_digits", grid={"k": [1], "temperature": [0.1, 0.2]}, head__queries=None), f, seed=0)
    assert f.selection.score < 75  # with itself it would be 100
    assert result.metrics["top1"].value == 100  # the test images are in the bank here


def test_selection_is_recorded_and_every_layer_has_its_own_score():
    f = features(layers={"res2": 0.0, "res5": 1.0})
    metrics = linear.run(protocol("linear_digits", layers=["all"], **QUICK), f, seed=0).metrics
    assert metrics["top1_res5"].value == 100 and metrics["top1_res2"].value < 50
    assert set(f.selection.chosen) == {"res2", "res5"} and f.selection.on == "5 folds of train"
    assert len(f.selection.grid["res5"]) == 8 and len(metrics["top1_res5"].per_fold) == 5


def test_the_best_on_test_is_labelled_and_never_below_the_honest_number():
    f = features(distance=0.5)
    metrics = linear.run(protocol("linear_digits", **QUICK), f, seed=0).metrics
    paper, honest = metrics["top1_best_on_test"], metrics["top1"]
    assert paper.style == "paper" and paper.note and paper.value >= honest.value and honest.style == "honest"


def test_seeds_of_the_probe_are_reported_with_their_spread():
    metrics = linear.run(protocol("linear_digits", seeds=3, **QUICK), features(distance=0.5), seed=0).metrics
    assert len(metrics["top1"].per_seed) == 3 and metrics["top1"].sd is not None


def test_selection_on_a_validation_split_and_on_nothing():
    f = features()
    f.splits["val"] = blobs(100, CLASSES, seed=3)
    splits = {"train": "train", "val": "val", "test": "test"}
    linear.run(protocol("linear_digits", splits=splits, select__on="val", **QUICK), f, seed=0)
    assert f.selection.on == "val" and f.selection.score == 100
    one = protocol("linear_digits", grid__lr=[0.1], grid__weight_decay=[0.0], select__on="none", **QUICK)
    f = features()
    assert linear.run(one, f, seed=0).metrics["top1"].value == 100 and f.selection is None


def test_impossible_requests_are_told():
    with pytest.raises(UserError, match="fewer samples"):
        fewlabel.run(protocol("fewlabel_digits", head__per_class=100), features(), seed=0)
    with pytest.raises(UserError, match="exactly one of"):
        protocol("fewlabel_digits", head__percent=1.0)
    with pytest.raises(UserError, match=r"grid\.k: 500 neighbours of 300"):
        knn.run(protocol("knn_digits", grid__k=[500]), features(), seed=0)
    with pytest.raises(UserError, match=r"clusters=301"):
        clustering.run(protocol("cluster_digits", head__clusters=301), features(), seed=0)
