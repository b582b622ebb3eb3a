"""Two processes with half a batch each train the same network as one process with the whole batch.

One pair of processes runs every method, since starting them costs more than the training.
"""
import contract_pair
import contract_tools as tools
import pytest
import torch

from engine import dist

STEPS = 4
TRAINED = tools.trained()
# Batch statistics over both processes, so that the networks can be equal at all.
SETTINGS = {"sync_bn": True, "schedule.images": STEPS * tools.BATCH}


def on_rank(rank, folder, names):
    world = dist.World(rank, 2, rank)
    found = {}
    for name in names:
        result = tools.fit(tools.recipe(name, **SETTINGS), folder / name, world=world)
        dist.barrier()
        found[name] = (result.loss, {k: v.numpy() for k, v in tools.weights(folder / name).items()})
    return found


@pytest.fixture(scope="module")
def pair():
    return contract_pair.run(on_rank, TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_end_with_the_weights_of_one(name, pair, tmp_path):
    alone = tools.fit(tools.recipe(name, **SETTINGS), tmp_path / "run")
    expected = tools.weights(tmp_path / "run")
    loss, found = pair[0][name]
    assert loss == pytest.approx(alone.loss, rel=2e-4)
    start = {k: v for k, v in tools.build(tools.recipe(name, **SETTINGS)).export().items()}
    for key, value in expected.items():
        there = torch.from_numpy(found[key])
        if value.is_floating_point():
            moved = (value - start[key]).abs().max().item()
            assert (there - value).abs().max().item() <= 1e-5 + 2e-3 * moved, key
        else:
            assert torch.equal(there, value), key


def test_both_processes_hold_the_same_weights(pair):
    for name in TRAINED:
        assert pair[0][name][0] == pair[1][name][0]
