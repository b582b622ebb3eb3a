"""Every method's loss equals a slow and obvious version of itself."""
import contract_tools as tools
import pytest
from slow_losses import LOSSES

TRAINED = tools.trained()


def test_every_method_that_trains_has_a_slow_loss():
    missing = sorted(set(TRAINED) - set(LOSSES))
    assert not missing, f"write them in tests/contracts/slow_losses.py: {missing}"


@pytest.mark.parametrize("name", [name for name in TRAINED if name in LOSSES])
def test_the_loss_equals_its_equation_in_loops(name):
    found = []
    for slow in (True, False):
        method, batch, ctx = tools.first(name, **tools.WHOLE_BATCH.get(name, {}))
        batch = tools.select(batch, slice(0, 7))
        method.before_step(0, ctx)
        found.append(LOSSES[name](method, batch, 0) if slow else method.loss(batch, 0)[0].item())
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5)
