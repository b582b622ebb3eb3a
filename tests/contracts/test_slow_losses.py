"""Every method's loss equals a slow and obvious version of itself, in value and in every gradient."""

import contract_tools as tools
import pytest
import torch
from slow_losses import APART, LOSSES

CASES = tools.cases()
STEPS = 3  # warm-up: queues fill, momentum encoders and heads drift apart


def test_every_method_that_trains_has_a_slow_loss():
    missing = sorted(set(CASES) - set(LOSSES))
    assert not missing, f"write them in tests/contracts/slow_losses.py: {missing}"


# None of them is a default, so that a number in the place of a setting is noticed.
UNUSUAL = {"temperature": 0.17, "epsilon": 0.07, "sinkhorn_iterations": 4, "angles": 2, "beta": 0.6}


def settings(name):
    """At least two views, so that none can be left out; batch norm over the whole batch."""
    recipe = tools.recipe(name)
    single = sum(group.count for group in recipe.views.crops) == 1
    unusual = {f"params.{key}": value for key, value in UNUSUAL.items() if key in recipe.params}
    return {**unusual, **tools.WHOLE_BATCH.get(name, {}), **({"views.crops.0.count": 2} if single else {})}


def warm(name):
    """A method after a few steps, about to take its next, on a batch whose views want a gradient."""
    method, batch, ctx = tools.warm(name, STEPS, **settings(name))
    batch = batch if "queue" in name else tools.select(batch, slice(0, 7))
    for view in batch.views:
        view.requires_grad_()
    method.before_step(STEPS, ctx)
    return method, batch


@pytest.mark.parametrize("name", [name for name in CASES if name in LOSSES])
def test_the_loss_and_its_gradients_equal_their_equation_in_loops(name):
    values, gradients = [], []
    for slow in (True, False):
        method, batch = warm(name)
        loss = LOSSES[name](method, batch, STEPS) if slow else method.loss(batch, STEPS)[0]
        loss.backward()
        found = {key: p.grad for key, p in method.named_parameters()} | {
            f"view {v}": view.grad for v, view in enumerate(batch.views)
        }
        apart = APART.get(tools.VARIANTS.get(name, (name,))[0])
        values.append(loss.item())
        gradients.append(found | ({"apart": apart(method)} if apart else {}))
    assert values[1] == pytest.approx(values[0], rel=1e-5, abs=1e-6)
    for key, expected in gradients[0].items():
        got = gradients[1][key]
        if expected is None or got is None:
            assert all(g is None or not g.any() for g in (expected, got)), key
        else:
            assert (got - expected).abs().max() <= 1e-3 * expected.abs().max() + 1e-6, key


# These compare cosines; in the others the last layer itself runs in half precision.
COSINES = [
    name
    for name in CASES
    if tools.VARIANTS.get(name, (name,))[0]
    in ("swav", "deepclusterv2", "selav2", "simclr", "mocov1", "mocov2", "instdisc", "pic", "simsiam", "unmix")
]


@pytest.mark.parametrize("name", COSINES)
def test_under_mixed_precision_only_the_network_is_in_half_precision(name):
    """Its outputs are taken as they are, everything after them is as exact as in float32."""
    values = []
    for slow in (True, False):
        method, batch = warm(name)
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSSES[name](method, batch, STEPS) if slow else method.loss(batch, STEPS)[0]
        assert loss.dtype is (torch.float64 if slow else torch.float32)
        values.append(loss.item())
    assert values[1] == pytest.approx(values[0], rel=2e-5, abs=2e-6)
