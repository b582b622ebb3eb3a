"""Many heads in one run are the heads that each run alone would give, and they find what there is to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_fakes import blobs

from evaluations.probes import batched
from evaluations.probes.batched import Grid, HeadTraining, Schedule
from golden import load


def folds_of(n, folds):
    held = (np.arange(n) % folds)[None] == np.arange(folds)[:, None]
    return np.concatenate([~held, np.ones((1, n), bool)]).astype(np.float32), held


def one_head_by_autograd(x, y, weight, cell, settings, classes):
    """Plain PyTorch: one nn.Linear, torch.optim.SGD, weighted cross-entropy over the same batches."""
    from engine import rng

    w = torch.tensor(weight)
    mean = (w[:, None] * x).sum(0) / w.sum()
    var = (w[:, None] * (x - mean) ** 2).sum(0) / w.sum()
    z = (x - mean) / (var + 1e-5 * var.mean()).sqrt()
    layer = torch.nn.Linear(x.shape[1], classes)
    start = torch.randn(classes, x.shape[1], generator=rng.generator(cell["seed"], "linear head"))
    layer.weight.data, layer.bias.data = settings.init_std * start, torch.zeros(classes)
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=1.0, momentum=settings.momentum, weight_decay=cell["weight_decay"]
    )
    steps = -(-len(x) // settings.batch)
    rates = settings.schedule.rates(np.array([cell["lr"]]), np.array([cell["weight_decay"]]), settings.epochs, steps)
    step = 0
    for epoch in range(settings.epochs):
        order = rng.permutation(settings.seed, "linear head batches", epoch, len(x))
        for at in range(0, len(x), settings.batch):
            rows = order[at : at + settings.batch]
            optimizer.param_groups[0]["lr"] = rates[step, 0]
            losses = torch.nn.functional.cross_entropy(layer(z[rows]), torch.tensor(y[rows]), reduction="none")
            optimizer.zero_grad()
            ((losses * w[rows]).sum() / w[rows].sum().clamp_min(1e-12)).backward()
            optimizer.step()
            step += 1
    return layer.weight.data, layer.bias.data


@pytest.mark.parametrize("schedule", [Schedule("cosine"), Schedule("steps", milestones=(2,)), Schedule("bottou")])
def test_heads_trained_together_equal_heads_trained_alone(schedule):
    x, y = blobs(50, 3, dim=5, distance=0.7)
    weights, _ = folds_of(50, 2)
    grid = Grid(lr=(0.05, 0.5), weight_decay=(0.0, 0.01), seeds=(3, 4))
    settings = HeadTraining(epochs=3, batch=16, schedule=schedule, snapshots=0)
    together = batched.train(x, y, weights, grid, settings, classes=3)
    for f in range(3):
        for g, cell in enumerate(grid.cells):
            weight, bias = one_head_by_autograd(torch.tensor(x), y, weights[f], cell, settings, 3)
            torch.testing.assert_close(together.weight[f, g], weight, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(together.bias[f, g], bias, atol=2e-5, rtol=1e-4)


def test_a_held_out_sample_changes_nothing_in_its_fold():
    x, y = blobs(40, 4)
    weights, held = folds_of(40, 4)
    settings = HeadTraining(epochs=2, batch=10)
    before = batched.train(x, y, weights, Grid(lr=(0.1,)), settings, classes=4)
    x[held[1]], y[held[1]] = 50.0, 0
    after = batched.train(x, y, weights, Grid(lr=(0.1,)), settings, classes=4)
    torch.testing.assert_close(before.weight[1], after.weight[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before.weight[0], after.weight[0], atol=1e-2)


def test_separable_features_are_separated_on_every_fold():
    x, y = blobs(200, 5)
    weights, held = folds_of(200, 4)
    found = batched.train(x, y, weights, Grid(lr=(0.1,)), HeadTraining(epochs=30, batch=50), classes=5)
    assert batched.correct(x, y, found, held).sum() == 200
    assert (batched.all_scores(x, found)[:, 0].argmax(1).numpy() == y).all()


def test_the_binary_objective_ignores_what_is_marked_255():
    x, y = blobs(60, 3, dim=6)
    targets = np.eye(3, dtype=np.uint8)[y]
    targets[::5] = 255
    other = x.copy()
    other[::5] += 7.0
    w = np.ones((1, 60), np.float32)
    settings = HeadTraining(epochs=5, batch=60, objective="binary", standardise=False)
    a, b = (batched.train(v, targets, w, Grid(lr=(0.1,)), settings, classes=3) for v in (x, other))
    torch.testing.assert_close(a.weight, b.weight)
    assert (
        (batched.all_scores(x, a)[:, 0] > 0).numpy()[targets[:, 0] != 255] == (targets == 1)[targets[:, 0] != 255]
    ).all()


def test_memory_maps_and_arrays_give_the_same_heads(tmp_path, monkeypatch):
    x, y = blobs(90, 3)
    np.save(tmp_path / "x.npy", x)
    w = np.ones((1, 90), np.float32)
    small = batched.train(x, y, w, Grid(lr=(0.1,)), HeadTraining(epochs=3, batch=32), classes=3)
    monkeypatch.setattr(batched, "IN_MEMORY", 0)
    monkeypatch.setattr(batched, "CHUNK", 20)
    mapped = batched.train(
        np.load(tmp_path / "x.npy", mmap_mode="c"), y, w, Grid(lr=(0.1,)), HeadTraining(epochs=3, batch=32), classes=3
    )
    torch.testing.assert_close(small.weight, mapped.weight)


@pytest.mark.parametrize("dim", [4, 90], ids=["fewer features than images", "fewer images than features"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_equals_the_normal_equations_on_each_fold(dim, weighted, monkeypatch):
    monkeypatch.setattr(batched, "CHUNK", 7)
    x, y = blobs(60, 3, dim=dim, distance=1.0)
    x = x + np.float32(5)  # features far from 0, as those after a ReLU
    weights, _ = folds_of(60, 3)
    if weighted:
        weights = weights * np.where(np.arange(60) % 2, 1, 2).astype(np.float32)
    found = batched.ridge(x, y, weights, [0.1, 1.0], classes=3)
    for f in range(4):
        share = weights[f].astype(np.float64)
        mean = np.average(x.astype(np.float64), axis=0, weights=share)
        variance = np.average((x - mean) ** 2, axis=0, weights=share)
        z = np.c_[(x - mean) / np.sqrt(variance + 1e-5 * variance.mean()), np.ones(60)]
        target = 2.0 * np.eye(3)[y] - 1
        for g, penalty in enumerate((0.1, 1.0)):
            shrink = penalty * share.sum() * np.diag([1] * dim + [0])
            solved = np.linalg.solve((z.T * share) @ z + shrink, (z.T * share) @ target)
            np.testing.assert_allclose(found.weight[f, g].numpy(), solved[:dim].T, atol=1e-5)
            np.testing.assert_allclose(found.bias[f, g].numpy(), solved[dim], atol=1e-5)


def test_all_heads_diverging_is_an_error_and_one_is_not():
    x, y = blobs(40, 2)
    w = np.ones((1, 40), np.float32)
    with pytest.raises(FloatingPointError, match=r"lower grid\.lr"):
        batched.train(x, y, w, Grid(lr=(1e38,)), HeadTraining(epochs=5, batch=8), classes=2)
    found = batched.train(x, y, w, Grid(lr=(1e38, 0.1)), HeadTraining(epochs=20, batch=8), classes=2)
    assert (batched.all_scores(x, found)[:, 1].argmax(1).numpy() == y).all()


def test_bottous_schedule_is_the_authors():
    g = load("deepercluster/lr_schedules.npz")
    lr0, wd, t = g.given("lr0"), g.given("wd"), g.given("t")
    steps = int(t.max()) + 1
    rates = np.stack([Schedule("bottou").rates(lr0[i : i + 1], wd[i : i + 1], 1, steps)[t, 0] for i in range(len(lr0))])
    g.agree("bottou_lr", rates)


def test_a_table_of_rates_holds_whatever_the_base_rate():
    rates = Schedule("table", milestones=(2, 3), values=(0.1, 0.02, 0.004)).rates(
        np.array([5.0, 7.0]), np.zeros(2), 5, 2
    )
    np.testing.assert_allclose(rates, np.repeat([0.1, 0.1, 0.02, 0.004, 0.004], 2)[:, None] * np.ones((1, 2)))


def test_pics_rate_warms_up_for_five_epochs_and_then_falls_as_a_cosine():
    rates = Schedule("cosine", per_step=True, warmup=5).rates(np.array([30.0]), np.zeros(1), 100, 10)[:, 0]
    assert rates[0] == pytest.approx(0.3) and rates[50] == pytest.approx(30) and rates[25] == pytest.approx(30 * 0.505)
    assert (np.diff(rates[:51]) > 0).all() and (np.diff(rates[50:]) < 0).all() and rates[525] == pytest.approx(15)
