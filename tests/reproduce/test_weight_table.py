"""Rows of a class table that are brought up to date when they are asked for."""

import torch

from reproduce.weight_table import WeightTable


def test_an_idle_row_catches_up_once_however_often_it_is_looked_at():
    table = WeightTable(6, 4, seed=3, scale=1.0)
    ids = torch.arange(6)
    table.take(ids)
    table.update(ids, torch.ones(6, 4), lr=0.1, momentum=0.9, decay=0.01)  # from here on all rows move by themselves
    for _ in range(5):
        table.take(ids[:2])
        table.update(ids[:2], torch.zeros(2, 4), lr=0.1, momentum=0.9, decay=0.01)
    first, again, taken = table.whole(), table.whole(), table.take(ids).detach()
    assert torch.equal(first, again) and torch.equal(first, taken)
    # SGD by hand: rows 2 to 5 had no gradient in five steps either, so all rows follow the same law
    plain = WeightTable(6, 4, seed=3, scale=1.0).whole().double()
    velocity = torch.zeros(6, 4).double()
    for step in range(6):
        velocity = 0.9 * velocity + (1.0 if step == 0 else 0.0) + 0.01 * plain
        plain = plain - 0.1 * velocity
    torch.testing.assert_close(first.double(), plain, rtol=1e-5, atol=1e-6)


def test_each_row_starts_from_numbers_of_its_own():
    rows = WeightTable(40, 64, seed=0, scale=1.0).whole()
    cosines = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(rows, dim=1).T
    assert (cosines - torch.eye(40)).abs().max() < 0.6  # independent directions of 64 dimensions: sd 1/8
