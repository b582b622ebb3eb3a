"""No method makes the host wait for the device within a step: counted on torch's `meta` device, where reading a value is an error.

A step is what the loop runs between two batches: before_step, loss, backward, after_backward, the optimiser. Parameters, memories
and views are on the device; the positions of images and the tables of labels are in main memory.
"""

from __future__ import annotations

from contextlib import nullcontext

import contract_tools as tools
import pytest
import torch

from benchmarks._counting import Watched
from engine import optim
from engine.batch import Batch
from engine.maths import rows as maths_rows
from engine.maths import sela, sinkhorn
from engine.maths.rows import Rows


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())


def step(method, recipe, batch, ctx):
    """One step of the loop, on the device."""
    optimizer = optim.build(recipe.dump()["optimizer"], method.param_groups())
    method.before_step(1, ctx)
    loss, logs = method.loss(batch, 1)
    loss.backward()
    method.after_backward(1)
    optimizer.step()
    return loss, logs


@pytest.mark.parametrize("name", tools.cases())
def test_a_step_reads_nothing_back_from_the_device(name):
    recipe = tools.recipe(name)
    method = tools.build(recipe)
    batches = tools.stream(recipe, method)
    ctx = batches.context(method, 0)
    method.before_epoch(0, ctx)
    method.before_step(0, ctx)
    first, second = list(batches.epoch(0))[:2]
    method.loss(first, 0)[0].backward()  # memories and queues come into being
    method.after_backward(0)
    method.zero_grad(set_to_none=True)
    there = method.to("meta")
    for owner in there.modules():  # what methods keep on the device beside parameters and buffers
        for key, value in list(vars(owner).items()):
            if isinstance(value, torch.Tensor) and key not in ("labels", "recent"):
                setattr(owner, key, value.to("meta"))
    if hasattr(there, "_events"):
        there._events = [0]  # a step between two labellings, which are work on all images
    batch = Batch(
        second.index,
        [view.to("meta") for view in second.views],
        None if second.labels is None else second.labels.to("meta"),
        0,
    )
    with Watched() as watched:
        loss, logs = step(there, recipe, batch, ctx)
    assert loss.device.type == "meta" and not watched.waits, watched.waits
    assert not any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in logs.values())


@pytest.mark.parametrize(
    "harmful",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any())],
)
def test_the_count_notices_what_waits(harmful):
    """The same operations on a CPU's tensors, which do not fail, are counted."""
    with Watched("cpu") as watched:
        harmful(torch.ones(3))
    assert watched.waits


def test_a_copy_to_the_host_fails_on_the_meta_device_by_itself():
    with pytest.raises(NotImplementedError):
        torch.ones(3, device="meta").cpu()


def test_sinkhorn_of_a_batch_is_a_few_operations_on_an_accelerator():
    with Watched() as watched:
        sinkhorn.sinkhorn(torch.zeros(4096, 3000, device="meta"), world="local")
    assert not watched.waits and watched.count < 50, watched.launches


def test_a_sweep_over_a_whole_data_set_is_a_few_operations_on_an_accelerator(monkeypatch):
    """160,000 x 3,000 at a hundredth of both sides, with blocks a 10,000th as large: as many blocks, as many operations."""
    images, clusters = 1600, 30
    monkeypatch.setattr(maths_rows, "block_rows", None)
    monkeypatch.setattr(sela, "block_rows", lambda columns, in_cache, device: maths_rows.ON_DEVICE // 10_000 // columns)
    problem = sela._Problem(Rows(torch.randn(images, clusters)), 25.0, torch.float32, True, "local")
    log_r = problem.first_r()
    for _ in ("the matrix is built", "the matrix is kept"):
        with Watched("cpu") as watched:
            problem.sweep(log_r, 1.0)
        assert watched.count < 2000 and len(watched.waits) <= 2, (watched.count, watched.waits)


def test_blocks_fit_the_cache_of_a_cpu_and_the_memory_of_an_accelerator():
    assert maths_rows.block_rows(3000, 1 << 17, torch.device("cpu")) == (1 << 17) // 3000
    assert maths_rows.block_rows(3000, 1 << 17, torch.device("cuda")) == maths_rows.ON_DEVICE // 3000
    assert maths_rows.block_rows(10**9, 1 << 17, torch.device("cuda")) == 16
