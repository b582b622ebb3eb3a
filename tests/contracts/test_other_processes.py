"""A run of two processes is taken up by one, and one's by two: every method ends as an undisturbed run does, or says what is otherwise.

Batch statistics are over both processes here, so that the mathematics is the same. One pair of processes serves every case.
"""

from __future__ import annotations

import json

import contract_pair
import contract_tools as tools
import pytest
import torch
import torch.distributed as td

from engine import dist
from zoo.errors import UserError

STEPS, STOP = 8, 3  # six are an epoch: what was handed over prepares another one
CASES = tools.cases()
# With seed 0 a ReLU of this case sits on its kink in two processes that nobody disturbs, too.
SEEDS = {"selav2": 1}


def settings(name, **changes):
    given = {
        "sync_bn": True,
        "schedule.images": STEPS * tools.BATCH,
        "optimizer.lr": 0.005,
        "seed": SEEDS.get(name, 0),
        **tools.WHOLE_BATCH.get(name, {}),
    }
    return tools.recipe(name, **{**given, **changes})


def hand_over(folder, checkpoint):
    """A run folder that has come to a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(checkpoint)
    (folder / "provenance.json").write_text("{}")


def begin(name, folder, world=None):
    tools.fit(settings(name), folder, stop_after=STOP, world=world)


def on_rank(rank, folder, begun):
    """{case: (the checkpoint of two processes, the weights of two that went on from one's)}"""
    world, found = dist.World(rank, 2, rank), {}
    for number, (name, checkpoint) in enumerate(begun.items()):
        first, second = folder / f"{number} first", folder / f"{number} second"
        begin(name, first, world)
        if rank == 0:
            hand_over(second, checkpoint)
        td.barrier()
        result = tools.fit(settings(name), second, world=world)
        assert result.resumed_from == STOP and result.finished
        if rank == 0:
            weights = {key: value.numpy() for key, value in tools.weights(second).items()}
            found[name] = ((first / "checkpoint.pt").read_bytes(), weights)
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    found = {}
    for name in CASES:
        folder = tmp_path_factory.mktemp("begun")
        begin(name, folder)
        found[name] = (folder / "checkpoint.pt").read_bytes()
    return found


@pytest.fixture(scope="module")
def pair(begun):
    return contract_pair.run(on_rank, begun)[0]


@pytest.mark.parametrize("name", CASES)
def test_one_goes_on_from_two_and_two_from_one(name, pair, tmp_path):
    tools.fit(settings(name), tmp_path / "whole")
    expected, start = tools.weights(tmp_path / "whole"), tools.build(settings(name)).export()
    checkpoint, by_two = pair[name]
    hand_over(tmp_path / "one", checkpoint)
    result = tools.fit(settings(name), tmp_path / "one")
    assert result.resumed_from == STOP and result.finished
    for found in (tools.weights(tmp_path / "one"), {key: torch.from_numpy(value) for key, value in by_two.items()}):
        for key, value in expected.items():
            if value.is_floating_point():
                moved = (value - start[key]).abs().max().item()
                assert (found[key] - value).abs().max().item() <= 1e-5 + 5e-3 * moved, key
            else:
                assert torch.equal(found[key], value), key
    (told,) = events(tmp_path / "one", "other_processes")
    assert told == "2 processes before, 1 now: the same mathematics, sums in another order"


def events(folder, kind):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["message"] for line in lines if line.get("event") == kind]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("simsiam", {"sync_bn": False}, "batch statistics are those of each process's own images (sync_bn=false)"),
        ("swav", {"sync_bn": True, "sync_bn_group": 1}, "batch statistics are those of 1 processes (sync_bn_group)"),
        (
            "mocov2",
            {"sync_bn": False, "params.splits": 2},
            "each process's batch is normalised in 2 parts (params.splits)",
        ),
    ],
)
def test_what_each_process_computes_alone_is_said_with_the_number_to_start(name, changes, said, tmp_path):
    recipe = settings(name, **changes)
    tools.fit(recipe, tmp_path, stop_after=STOP)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["processes"] == 1
    torch.save({**state, "processes": 4}, tmp_path / "checkpoint.pt")
    tools.fit(recipe, tmp_path)
    (told,) = events(tmp_path, "other_processes")
    assert said in told and told.startswith("warning: 4 processes before, 1 now, and ")
    assert told.endswith("this trains otherwise from here on; start 4 to train as before")


def test_the_same_number_says_nothing(tmp_path):
    recipe = settings("simsiam", sync_bn=False)
    tools.fit(recipe, tmp_path, stop_after=STOP)
    tools.fit(recipe, tmp_path)
    assert events(tmp_path, "other_processes") == []


def test_a_number_that_cannot_share_the_batch_is_refused_with_the_next_step():
    recipe = settings("simsiam")
    with pytest.raises(
        UserError, match=r"batch=16 cannot be shared equally by 3 processes; choose batch=15 or another number"
    ):
        tools.stream(recipe, tools.build(recipe), 0, 3)
