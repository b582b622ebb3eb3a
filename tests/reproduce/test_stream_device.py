"""What the host hands to the training device: uint8 once, and nothing is read back.

The device is torch's `meta`: shapes without numbers, so that whatever a batch read back from it would be an error.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce import stream as streams
from reproduce.method import Method
from reproduce.stream import Stream
from reproduce.views import Augment, Crop
from zoo.data import open_source

COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8}
MULTI = Augment(
    (Crop(16, (0.3, 1.0)),) * 2 + (Crop(10, (0.1, 0.4)),) * 3,
    jitter=COLOUR,
    grayscale=0.2,
    solarize={"probability": 0.5, "threshold": 0.5},
    blur={"probability": 0.5, "sigma": [0.1, 2.0]},
)
BATCH = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    home, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    (home / "train" / "one").mkdir(parents=True)
    for i in range(BATCH):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(home / "train" / "one" / f"{i}.png")
    return open_source("folder", "train", home)


class Handed(TorchDispatchMode):
    """Tensors that go from main memory to the device: bytes of each data type."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and out.device.type == "meta":
            self.bytes[out.dtype] = self.bytes.get(out.dtype, 0) + out.numel() * out.element_size()
        return out


@pytest.mark.parametrize("form", ["files", "files and a worker", "in memory"])
def test_pixels_are_handed_over_as_uint8_once_and_nothing_is_read_back(source, form):
    batches = Stream(source, MULTI, batch=BATCH, schedule={"epochs": 1}, workers=int("worker" in form), device="meta")
    if form == "in memory":
        batches._array = np.stack([source.pixels(i) for i in range(BATCH)])
    with Handed() as handed:
        (batch,) = batches.epoch(0)
        batch = batch.to("meta")
    assert [tuple(view.shape) for view in batch.views] == [(BATCH, 3, crop.size, crop.size) for crop in MULTI.crops]
    assert (
        all(view.device.type == "meta" and view.dtype == torch.float32 for view in batch.views)
        and batch.index.device.type == "cpu"
    )
    pixels = BATCH * 3 * (24**2 if form == "in memory" else sum(crop.size**2 for crop in MULTI.crops))
    assert handed.bytes.pop(torch.uint8) == pixels
    assert sum(handed.bytes.values()) < 5 * 1024  # what was drawn, means and deviations


def test_features_of_the_whole_set_are_computed_from_uint8_too(source):
    class Shapes(Method):
        def __init__(self):
            super().__init__(nn.Linear(1, 1, device="meta"))

        def features(self, images):
            seen.append((images.device.type, tuple(images.shape)))
            return torch.zeros(len(images), 2)

    seen: list = []
    batches = Stream(source, MULTI, batch=BATCH, schedule={"epochs": 1}, device="meta")
    with Handed() as handed:
        batches.extract(Shapes(), 2)
    assert seen == [("meta", (BATCH, 3, 10, 10))] and handed.bytes[torch.uint8] == BATCH * 3 * 100


@pytest.mark.parametrize(
    ("device", "processes", "env", "expected"),
    [
        ("cuda", 1, {}, 15),
        ("cuda", 4, {"LOCAL_WORLD_SIZE": "4"}, 3),
        ("cuda", 64, {"LOCAL_WORLD_SIZE": "8"}, 1),
        ("cuda", 64, {"SLURM_PROCID": "9"}, 15),
        ("cpu", 1, {}, 12),
        ("cpu", 4, {}, 0),
        ("cuda", 32, {}, 0),
    ],
)
def test_workers_are_the_cores_that_are_left(monkeypatch, source, device, processes, env, expected):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(streams.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert streams.spare_cores(processes, torch.device(device)) == expected


def test_workers_that_nobody_asked_for_are_none_for_arrays_in_memory(monkeypatch, source):
    monkeypatch.setattr(streams, "spare_cores", lambda processes, device: 5)
    files = Stream(source, MULTI, batch=BATCH, schedule={"epochs": 1}, workers=None)
    assert files.workers == 5 and files.workers_of(2) == 2
    files._array = np.zeros((BATCH, 4, 4, 3), np.uint8)
    assert files.workers_of(None) == 0


@pytest.mark.parametrize("form", ["files", "in memory"])
def test_colour_and_blur_of_an_image_do_not_depend_on_the_company_that_it_is_in(source, form):
    def batches(**where):
        found = Stream(source, MULTI, batch=BATCH, schedule={"epochs": 1}, **where)
        if form == "in memory":
            found._array = np.stack([source.pixels(i) for i in range(BATCH)])
        return next(iter(found.epoch(0)))

    whole, parts = batches(), [batches(rank=r, world=4) for r in range(4)]
    assert torch.equal(whole.index, torch.cat([part.index for part in parts]))
    for v, view in enumerate(whole.views):
        assert torch.equal(view, torch.cat([part.views[v] for part in parts]))


def test_a_plan_says_how_fast_images_would_be_loaded(source, monkeypatch):
    from engine.options import RunOptions
    from reproduce import plan

    monkeypatch.setattr(plan, "loading_time", lambda source, augment: 0.004)
    batches = Stream(source, MULTI, batch=BATCH, schedule={"epochs": 1})
    said = plan.loading(source, batches, RunOptions(workers=3), 2)
    assert (
        said.startswith("4 ms of one core")
        and "3 workers a process" in said
        and "1,500 images/s, a batch in 0.0053 s" in said
    )
    assert "the training process itself" in plan.loading(source, batches, RunOptions(workers=0), 1)
    assert 0 < streams.loading_time(source, MULTI) < 1
