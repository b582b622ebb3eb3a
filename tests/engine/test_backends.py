"""Settings of a GPU, without one: what torch is told, and which batch norm is taken."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch import nn

from engine import backends, batchnorm, dist
from engine.options import RunOptions

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def told():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark, convolution, product, deterministic = told()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = (
        benchmark,
        convolution,
        product,
    )
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, (True, False, False, False)),
    ({"tf32": True, "cudnn_benchmark": False}, (False, True, True, False)),
    ({"deterministic": True}, (False, False, False, True)),
])  # fmt: skip
def test_torch_is_told_what_the_options_say_without_a_warning(options, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backends.configure(RunOptions(**options), CUDA)
    assert told() == expected
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == (":4096:8" if options.get("deterministic") else None)


def test_a_cpu_is_told_nothing():
    before = told()
    backends.configure(RunOptions(deterministic=True, tf32=True), CPU)
    assert told() == before


def test_a_gpu_has_torchs_own_synchronised_batch_norm(monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for device, kind in ((CUDA, nn.SyncBatchNorm), (CPU, batchnorm.SyncBatchNorm)):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        names = list(net.state_dict())
        assert type(batchnorm.convert_sync_bn(net, device=device)[1]) is kind and list(net.state_dict()) == names
