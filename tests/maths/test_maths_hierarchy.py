import json

import numpy as np
import pytest
import torch

from engine.maths.hierarchy import UNLABELLED, hierarchy
from engine.maths.pca import pca
from golden import load


def test_two_levels_agree_with_the_authors():
    g = load("deepercluster/hierarchical.npz")
    p = json.loads(str(g.given("params")))
    x = torch.from_numpy(g.given("X"))
    white = pca(x[: p["pca_rows"]], p["dim_pca"]).unit(x)
    supers = p["nmb_super_clusters"]
    subsets = [torch.from_numpy(g.given(f"subset_indexes_{s}")) for s in range(supers)]
    starts = [white[g.given("level1_centroid_rows")]]
    starts += [white[subset[g.given(f"level2_centroid_rows_{s}")]] for s, subset in enumerate(subsets)]
    found = hierarchy(white, supers, p["k_total"], iterations=p["niter"], starts=starts, multiple=p["batch_size"])
    g.agree_fraction("super_labels", found.supers, 0.99)
    for s, subset in enumerate(subsets):
        assert np.array_equal(torch.nonzero((found.subs != UNLABELLED) & (found.supers == s)).flatten(), subset)
        g.agree_fraction(f"sub_labels_{s}", found.subs[subset], 0.99)


def points(n=200, seed=0):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def test_every_row_has_a_label_and_no_cluster_is_empty():
    found = hierarchy(points(), 3, 24)
    for s in range(3):
        assert set(found.subs[found.supers == s].tolist()) == set(range(8))
    assert len(found.levels) == 4


def test_a_cluster_that_starts_far_from_every_row_does_not_end_empty():
    x, far = points(), torch.full((1, 5), 50.0)
    starts = [torch.cat([x[:1], far]), torch.cat([x[:2], far]), torch.cat([x[:2], far])]
    found = hierarchy(x, 2, 6, starts=starts, iterations=3)
    assert all(level.empty == 0 for level in found.levels)
    for s in range(2):
        assert set(found.subs[found.supers == s].tolist()) == {0, 1, 2}


def test_one_super_cluster_is_plain_clustering():
    found = hierarchy(points(), 1, 6)
    assert found.supers.eq(0).all() and len(found.levels) == 1 and found.subs.unique().numel() == 6


def test_what_cannot_be_clustered_is_refused():
    with pytest.raises(ValueError, match="rows for 30 clusters"):
        hierarchy(points(50), 2, 60)
    with pytest.raises(ValueError, match="2 clusters in 3"):
        hierarchy(points(50), 3, 2)
