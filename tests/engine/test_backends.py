"""Settings of a GPU, without one: what torch is told, and which batch norm is taken."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch import nn

from engine import backends, batchnorm, dist
from engine.options import RunOptions
from evaluations import measure
from evaluations.detection import train as detection
from evaluations.inputs.features import Compute
from evaluations.measure import Settings
from reproduce import launch
from zoo import data, precision

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


@pytest.mark.parametrize("options", [{}, {"tf32": True, "cudnn_benchmark": False}, {"deterministic": True}])
def test_what_a_gpu_was_told_is_in_the_provenance_of_runs_detectors_and_records(options, monkeypatch):
    """Compared with what torch itself says after it was told."""
    chosen = RunOptions(**options)
    monkeypatch.setattr(dist, "init", lambda device: dist.World(device=CUDA))
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: True)
    monkeypatch.setattr(measure, "peak_memory", lambda device: 0)
    compute = Settings.of(options).compute
    benchmark, tf32, products, deterministic = told()
    wanted = {"cudnn_benchmark": benchmark, "tf32": tf32, "deterministic": deterministic, "features": "bfloat16"}
    assert tf32 == products and compute.device == CUDA
    work = launch.job("simsiam_digits", options)
    assert launch.origin(work, dist.World(device=CUDA), data.open_source("digits", "fit"))["device"] == {
        "type": "cuda",
        **wanted,
    }
    assert detection._provenance(compute)["device"] == {"type": "cuda", **wanted}
    (said,) = {measure._provenance(1.0, compute).hardware["told"]}
    assert said == " ".join(f"{name}={value}" for name, value in wanted.items())
    assert (
        "features=float32"
        in measure._provenance(1.0, Compute(CUDA, options=RunOptions(half_features=False))).hardware["told"]
    )
    assert (
        backends.settings(chosen, CPU, "float32") == {} and "told" not in measure._provenance(1.0, Compute()).hardware
    )


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
