"""channels_last is used only where torch's CPU backward is correct; see engine/layout.py."""

import os
import subprocess
import sys

import engine_toys as toys
import pytest
import torch
from torch import nn

from engine import layout
from engine.batch import Batch

LAST, PLAIN = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 1, 2), PLAIN),
        (nn.Conv2d(15, 30, 1, 2), PLAIN),
        (nn.Conv2d(15, 30, (1, 1), (1, 3)), PLAIN),  # strided along one side
        (nn.Conv2d(4, 8, 1, 2, dilation=2), PLAIN),  # a 1x1 kernel has nothing to dilate
        (nn.Conv2d(4, 8, 1, 2, padding=1), PLAIN),
        (nn.Conv2d(32, 32, 1, 2, groups=4), PLAIN),  # 8 channels in each group
        (nn.Conv2d(16, 32, 1, 2), LAST),
        (nn.Conv2d(64, 64, 1, 2, groups=4), LAST),
        (nn.Conv2d(4, 8, 1), LAST),
        (nn.Conv2d(4, 8, 3, 2), LAST),
        (nn.Linear(4, 8), LAST),
    ],
)
def test_a_narrow_strided_1x1_convolution_keeps_the_whole_network_contiguous(layer, expected):
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Sequential(layer))
    assert layout.memory_format(network) is expected
    assert layout.memory_format(network, channels_last=False) is PLAIN
    assert layout.narrow_strided(network) == [] if expected is LAST else "1.0 (" in layout.narrow_strided(network)[0]


def channels_last(x: torch.Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


@pytest.mark.parametrize(("width", "expected"), [(4, False), (16, True)])
def test_images_in_any_order_are_put_into_the_safe_one(width, expected):
    network = nn.Conv2d(width, 2 * width, 1, 2)
    permuted = torch.randn(2, 6, 6, width).permute(0, 3, 1, 2)  # pixels as image files hold them
    for images in (permuted, permuted.contiguous()):
        assert channels_last(layout.arranged(images, network, "cpu")) == expected
        assert torch.equal(layout.arranged(images, network, "cpu"), images)
    assert not channels_last(Batch(torch.arange(2), [permuted]).to("cpu").views[0])


class Narrow(toys.Toy):
    """The toy with a shortcut of `width` channels, as a narrow residual network has it, and a record of what it saw."""

    def __init__(self, width=4):
        super().__init__()
        shortcut = nn.Conv2d(width, 2 * width, 1, 2, bias=False)
        shortcut.register_forward_pre_hook(lambda layer, inputs: self.seen.add(channels_last(inputs[0])))
        self.net = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(), shortcut, nn.Flatten())
        self.net.append(nn.Linear(2 * width * 9, 6))
        self.seen = set()


def test_the_loop_leaves_channels_last_and_says_so_once(tmp_path, capsys):
    _, method = toys.run(tmp_path, Narrow(), channels_last=True)
    assert method.seen == {False}
    said = [line for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"contiguous"' in line]
    assert len(said) == 1 and "net.3 (4 -> 8 channels, stride 2)" in said[0]
    assert capsys.readouterr().err.count("channels_last is not used") == 1
    _, method = toys.run(tmp_path / "wide", Narrow(16), channels_last=True)
    assert method.seen == {True} and '"contiguous"' not in (tmp_path / "wide" / "log.jsonl").read_text()


STEPS = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import numpy as np, torch
import engine_toys as toys
import test_layout
from engine.batch import Batch
from evaluations.probes import finetuning
from evaluations.inputs.features import Compute

class Large(toys.Stream):
    def _views(self, part, epoch):
        return [torch.randn(len(part), 3, 6, 6) for _ in range(2)]

for width in (3, 4, 6):
    toys.run(Path(sys.argv[1]) / str(width), test_layout.Narrow(width), stream=Large(20, 4, batch=32), batch=32, channels_last=True)

net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1, 2), torch.nn.Conv2d(6, 12, 1, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
optimizer = torch.optim.SGD([{"params": list(net.parameters())}], lr=0.1)
job = finetuning.FineTuning(net, optimizer, [], np.full((20, 1), 0.1), torch.nn.CrossEntropyLoss(reduction="sum"), lambda net: net.train())
for step in range(20):
    images = torch.randn(32, 10, 10, 3).permute(0, 3, 1, 2)
    finetuning.one_step(job, step, images, torch.zeros(32, dtype=torch.long), 32, Compute())
print("whole")
"""


def test_narrow_networks_train_where_registers_are_narrow_too(tmp_path):
    """In a process of its own, which torch's fault kills: 3 to 6 channels under AVX2's kernels, in the loop and in fine-tuning."""
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path), here, os.path.dirname(here)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=os.path.dirname(os.path.dirname(here)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "whole" in done.stdout, done.stderr[-2000:]
