"""Shapes computed without torch's compiler are those that the network really gives out."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reproduce.resources import outputs
from zoo import backbones
from zoo.backbones.dry_run import ShapesOnly, dry_run


@pytest.mark.parametrize("name", ["tiny_resnet", "resnet18", "resnet50", "alexnet", "vgg16", "nin"])
def test_shapes_and_counted_outputs_are_the_real_ones(name):
    torch.manual_seed(0)
    network = backbones.build(name)
    side = 224 if name in ("alexnet", "vgg16") else 64
    with torch.device("meta"):
        imagined = backbones.build(name)
    channels = network.in_channels
    total = 0

    def count(module, args, output):
        nonlocal total
        total += 0 if getattr(module, "inplace", False) else output.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    with torch.no_grad():
        expected = network(torch.zeros(2, channels, side, side))
    for hook in hooks:
        hook.remove()
    assert dry_run(imagined, channels, side).shape == expected.shape
    assert outputs(imagined, channels, side) == total // 2


def test_a_sum_of_other_shapes_is_refused():
    a, b = (torch.empty(2, n, device="meta") for n in (3, 4))
    with ShapesOnly(), pytest.raises(RuntimeError):
        a + b
    real_a = torch.ones(2)
    with ShapesOnly():
        assert torch.equal(real_a + real_a, torch.full((2,), 2.0)), "tensors with memory are added"


def test_a_plan_does_not_load_torchs_compiler():
    program = "import sys; from reproduce.__main__ import main; main(['swav_digits', '--plan']); print('torch._dynamo' in sys.modules)"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert "steps" in found.stdout and found.stdout.split()[-1] == "False"
