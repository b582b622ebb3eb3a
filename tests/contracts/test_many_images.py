"""What is done otherwise for very many images, on few of them with the limits moved."""

import contract_pair
import contract_tools as tools
import numpy as np
import pytest
import torch

from engine import dist, rng
from engine.maths import rows as maths_rows
from engine.maths.rows import Rows, sample
from reproduce import clustering, order


@pytest.fixture
def many(monkeypatch):
    """Every set of images and rows has very many."""
    monkeypatch.setattr(order, "MANY", 1)
    monkeypatch.setattr(maths_rows, "MANY", 1)
    monkeypatch.setattr(clustering, "AT_ONCE", 7)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 4096, 5000])
def test_a_computed_permutation_has_every_image_once(n):
    found = rng.shuffled(3, "order", 1, n, np.arange(n))
    assert sorted(found) == list(range(n))
    assert (rng.shuffled(3, "order", 1, n, np.array([n - 1, 0])) == found[[n - 1, 0]]).all()
    if n > 100:
        for other in ((4, "order", 1), (3, "windows", 1), (3, "order", 2)):
            assert (rng.shuffled(*other, n, np.arange(n)) == found).mean() < 10 / n


def test_a_computed_permutation_puts_every_image_everywhere_equally_often():
    """Chi-squared of (position, image) counts over 3,000 epochs, and of neighbours' order; 5 standard deviations."""
    n, epochs = 11, 3000
    drawn = np.stack([rng.shuffled(0, "order", e, n, np.arange(n)) for e in range(epochs)])
    counts = np.stack([np.bincount(column, minlength=n) for column in drawn.T])
    chi2 = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    pairs = np.bincount(drawn[:, 0] * n + drawn[:, 1], minlength=n * n).reshape(n, n)
    assert (pairs.diagonal() == 0).all()
    expected, off = epochs / (n * (n - 1)), ~np.eye(n, dtype=bool)
    chi2, freedom = ((pairs[off] - expected) ** 2 / expected).sum(), n * (n - 1) - 1
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_positions_far_out_need_no_memory():
    """The last places of a permutation of 96 million, alone."""
    n = 95_920_149
    found = rng.shuffled(0, "order", 0, n, np.arange(n - 5, n))
    assert len(set(found.tolist())) == 5 and found.min() >= 0 and found.max() < n


@pytest.mark.parametrize("n", [1, 40, 200])
def test_few_of_very_many_rows_are_different_and_anywhere(n, many):
    x = torch.arange(1000.0)[:, None]
    drawn = [sample(Rows(x), n, torch.Generator().manual_seed(s)).flatten() for s in range(200)]
    assert all(len(d.unique()) == n for d in drawn)
    mean, deviation = torch.cat(drawn).mean(), 1000 / 12**0.5 / (200 * n) ** 0.5
    assert abs(mean - 499.5) < 5 * deviation
    first = torch.stack([d[0] for d in drawn])  # in random order: not the smallest first
    assert abs(first.mean() - 499.5) < 5 * 1000 / 12**0.5 / 200**0.5


def streams(folder, world=1, name="simclr"):
    recipe = tools.recipe(name)
    method = tools.build(recipe)
    found = []
    for rank in range(world):
        batches = tools.stream(recipe, method, rank, world)
        batches.workspace = folder
        found.append(batches)
    return method, found


def test_an_epoch_of_very_many_shows_each_image_once_to_any_number_of_processes(many, tmp_path):
    _, (one,) = streams(tmp_path)
    whole = [batch.index for batch in one.epoch(1)]
    assert len(torch.cat(whole).unique()) == len(whole) * tools.BATCH == 96
    assert [b.index.tolist() for b in one.epoch(1, start=3)] == [index.tolist() for index in whole[3:]]
    assert [b.index.tolist() for b in one.epoch(2)] != [index.tolist() for index in whole]
    _, two = streams(tmp_path, 2)
    halves = [[b.index for b in batches.epoch(1)] for batches in two]
    assert all(torch.equal(torch.cat(parts), index) for *parts, index in zip(*halves, whole, strict=True))


def test_what_a_sampler_draws_is_the_same_from_a_file(monkeypatch, tmp_path):
    """DeeperCluster draws images several times: order, visits, and the views that depend on them."""
    method, (held,) = streams(tmp_path, name="deepercluster")
    ctx = tools.begin(method, held)
    expected = [(b.index, b.views[0]) for b in held.epoch(0)]
    monkeypatch.setattr(order, "MANY", 1)
    found = [(b.index, b.views[0]) for b in held.epoch(0)]
    assert (tmp_path / "order.npy").exists() and ctx.n == 100
    assert all(torch.equal(a, b) for e, f in zip(expected, found, strict=True) for a, b in zip(e, f, strict=True))


def on_rank(rank, folder, name, most):
    order.MANY = maths_rows.MANY = most
    clustering.AT_ONCE = 7
    calls = []
    method = tools.build(recipe := tools.recipe(name, sync_bn=True))
    plain = method.sampler
    method.sampler = lambda *args: calls.append(0) or plain(*args)
    result = tools.fit(recipe, folder / "run", world=dist.World(rank, 2, rank), method=method)
    return result.loss, len(calls), method.labels.numpy()


def test_two_processes_train_alike_and_one_of_them_draws(many, tmp_path):
    (loss, calls, labels), (_, others, same) = contract_pair.run(on_rank, "deepercluster", 1)
    assert (calls, others) == (1, 0) and (labels == same).all()
    alone = tools.build(recipe := tools.recipe("deepercluster", sync_bn=True))
    expected = tools.fit(recipe, tmp_path / "run", method=alone)
    assert loss == pytest.approx(expected.loss, rel=2e-4) and (alone.labels.numpy() == labels).all()
