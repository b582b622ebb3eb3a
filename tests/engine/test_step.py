"""One update of the weights by known answers: a loss whose gradient is 1, so that the weights lose the sum of the rates."""

from __future__ import annotations

import math

import engine_toys as toys
import pytest
import torch
from torch import nn

from engine import optim
from engine.dist import World
from engine.errors import NonFiniteLoss

PLAIN = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}


class Slope(nn.Module):
    """loss = weight; notes the gradients and random numbers that each step meets."""

    def __init__(self):
        super().__init__()
        self.weight, self.needs = nn.Parameter(torch.tensor([3.0])), toys.Needs()
        self.generation, self.drawn, self.gradients = 0, [], []

    def before_epoch(self, epoch, ctx):
        pass

    def before_step(self, step, ctx):
        pass

    def loss(self, batch, step):
        self.drawn.append(torch.rand(1).item())
        return self.weight.sum(), {}

    def after_backward(self, step):
        self.gradients.append(self.weight.grad.item())

    def param_groups(self):
        return [{"params": [self.weight]}]

    def extra_state(self):
        return {}

    def load_extra_state(self, state):
        pass

    def health(self):
        return {}

    def alarms(self, step, loss, logs):
        return []

    def export(self):
        return {"weight": self.weight.detach()}


def test_each_step_uses_its_own_rate_and_its_own_gradient(tmp_path):
    _, method = toys.run(tmp_path, Slope(), optimizer=PLAIN)
    rates = optim.schedule(toys.RECIPE["schedule"], 5, 20, lr=0.5)
    assert rates[0] != rates[1] and method.gradients == [1.0] * 20
    assert method.weight.item() == pytest.approx(3 - float(sum(rates)), rel=1e-5)


def test_each_step_and_each_process_draws_random_numbers_of_its_own(tmp_path):
    drawn = [
        toys.run(tmp_path / str(rank), Slope(), toys.Stream(), optimizer=PLAIN, world=World(rank, 1))[1].drawn
        for rank in (0, 1)
    ]
    assert len({*drawn[0], *drawn[1]}) == 40


def test_gradients_of_half_precision_reach_the_method_unscaled(tmp_path):
    _, method = toys.run(tmp_path, Slope(), optimizer=PLAIN, precision="float16")
    assert method.gradients == [1.0] * 20


def test_exported_weights_are_finite_or_refused(tmp_path):
    class Broken(Slope):
        def export(self):
            return {"weight": torch.tensor([math.inf])}

    with pytest.raises(NonFiniteLoss, match="a weight is not finite"):
        toys.run(tmp_path, Broken(), optimizer=PLAIN)
    assert not (tmp_path / "weights.pth").exists()
