import numpy as np
import pytest
import torch

from engine.maths.hierarchy import hierarchy
from engine.maths.kmeans import kmeans
from engine.maths.knn import search
from engine.maths.pca import pca
from engine.maths.rows import Rows, everywhere, sample
from engine.maths.sela import sela_labels
from engine.maths.sinkhorn import sinkhorn

X = np.random.default_rng(0).standard_normal((23, 3)).astype(np.float32)


@pytest.fixture(params=["tensor", "array", "memmap", "shards", "half", "rows of shards"])
def source(request, tmp_path):
    if request.param == "memmap":
        np.save(tmp_path / "x.npy", X)
        return np.load(tmp_path / "x.npy", mmap_mode="r")
    shards = [X[:10], torch.from_numpy(X[10:10]), torch.from_numpy(X[10:])]
    return {
        "tensor": torch.from_numpy(X),
        "array": X,
        "shards": shards,
        "half": X.astype(np.float16),
        "rows of shards": Rows(shards),
    }[request.param]


def test_any_source_reads_the_same_rows(source):
    expected = (
        torch.from_numpy(X)
        if getattr(source, "dtype", None) != np.float16
        else torch.from_numpy(X.astype(np.float16)).float()
    )
    rows = Rows(source)
    assert rows.shape == (23, 3)
    assert torch.equal(torch.cat([block for _, block in rows.blocks(4)]), expected)
    assert torch.equal(rows.read(8, 13), expected[8:13])
    wanted = [22, 0, 11, 0]
    assert torch.equal(rows.take(wanted), expected[wanted])
    assert torch.equal(Rows(source, index=[5, 20, 1]).read(1, 3), expected[[20, 1]])
    nested = Rows(Rows(source, index=[5, 20, 1]), transform=lambda block: block[:, :2] * 2)
    assert nested.shape == (3, 2) and torch.equal(nested.read(0, 3), expected[[5, 20, 1], :2] * 2)


def test_a_sample_has_different_rows_and_all_of_them_when_asked():
    rows = Rows(X)
    drawn = sample(rows, 23, torch.Generator().manual_seed(1), "local")
    assert torch.equal(drawn.sort(0).values, torch.from_numpy(X).sort(0).values)
    assert torch.equal(everywhere(rows, torch.tensor([3, 1]), "local"), torch.from_numpy(X[[3, 1]]))
    with pytest.raises(ValueError, match="24 different rows wanted, only 23"):
        sample(rows, 24, torch.Generator(), "local")


def test_rows_must_have_two_dimensions():
    with pytest.raises(ValueError, match="two-dimensional"):
        Rows(np.zeros(3))


@pytest.mark.parametrize("form", ["half", "double", "transposed", "strided", "integers", "array", "with gradients"])
def test_every_function_takes_rows_of_any_kind(form):
    """The answer is that for the same numbers as contiguous float32, but for the order in which a processor adds them."""
    x = torch.randint(-8, 9, (40, 6), generator=torch.Generator().manual_seed(0)).float()  # exact in every type
    forms = {
        "half": x.half(),
        "double": x.double(),
        "transposed": x.T.contiguous().T,
        "strided": x.repeat_interleave(2, 1)[:, ::2],
        "integers": x.long(),
        "array": np.asfortranarray(x.numpy()),
        "with gradients": x.clone().requires_grad_(),
    }
    given = forms[form]
    found, plain = (kmeans(data, 4) for data in (given, x))
    assert torch.equal(found.labels, plain.labels) and not found.centroids.requires_grad
    torch.testing.assert_close(found.centroids, plain.centroids, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pca(given, 3).projection, pca(x, 3).projection, rtol=1e-4, atol=1e-5)
    assert torch.equal(hierarchy(given, 2, 6).subs, hierarchy(x, 2, 6).subs)
    labelled = sela_labels(given), sela_labels(x)
    assert torch.equal(labelled[0].labels, labelled[1].labels) and torch.allclose(
        labelled[0].log_r, labelled[1].log_r, atol=1e-3
    )
    assert torch.equal(search(given, given, 3)[1], search(x, x, 3)[1])  # cosines are rounded: equal ones have an order
    if form != "array" and form != "integers":
        assert torch.allclose(sinkhorn(given, 1.0), sinkhorn(x, 1.0), atol=1e-6)


@pytest.mark.parametrize("scale", [2.0**-83, 2.0**60])
def test_pca_does_not_depend_on_the_unit_of_the_rows(scale):
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    plain, scaled = pca(x, 3), pca(x * scale, 3)
    torch.testing.assert_close(scaled(x * scale), plain(x), rtol=1e-4, atol=1e-5)
