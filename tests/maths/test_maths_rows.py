import numpy as np
import pytest
import torch

from engine.maths.rows import Rows, everywhere, sample

X = np.random.default_rng(0).standard_normal((23, 3)).astype(np.float32)


@pytest.fixture(params=["tensor", "array", "memmap", "shards", "half", "rows of shards"])
def source(request, tmp_path):
    if request.param == "memmap":
        np.save(tmp_path / "x.npy", X)
        return np.load(tmp_path / "x.npy", mmap_mode="r")
    shards = [X[:10], torch.from_numpy(X[10:10]), torch.from_numpy(X[10:])]
    return {"tensor": torch.from_numpy(X), "array": X, "shards": shards, "half": X.astype(np.float16), "rows of shards": Rows(shards)}[request.param]


def test_any_source_reads_the_same_rows(source):
    expected = torch.from_numpy(X) if getattr(source, "dtype", None) != np.float16 else torch.from_numpy(X.astype(np.float16)).float()
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
