import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as Theirs

from engine.maths import pca as module
from engine.maths.pca import pca
from golden import load


def data(n=200, d=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g) + 5


def test_whitening_agrees_with_the_authors():
    g = load("deepercluster/pca_whiten.npz")
    for case, columns in (("full", 8), ("rankdef", 20)):
        x = torch.from_numpy(g.given(f"{case}_X"))
        found = pca(x, int(g.given(f"{case}_dim")))
        g.agree(f"{case}_mean", found.mean)
        unit = found.unit(x)[:40]
        if case == "full":
            g.agree("full_absdvt", found.projection.abs())
            g.agree("full_absY", found(x).abs())
        else:  # the last four of 24 columns are duplicates: noise in any implementation
            g.agree("rankdef_absdvt", found.projection[:columns].abs(), part=np.s_[:columns])
            g.agree("rankdef_absY", found(x)[:, :columns].abs(), part=np.s_[:, :columns])
        g.agree(f"{case}_normed_gram", unit @ unit.T)


def test_deepclusters_whitening_through_faiss_is_the_same():
    g = load("deepercluster/pca_whiten.npz")
    x = torch.from_numpy(g.given("full_X"))
    unit = pca(x, 8).unit(x)
    g.agree("faiss_absY", unit.abs())
    g.agree("faiss_gram", unit[:40] @ unit[:40].T)


def test_equals_scikit_learn():
    x = data()
    found, theirs = pca(x, 4), Theirs(4, svd_solver="full", whiten=True).fit(x.numpy())
    ratio = np.sqrt(200 / 199)  # theirs divides by n - 1
    assert np.allclose(np.abs(found(x)), np.abs(theirs.transform(x.numpy())) * ratio, atol=1e-3)
    assert np.allclose(found.variances, theirs.explained_variance_ * 199 / 200, rtol=1e-4)


def test_whitened_rows_have_unit_variance_and_plain_ones_keep_theirs():
    x = data()
    assert torch.allclose(pca(x, 7)(x).var(0, correction=0), torch.ones(7), atol=1e-4)
    plain = pca(x, 7, whiten=False)
    assert torch.allclose(plain(x).var(0, correction=0).double(), plain.variances, rtol=1e-4)


def test_blocks_and_shards_do_not_matter(monkeypatch):
    x = data()
    whole = pca(x, 3)
    monkeypatch.setattr(module, "BLOCK_CELLS", 1)
    streamed = pca([x[:120].numpy(), x[120:]], 3)
    assert torch.allclose(whole(x).abs(), streamed(x).abs(), atol=1e-4)


@pytest.mark.parametrize(
    "x, dim, word",
    [
        (data(3), 4, "at most 3"),
        (torch.ones(9, 2), 1, "collapsed"),
        (torch.full((9, 2), float("inf")), 1, "not finite"),
    ],
)
def test_what_has_no_components_is_refused(x, dim, word):
    with pytest.raises(ValueError, match=word):
        pca(x, dim)
