"""Features of a frozen network: bfloat16 and channels_last on a GPU, the bits of before on a CPU. A GPU is stood in for by a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import extract, layout
from engine.options import RunOptions
from evaluations.inputs.features import Compute, FeatureRequest, Features, FeatureStore, forward
from evaluations.probes import sgd
from reproduce import monitor
from reproduce.method import Method
from reproduce.stream import Stream
from reproduce.views import Augment, Crop
from zoo import backbones, data, precision

CUDA = torch.device("cuda", 0)


class Convolutions(TorchDispatchMode):
    """The data types and orders in memory of the images that convolutions got."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, bool]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            last = args[0].is_contiguous(memory_format=torch.channels_last) and not args[0].is_contiguous()
            self.seen.add((args[0].dtype, last))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch):
    """What is sent to a GPU stays here; autocast for one is a CPU's."""
    plain, real = layout.memory_format, torch.autocast
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: True)
    monkeypatch.setattr(layout, "arranged", lambda images, net, device: images.to(memory_format=plain(net)))
    monkeypatch.setattr(torch, "autocast", lambda device, *rest, **more: real("cpu", *rest, **more))


def network():
    torch.manual_seed(0)
    options = {"width": 16, "blocks": [1, 1], "stem_stride": 1, "in_channels": 3}
    return backbones.build({"name": "tiny_resnet", "options": options}).eval()


def passes(compute):
    """Each way in which an evaluation passes images through a frozen network, with what its convolutions got."""
    net, images = network(), torch.randn(2, 3, 12, 12)
    requests = [FeatureRequest("train", "output"), FeatureRequest("train", "res2")]
    with Convolutions() as kept:
        found = forward(net, images, requests, compute)
    assert {value.dtype for value in found.values()} == {torch.float32}
    with Convolutions() as faithful:
        wanted = SimpleNamespace(pool="avg", id="linear")
        assert sgd.passed(net, images, wanted, ["output"], compute)["output"].dtype == torch.float32
    return found[requests[0]], kept.seen, faithful.seen


def test_a_gpu_takes_bfloat16_and_channels_last_unless_told_otherwise(gpu):
    _, kept, faithful = passes(Compute(CUDA))
    assert kept == faithful == {(torch.bfloat16, True)}
    _, kept, faithful = passes(Compute(CUDA, options=RunOptions(half_features=False)))
    assert kept == faithful == {(torch.float32, True)}


def test_a_cpu_keeps_its_bits(gpu):
    """Even one that has bfloat16: the option is a GPU's."""
    plain, kept, faithful = passes(Compute())
    other, *_ = passes(Compute(options=RunOptions(half_features=False)))
    assert torch.equal(plain, other) and {kind for kind, _ in kept | faithful} == {torch.float32}
    assert precision.of_features("cpu") == precision.of_features("mps") == "float32"


def test_a_gpu_without_bfloat16_stays_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: False)
    assert Compute(CUDA).passes == "float32" == precision.of_features("cuda:1")


def test_the_precision_is_in_the_key_of_kept_features(gpu, tmp_path):
    digits = data.open_source("digits", "fit")
    model = SimpleNamespace(weights_sha256="0" * 64, description={}, input={})
    plain = SimpleNamespace(pad=None, resize=None, crop=None)
    wanted = SimpleNamespace(transform=plain, splits=SimpleNamespace(test="test"))
    keys = set()
    for compute in (Compute(), Compute(CUDA), Compute(CUDA, options=RunOptions(half_features=False))):
        features = Features(model, wanted, FeatureStore(tmp_path), compute=compute, open_split=lambda split: digits)
        keys.add(features.key(FeatureRequest("fit")))
    assert len(keys) == 3 and Compute().path == "cpu float32 channels_last batch norm by torch"


class Frozen(Method):
    def __init__(self) -> None:
        super().__init__(network())


def batches(**how):
    images = data.open_source("digits", "fit").subset(range(12))
    images = data.source.ArraySource(np.stack([images.array] * 3, -1), images.labels, images.classes, "digits")
    return Stream(images, Augment((Crop(8, (0.5, 1.0)),), pad=1), batch=4, schedule={"epochs": 1}, **how)


def test_extraction_between_epochs_computes_the_same_way_and_says_so_in_its_key(gpu, tmp_path, monkeypatch):
    keys = []
    plain = extract.fingerprint
    monkeypatch.setattr(extract, "fingerprint", lambda *what: keys.append(plain(*what)) or keys[-1])
    found = {}
    for name, how in {"cpu": {}, "gpu": {"precision": "bfloat16"}, "gpu, float32": {"precision": "float32"}}.items():
        stream, method = batches(**how), Frozen()
        stream.workspace = tmp_path
        if name != "cpu":
            monkeypatch.setattr(method, "parameters", lambda: iter([SimpleNamespace(device=CUDA)]))
        with Convolutions() as seen:
            _, rows = stream.extract(method)
        found[name] = rows
        wanted = {"cpu": torch.float32, "gpu": torch.bfloat16, "gpu, float32": torch.float32}[name]
        assert {kind for kind, _ in seen.seen} == {wanted} and (
            name == "cpu" or {last for _, last in seen.seen} == {True}
        )
        assert rows.dtype == torch.float32
    assert len(set(keys)) == 3
    torch.testing.assert_close(found["gpu"], found["cpu"], rtol=0.05, atol=0.05)
    assert not torch.equal(found["gpu"], found["cpu"])


def test_a_monitor_looks_as_an_evaluation_would(gpu):
    for half, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        input = SimpleNamespace(mean=[0.5] * 3, std=[0.5] * 3)
        stream = SimpleNamespace(total_steps=10, steps_per_epoch=5)
        settings = monitor.MonitorSettings()
        device = torch.device("cpu")
        look = monitor.Monitor(settings, None, SimpleNamespace(input=input), Frozen(), stream, device, half)
        look.__dict__["pixels"] = torch.randint(0, 256, (4, 3, 10, 10), dtype=torch.uint8)
        with Convolutions() as seen:
            assert look.features().dtype == torch.float32
        assert {kind for kind, _ in seen.seen} == {wanted}
