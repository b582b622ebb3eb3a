"""Support vector machines solved together equal scikit-learn's, one by one; low-shot curves rise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_fakes import FakeFeatures, blobs, protocol
from sklearn.svm import LinearSVC

from evaluations.kinds import svm


class Labelled(FakeFeatures):
    """Several labels per image: (x, targets)."""

    def source(self, split):
        targets = self._open(split)[1]
        return type(
            "Source", (), {"targets": targets if targets.ndim == 2 else None, "__len__": lambda s: len(targets)}
        )()


def objective(w, x, sign, cost):
    rows = np.c_[x, np.ones(len(x))].astype(np.float64)
    return (w**2).sum() / 2 + (cost * np.maximum(0, 1 - sign * (rows @ w)) ** 2).sum()


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_each_machine_is_scikit_learns(cost):
    x, y = blobs(120, 3, dim=8, distance=0.4)
    targets = np.eye(3, dtype=np.uint8)[y]
    w = svm.solve(torch.tensor(x), targets, [cost] * 3, svm.Head()).numpy()
    for c in range(3):
        theirs = LinearSVC(C=cost, class_weight={1: 2.0, 0: 1.0}, tol=1e-8, max_iter=100000, dual=False).fit(
            x, targets[:, c]
        )
        both = np.r_[theirs.coef_[0], theirs.intercept_]
        weight = cost * np.where(targets[:, c] == 1, 2.0, 1.0)
        sign = np.where(targets[:, c] == 1, 1.0, -1.0)
        assert objective(w[:, c].astype(float), x, sign, weight) <= objective(both, x, sign, weight) * (1 + 1e-6)
        np.testing.assert_allclose(w[:, c], both, atol=2e-3 * np.abs(both).max())


@pytest.mark.parametrize(("few", "kept"), [(0, 0), (10_000, 0), (10_000, 10_000)])
def test_either_way_to_a_newton_step_ends_at_the_same_machine(few, kept, monkeypatch):
    x, y = blobs(150, 3, dim=40, distance=0.4)
    targets, costs = np.eye(3, dtype=np.uint8)[y], [0.1, 10.0, 300.0]
    monkeypatch.setattr(svm._NewtonSteps, "FEW", few)
    monkeypatch.setattr(svm._NewtonSteps, "MOST", kept)
    w = svm.solve(torch.tensor(x), targets, costs, svm.Head(iterations=30)).numpy().astype(float)
    for c, cost in enumerate(costs):
        sign = np.where(targets[:, c] == 1, 1.0, -1.0)
        weight = cost * np.where(targets[:, c] == 1, 2.0, 1.0)
        rows = np.c_[x, np.ones(len(x))].astype(float)
        slack = np.maximum(0, 1 - sign * (rows @ w[:, c]))
        gradient = w[:, c] - 2 * rows.T @ (weight * sign * slack)  # of the objective above, by hand
        assert np.linalg.norm(gradient) < 1e-4 * np.linalg.norm(2 * rows.T @ (weight * sign))


def test_long_rows_and_high_costs_are_solved_too():
    x, y = blobs(150, 2, dim=8, distance=0.4)
    x, targets = 1000 * x, np.eye(2, dtype=np.uint8)[y]
    w = svm.solve(torch.tensor(x), targets, [1000.0] * 2, svm.Head(normalise=False)).numpy().astype(float)
    sign, weight = np.where(targets[:, 0] == 1, 1.0, -1.0), 1000.0 * np.where(targets[:, 0] == 1, 2.0, 1.0)
    theirs = LinearSVC(C=1000.0, class_weight={1: 2.0, 0: 1.0}, tol=1e-8, max_iter=100000, dual=False).fit(
        x, targets[:, 0]
    )
    both = np.r_[theirs.coef_[0], theirs.intercept_]
    assert objective(w[:, 0], x, sign, weight) <= objective(both, x, sign, weight) * (1 + 1e-6)


def test_difficult_entries_change_nothing():
    x, y = blobs(60, 2, dim=4, distance=0.5)
    targets = np.eye(2, dtype=np.uint8)[y]
    targets[:10, 0] = 255
    whole = svm.solve(torch.tensor(x), targets, [1.0, 1.0], svm.Head())[:, 0]
    without = svm.solve(torch.tensor(x[10:]), targets[10:], [1.0, 1.0], svm.Head())[:, 0]
    torch.testing.assert_close(whole, without, atol=1e-4, rtol=1e-3)


def test_separable_scenes_give_every_point_and_low_shot_curves_rise():
    x, y = blobs(300, 5, seed=1)
    q, z = blobs(100, 5, seed=2)
    f = Labelled({"train": (x, np.eye(5, dtype=np.uint8)[y]), "test": (q, np.eye(5, dtype=np.uint8)[z])}, 5)
    metrics = svm.run(protocol("linear_scenes", splits__train="train", head__shots=[1, 8]), f, seed=0).metrics
    assert metrics["map"].value == 100 and metrics["map11"].value == 100 and "top1" not in metrics
    assert len(metrics["map_1"].per_seed) == 5 and metrics["map_1"].value <= metrics["map_8"].value
    assert len(f.selection.chosen["cost"]) == 5 and "3 folds" in f.selection.on


def test_one_label_per_image_is_scored_too():
    f = Labelled({"train": blobs(200, 4, seed=1), "test": blobs(100, 4, seed=2)}, 4)
    assert svm.run(protocol("linear_scenes", splits__train="train"), f, seed=0).metrics["top1"].value == 100


def test_low_shot_machines_see_k_positive_images_of_each_class_and_no_other(monkeypatch):
    x, y = blobs(300, 5, seed=1)
    f = Labelled({"train": (x, np.eye(5, dtype=np.uint8)[y]), "test": (x, np.eye(5, dtype=np.uint8)[y])}, 5)
    seen, solve = [], svm.solve
    monkeypatch.setattr(
        svm, "solve", lambda rows, targets, *rest: seen.append(targets.sum(0).tolist()) or solve(rows, targets, *rest)
    )
    svm.run(protocol("linear_scenes", splits__train="train", head__shots=[3], head__draws=2), f, seed=0)
    assert seen[-2:] == [[3] * 5] * 2
