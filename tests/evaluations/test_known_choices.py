"""Settings of which one is right and one at chance: the chosen one and its score are known, and each draw learns its own labels alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts.evaluation_tools import cases, separable, task
from evaluation_fakes import FakeFeatures, blobs, protocol

from evaluations import scores
from evaluations.inputs.splits import per_class
from evaluations.kinds import clustering, fewlabel, finetune, knn, linear, svm
from evaluations.measure import Measurement
from evaluations.probes import batched
from evaluations.protocol import head_of

CLASSES = 5
SETTINGS = batched.Grid((1e-9, 0.1))


def overlapping(train=300, test=200):
    return FakeFeatures(
        {"train": blobs(train, CLASSES, seed=1, distance=1.0), "test": blobs(test, CLASSES, seed=2, distance=1.0)},
        CLASSES,
    )


def test_a_probe_chooses_the_rate_that_learns_and_reports_that_rates_number():
    f = overlapping()
    wanted = protocol("linear_digits", head__epochs=15, head__batch=64, grid__lr=[1e-9, 0.1], grid__weight_decay=[0.0])
    metric = linear.run(wanted, f, seed=0).metrics["top1"]
    assert f.selection.chosen["lr"] == 0.1 and [row["score"] < 60 for row in f.selection.grid] == [True, False]
    assert (
        metric.value > 85
        and f.selection.score == pytest.approx(np.mean(metric.per_fold))
        and 85 < f.selection.score < 100
    )


def test_the_mean_over_folds_decides_and_not_the_best_fold():
    found = linear.choose(SETTINGS, np.array([[100.0, 70.0], [20.0, 80.0]]))
    assert found["setting"] == (0.1, 0.0) and found["score"] == 75.0 and found["per_fold"] == (70.0, 80.0)
    precision = np.array([[[1.0], [0.7]], [[0.2], [0.8]]])  # folds, costs, classes
    assert svm.choose(precision)[0].tolist() == [1]


def test_the_honest_number_is_the_chosen_heads_whatever_others_reach():
    truth = np.array([0, 1, 2, 3])
    guesses, others = np.array([[0, 1, 0, 0]]), np.array([[0, 1, 0, 0], [0, 1, 2, 3]])
    found = linear.metrics_of(guesses, np.ones((1, 4)), others, truth, 4, {"per_fold": None})
    assert found["top1"].value == 50.0 and found["top1_best_on_test"].value == 100.0


def test_neighbours_are_chosen_on_training_images_even_where_the_test_split_likes_others_better():
    """3 of 10 training labels are wrong: one neighbour is wrong there and right on a copy of the training split as test split."""
    x, clean = blobs(300, CLASSES, seed=1, distance=1.5)
    noisy = np.where(np.arange(300) % 10 < 3, (clean + 1 + np.arange(300) // 10 % 4) % CLASSES, clean)
    f = FakeFeatures({"train": (x, noisy), "test": (x, noisy)}, CLASSES)
    metrics = knn.run(protocol("knn_digits", grid__k=[1, 20], grid__temperature=[1.0]), f, seed=0).metrics
    assert f.selection.chosen["k"] == 20
    assert 60 < metrics["top1"].value < 80 and metrics["top1_best_on_test"].value == 100.0


def test_a_machine_takes_the_cost_that_its_class_chose_on_images_held_out(monkeypatch):
    f = overlapping()
    f.source = lambda split: type("Source", (), {"targets": None, "classes": tuple("abcde")})()
    taken = []
    solve = svm.solve
    monkeypatch.setattr(
        svm, "solve", lambda x, targets, costs, head: taken.append((len(x), costs)) or solve(x, targets, costs, head)
    )
    best = np.array([0, 1, 0, 1, 1])
    monkeypatch.setattr(svm, "choose", lambda scores: (best, np.ones(CLASSES, bool)))
    svm.run(
        protocol("linear_voc07", splits__train="train", grid__cost=[0.1, 1.0], select__folds=3, head__shots=[]),
        f,
        seed=0,
    )
    assert [n for n, _ in taken] == [200, 200, 200, 300] and taken[-1][1] == [0.1, 1.0, 0.1, 1.0, 1.0]


def test_each_draw_of_few_labels_learns_its_own_labels_alone():
    f = overlapping()
    wanted = protocol("fewlabel_digits", head__draws=4, head__per_class=2, head__percent=None)
    metric = fewlabel.run(wanted, f, seed=0).metrics["top1"]
    (x, labels), (queries, truth) = f.splits["train"], f.splits["test"]
    head = head_of(wanted)
    alone = []
    for draw in range(4):
        rows = per_class(labels, 2, 0, draw)
        grid = batched.Grid((wanted.grid["lr"][0],), (wanted.grid.get("weight_decay", [0.0])[0],))
        trained = batched.train(
            x[rows], labels[rows], np.ones((1, len(rows)), np.float32), grid, head.settings(0), classes=CLASSES
        )
        alone.append(100 * float((batched.all_scores(queries, trained)[:, 0].argmax(1).numpy() == truth).mean()))
    assert metric.per_seed == pytest.approx(alone, abs=1.0) and metric.value == pytest.approx(np.mean(metric.per_seed))
    assert max(alone) - min(alone) > 3


def test_clusters_of_an_image_do_not_depend_on_the_other_images_of_the_test_part():
    wanted = protocol("cluster_digits", seeds=1, head__preprocess="standardise_unit")
    f, few = overlapping(), overlapping()
    few.splits["test"] = tuple(rows[:7] for rows in few.splits["test"])
    whole = clustering.run(wanted, f, seed=0).predictions
    assert clustering.run(wanted, few, seed=0).predictions.tolist() == whole[:7].tolist()


class Stopped(Exception):
    pass


def test_fine_tuning_with_few_labels_reads_the_shown_images_alone(tmp_path, monkeypatch):
    jobs = []

    def stop(job, *rest):
        jobs.append(job)
        raise Stopped

    monkeypatch.setattr(finetune.finetuning, "fit", stop)
    case = next(c for c in cases() if c.kind == "finetune")
    with pytest.raises(Stopped):
        task(case, separable(), tmp_path, head__per_class=2, select__on="none", grid__lr=[0.1]).measure()
    read = np.unique(torch.cat([torch.as_tensor(np.concatenate(epoch)) for epoch in jobs[0].order]).numpy())
    labels = separable().parts["train"][1]
    assert np.bincount(labels[read]).tolist() == [2, 2, 2]


def test_two_models_are_compared_as_a_textbooks_table_of_pairs():
    """60 images right by both, 21 only by the first, 9 only by the second, 10 by neither: p of 21 heads in 30 tosses is 0.0428."""
    a, b = np.repeat([1, 1, 0, 0], [60, 21, 9, 10]), np.repeat([1, 0, 1, 0], [60, 21, 9, 10])
    found = scores.paired(a, b)
    assert (found.a, found.b, found.only_a, found.only_b) == (81, 69, 21, 9)
    assert found.p_value == pytest.approx(0.04277, abs=1e-5)
    assert found.difference == pytest.approx(12) and found.ci == pytest.approx((1.5257, 22.4743), abs=1e-3)


def test_a_class_without_a_positive_is_left_out_of_the_mean():
    targets = np.array([[1, 0], [0, 0], [1, 0]], dtype=np.uint8)
    assert scores.mean_average_precision(np.array([[0.9, 1.0], [0.5, 2.0], [0.1, 3.0]]), targets) == pytest.approx(
        100 * (1 + 2 / 3) / 2
    )


def test_another_evaluation_seed_or_precision_is_another_measurement(tmp_path):
    case = next(c for c in cases() if c.kind == "knn")
    plain = task(case, separable(), tmp_path)

    def key(**change):
        settings = replace(plain.settings, **change)
        return Measurement(plain.protocol, plain.model, settings, plain.open).record_key

    assert len({key(), key(seed=1), key(precision="bfloat16")}) == 3
    assert key(batch=7) == key() == plain.record_key
