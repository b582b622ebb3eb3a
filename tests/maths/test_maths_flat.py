"""faiss's index where the rows are; and k-means' use of it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from engine.maths import flat, kmeans
from engine.maths.knn import search
from engine.maths.rows import ON_DEVICE, Rows

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class Config:
    device = 0


def fake(gpus):
    """A faiss that says what was asked of it."""

    def maker(name):
        return lambda *args: (name, *args)

    names = ("IndexFlatIP", "IndexFlatL2", "GpuIndexFlatIP", "GpuIndexFlatL2")
    return SimpleNamespace(
        **{name: maker(name) for name in names},
        GpuIndexFlatConfig=Config,
        StandardGpuResources=lambda: "resources",
        get_num_gpus=lambda: gpus,
    )


@pytest.mark.parametrize("products, kind", [(True, "IP"), (False, "L2")])
def test_an_index_is_on_the_gpu_of_the_rows_alone(products, kind, monkeypatch):
    for module in ("faiss", "faiss.contrib", "faiss.contrib.torch_utils"):
        monkeypatch.setitem(sys.modules, module, fake(2))
    name, resources, dim, settings = flat.flat_index(7, GPU, products=products)
    assert (name, resources, dim, settings.device) == (f"GpuIndexFlat{kind}", "resources", 7, 1)
    assert flat.flat_index(7, CPU, products=products) == (f"IndexFlat{kind}", 7)


@pytest.mark.parametrize("gpus", [0, 1])
def test_without_that_gpu_an_index_is_on_the_cpu(gpus):
    assert not flat.on_gpu(fake(gpus), GPU)
    del (without := fake(2)).StandardGpuResources  # a faiss that was built for CPUs
    assert not flat.on_gpu(without, GPU)


def test_an_index_is_made_once_a_pass(monkeypatch):
    made = []
    plain = flat.flat_index
    monkeypatch.setattr(kmeans, "flat_index", lambda *args, **kwargs: made.append(args) or plain(*args, **kwargs))
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(kmeans, "BLOCK_CELLS", 1 << 10)  # eight blocks
    found = kmeans.kmeans(x, x[:5], iterations=2, backend="faiss")
    assert len(made) == len(found.history) == 3


def test_blocks_of_an_accelerator_are_large_and_bounded_on_both_sides():
    few, many = (Rows(torch.empty(10, 4096, device="meta")), Rows(torch.empty(10, 128, device="meta")))
    assert kmeans.block_size(4, few) == ON_DEVICE // 4096 and kmeans.block_size(80_000, many) == ON_DEVICE // 80_000
    assert kmeans.block_size(80_000, Rows(torch.empty(10, 128))) == 256


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("spherical", [False, True])
def test_a_gpu_finds_the_clusters_of_a_cpu(backend, spherical):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(40, 16, generator=g)[torch.arange(4000) % 40], dim=1)
    x = torch.nn.functional.normalize(x + 0.01 * torch.randn(4000, 16, generator=g), dim=1)
    here = kmeans.kmeans(x, x[:40], spherical=spherical)
    there = kmeans.kmeans(Rows(x, device="cuda"), x[:40], spherical=spherical, backend=backend)
    assert torch.equal(here.labels, there.labels) and torch.allclose(here.centroids, there.centroids.cpu(), atol=1e-5)
    expected, found = (
        search(x, x[:9], 5),
        search(Rows(x, device="cuda"), Rows(x[:9], device="cuda"), 5, backend=backend),
    )
    assert torch.equal(expected[1], found[1])
