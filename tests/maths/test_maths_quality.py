"""Measures without labels: the authors' numbers, and spectra whose answer is known on paper."""

import numpy as np
import pytest
import torch

from engine.errors import Degenerate
from engine.maths import quality as q
from golden import load


def test_every_measure_agrees_with_the_authors_programs():
    g = load("quality/quality_golden_A.npz")
    x, views = g.given("x"), g.given("views")
    g.agree("spt_rankme_f64", q.rankme(x, eps=1e-5))
    g.agree("spt_rankme_f32", q.rankme(x, eps=1e-5))
    g.agree("google_rankme", q.rankme(x, eps=1e-12))
    g.agree("def_rankme_eps1e-7", q.rankme(x))
    g.agree("def_rankme_eps1e-7_centred", q.rankme(x, centre=True))
    assert q.effective_rank(x) == pytest.approx(q.rankme(x, eps=0, centre=True), rel=1e-9)
    g.agree("spt_lidar_f64", q.lidar(views))
    g.agree("spt_lidar_f32", q.lidar(views))
    g.agree("spt_lidar_delta1e-3_f64", q.lidar(views, delta=1e-3))
    g.agree("google_stable_rank", q.stable_rank(x, centre=False))
    g.agree("def_stable_rank_centred", q.stable_rank(x))
    g.agree("google_ne_sum", q.stable_rank(x))
    g.agree("def_participation_ratio", q.participation_ratio(x))
    g.agree("eigenvalues", q.variances(x))
    g.agree("google_coherence", q.coherence(x))
    g.agree("google_self_clustering", q.self_clustering(x))
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(q.singular_values(x), s, rtol=1e-9)
    g.agree("google_pseudo_condition_number", q.singular_values(x)[-1] / (q.singular_values(x)[0] + 1e-12))
    g.agree("google_alpha_req", np.polyfit(np.linspace(1, 0, len(s)), np.log(q.singular_values(x) + 1e-12), 1)[0])
    first, second = views[:, 0], views[:, 1]
    g.agree("align_alpha2", q.alignment(first, second))
    g.agree("align_alpha1", q.alignment(first, second, power=1))
    g.agree("uniform_t2", q.uniformity(first))
    g.agree("uniform_t2_second", q.uniformity(second))
    g.agree("uniform_t4", q.uniformity(first, t=4))
    g.agree("alpha_3_50", q.alpha_req(x, 3, 50)[0])
    g.agree("alpha_3_10", q.alpha_req(x, 3, 10)[0])


def spread(values, n=400, mean=0.0, seed=0):
    """(n, d) whose centred singular values are exactly ``values``."""
    rng = np.random.default_rng(seed)
    raw = rng.standard_normal((n, len(values)))
    left = np.linalg.qr(raw - raw.mean(0))[0]
    right = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return left * np.asarray(values) @ right + mean


def test_five_equal_directions_count_five_whatever_the_mean():
    x = spread([3.0] * 5 + [0.0] * 7, mean=50.0)
    assert q.effective_rank(x) == pytest.approx(5, rel=1e-4)
    assert q.participation_ratio(x) == pytest.approx(5) and q.stable_rank(x) == pytest.approx(5)
    assert q.rankme(x) < 2.5, "the uncentred rank sees the mean"
    assert q.rankme(x - x.mean(0)) == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_power_law_gives_its_exponent_and_a_perfect_fit(alpha):
    x = spread(np.arange(1, 61) ** (-alpha / 2), mean=3.0)
    found, fit, end = q.alpha_req(x)
    assert (found, fit) == (pytest.approx(alpha, abs=1e-6), pytest.approx(1, abs=1e-9)) and end == 60
    thin = spread([*np.arange(1, 31) ** (-alpha / 2), *[0.0] * 30])
    assert q.alpha_req(thin)[::2] == (pytest.approx(alpha, abs=1e-6), 30), "rounding is not part of the law"


def test_lidar_counts_the_directions_between_images_and_not_those_within():
    rng = np.random.default_rng(0)
    n, views, d = 200, 8, 16
    images = np.zeros((n, d))
    images[:, :4] = spread([1.0] * 4, n=n) @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    noise = np.zeros((n, views, d))
    noise[..., 8:] = rng.standard_normal((n, views, 8))
    noise -= noise.mean(1, keepdims=True)
    assert q.lidar(images[:, None] * 10 + noise) == pytest.approx(4, rel=1e-3)
    assert q.rankme((images[:, None] * 10 + noise).reshape(-1, d)) > 10, "RankMe takes the noise of views for content"


def test_uniformity_of_one_point_a_pair_and_the_sphere():
    assert q.uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    assert q.uniformity(np.array([[1.0, 0], [0, 2.0]])) == pytest.approx(-2 * 2)
    x = np.random.default_rng(1).standard_normal((300, 8))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(300) for j in range(i)]
    assert q.uniformity(x) == pytest.approx(np.log(np.mean(pairs)))
    before = q.BLOCK
    try:
        q.BLOCK = 7
        assert q.uniformity(x) == pytest.approx(np.log(np.mean(pairs)))
    finally:
        q.BLOCK = before


def test_alignment_and_self_clustering_at_their_ends():
    x = np.random.default_rng(2).standard_normal((50, 4))
    assert q.alignment(x, 3 * x) == pytest.approx(0, abs=1e-12) and q.alignment(x, -x) == pytest.approx(4)
    assert q.self_clustering(np.ones((6, 4))) == pytest.approx(1)
    assert abs(q.self_clustering(np.random.default_rng(3).standard_normal((4000, 16)))) < 1e-3
    assert q.coherence(np.random.default_rng(3).standard_normal((4, 9))) == pytest.approx(1)


def test_what_has_no_value_says_so():
    same = np.ones((10, 4))
    for measure in (q.effective_rank, q.participation_ratio, q.alpha_req):
        with pytest.raises(Degenerate, match="collapsed to a point"):
            measure(same)
    with pytest.raises(Degenerate, match="collapsed"):
        q.lidar(np.ones((10, 3, 4)))
    with pytest.raises(Degenerate, match="3 variances"):
        q.alpha_req(spread([1.0, 1.0, 1.0]))
    with pytest.raises(Degenerate, match="not finite"):
        q.rankme(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="two rows"):
        q.rankme(np.ones((1, 4)))
    assert q.rankme(same) == pytest.approx(1, rel=1e-4)
