"""Counter-based randomness: the same everywhere, unrelated for different counters, uniform and normal."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from engine import rng


def test_values_never_change():
    assert rng.key(0, "views") == 5881572214363796945
    assert rng.key(7, "order", 3, 1) == 9177143258923183753
    index = np.array([0, 5, 2**40])
    assert (rng.uniforms(1, "crop", 2, index, 3, 2) * 2**53).astype(np.int64).tolist() == [
        [8375828177366231, 6310631665677962],
        [7267233071782766, 7009746660023890],
        [4243254158796069, 3947645550410473],
    ]
    assert rng.normals(1, "noise", 2, index, 3, 2).tolist() == [
        [-0.9066708548999775, -0.35531423206570045],
        [-0.35814417736387427, 0.7577358845790777],
        [0.853479108809502, -0.3333710012529494],
    ]
    assert (rng.uniforms(1, "crop", 2, index, 3, 1, np.array([1, 2, 0])) * 2**53).astype(np.int64)[:, 0].tolist() == [
        561178114506007,
        7677453138059349,
        4243254158796069,
    ]
    assert rng.permutation(5, "order", 1, 8).tolist() == [7, 1, 4, 5, 2, 3, 0, 6]


def test_a_row_depends_on_its_own_index_alone():
    index = np.random.default_rng(0).permutation(1000)
    whole = rng.uniforms(3, "crop", 4, index, 1, 5)
    np.testing.assert_array_equal(whole[17:40], rng.uniforms(3, "crop", 4, index[17:40], 1, 5))
    np.testing.assert_array_equal(whole[:, :2], rng.uniforms(3, "crop", 4, index, 1, 2))


def test_visits_have_draws_of_their_own_and_the_first_visit_those_of_no_visit():
    index, visit = np.array([0, 5, 2**40]), np.array([1, 2, 0])
    for draw in (rng.uniforms, rng.normals):
        plain, mixed = draw(1, "crop", 2, index, 3, 2), draw(1, "crop", 2, index, 3, 2, visit)
        np.testing.assert_array_equal(plain, draw(1, "crop", 2, index, 3, 2, visit=0))
        np.testing.assert_array_equal(mixed[2], plain[2])
        np.testing.assert_array_equal(mixed[:1], draw(1, "crop", 2, index[:1], 3, 2, visit=1))
    many = rng.uniforms(1, "crop", 2, np.repeat(np.arange(2000), 50), 3, 1, np.tile(np.arange(50), 2000))[:, 0]
    assert len(np.unique(many)) == 100_000 and stats.kstest(many, "uniform").pvalue > 0.001
    assert np.abs(np.corrcoef(many.reshape(2000, 50).T) - np.eye(50)).max() < 0.1


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"purpose": "blur"}, {"epoch": 5}, {"view": 2}, {"visit": 1}, {"visit": 2000}]
)
def test_every_argument_matters_and_draws_are_unrelated(change):
    base = {"seed": 3, "purpose": "crop", "epoch": 4, "view": 1, "visit": 0}
    index = np.arange(20000)
    a, b = (rng.uniforms(index=index, n=1, **{**base, **extra})[:, 0] for extra in ({}, change))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03 and (a == b).sum() == 0
    for shift in (1, 2, 64):
        assert abs(np.corrcoef(a[shift:], a[:-shift])[0, 1]) < 0.03


def test_uniforms_are_uniform_and_normals_normal():
    index = np.arange(5000)
    u, z = rng.uniforms(0, "a", 0, index, 0, 8), rng.normals(0, "a", 0, index, 0, 8)
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.001 and stats.kstest(z.ravel(), "norm").pvalue > 0.001
    for column in range(8):
        assert stats.kstest(u[:, column], "uniform").pvalue > 0.0001
    assert np.abs(np.corrcoef(u.T) - np.eye(8)).max() < 0.06


def test_the_normal_quantile_is_accurate_into_the_tails():
    p = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 20001), 10.0 ** -np.arange(1, 17), [2.0**-54]])
    np.testing.assert_allclose(rng._inverse_normal(p), special.ndtri(p), rtol=1e-13, atol=1e-15)


def test_permutations_are_permutations_and_uniform():
    for n in (0, 1, 2, 1000):
        assert sorted(rng.permutation(1, "order", 0, n)) == list(range(n))
    firsts = [rng.permutation(s, "order", e, 5)[0] for s in range(20) for e in range(50)]
    assert stats.chisquare(np.bincount(firsts, minlength=5)).pvalue > 0.001
    assert rng.permutation(1, "order", 0, 4).dtype == np.int64


def test_a_generator_is_fresh_each_time():
    a, b, c = (torch.rand(4, generator=rng.generator(1, "init", k)) for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_keys_fit_torch_and_counters_do_not_run_together():
    keys = {
        rng.key(s, p, *c)
        for s in (-1, 0, 1)
        for p in ("a", "b")
        for c in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (-1,)]
    }
    assert len(keys) == 42 and all(0 <= key < 2**63 for key in keys)


def test_uniform_numbers_drawn_on_a_device_have_the_same_bits():
    index = np.array([0, 1, 5, 2**40, 1_281_166])
    for seed, step, view in ((0, 0, 0), (7, 123456, 1), (2**40, 3, 2)):
        ours = rng.uniforms_on(seed, "negatives", step, torch.from_numpy(index), view, 501)
        assert np.array_equal(ours.numpy(), rng.uniforms(seed, "negatives", step, index, view, 501))
