"""Weights of intermediate epochs that stay, and the checkpoint before the last one."""

from __future__ import annotations

import json
from dataclasses import replace

import engine_toys as toys
import pytest
import torch

from engine import checkpoint
from engine.errors import CheckpointError

STEPS = 5  # of an epoch of the toys' stream, which has four


class Watched(toys.Toy):
    """Remembers what it would have exported before each step."""

    def __init__(self):
        super().__init__(reset_every=0)
        self.seen = {}

    def before_step(self, step, ctx):
        super().before_step(step, ctx)
        self.seen[step] = {name: value.clone() for name, value in self.export().items()}


def kept(folder):
    return sorted(int(path.name) for path in (folder / "epochs").glob("*")) if (folder / "epochs").exists() else []


def test_every_second_epoch_stays_with_the_weights_of_its_end(tmp_path):
    method = Watched()
    toys.run(tmp_path, method, options=replace(toys.QUIET, checkpoint_keep=2))
    assert kept(tmp_path) == [2, 4]
    second, last = (torch.load(tmp_path / "epochs" / name / "weights.pth", weights_only=True) for name in ("2", "4"))
    assert all(torch.equal(value, method.seen[2 * STEPS][name]) for name, value in second.items()) and second
    final = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert all(torch.equal(value, final[name]) for name, value in last.items())
    assert (tmp_path / "epochs" / "2" / "recipe.yaml").read_text() == (tmp_path / "recipe.yaml").read_text()


def test_no_epoch_stays_unless_asked(tmp_path):
    toys.run(tmp_path)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("stop", [7, 10, 11])
def test_a_run_that_was_interrupted_keeps_the_same_files(tmp_path, stop):
    options = replace(toys.QUIET, checkpoint_keep=1)
    toys.run(tmp_path / "whole", options=options)
    toys.run(tmp_path / "parts", options=replace(options, stop_after=stop))
    toys.run(tmp_path / "parts", options=options)
    for epoch in (1, 2, 3, 4):
        whole, parts = (
            (tmp_path / name / "epochs" / str(epoch) / "weights.pth").read_bytes() for name in ("whole", "parts")
        )
        assert whole == parts


def test_the_weights_before_a_drop_of_the_rate_stay(tmp_path):
    """SeLa's authors keep these: a rate that falls to a tenth after the third epoch."""
    recipe = json.loads(json.dumps(toys.RECIPE))
    recipe["schedule"] = {"name": "step", "milestones": [3], "factor": 0.1, "epochs": 4}
    toys.run(tmp_path, recipe=recipe, options=replace(toys.QUIET, checkpoint_keep=100))
    assert kept(tmp_path) == [3]


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_goes_on_to_the_same_bits(tmp_path, capsys):
    toys.run(tmp_path / "whole")
    folder = tmp_path / "parts"
    toys.run(folder, options=replace(toys.QUIET, stop_after=8))
    last = checkpoint.load(folder / "checkpoint.pt")["step"]
    before = checkpoint.load(folder / "checkpoint.previous.pt")["step"]
    assert before < last == 8
    damage(folder / "checkpoint.pt")
    capsys.readouterr()
    result, _ = toys.run(folder)
    assert result.resumed_from == before and result.finished
    said = capsys.readouterr().err
    assert (
        f"going on from the checkpoint before it, of step {before}" in said and "checkpoint.pt cannot be read" in said
    )
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert any(event.get("event") == "fallback" and "cannot be read" in event["message"] for event in events)
    assert (folder / "weights.pth").read_bytes() == (tmp_path / "whole" / "weights.pth").read_bytes()


def test_two_damaged_checkpoints_are_one_error(tmp_path):
    toys.run(tmp_path, options=replace(toys.QUIET, stop_after=8))
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"checkpoint.previous.pt cannot be read .*resume=false"):
        toys.run(tmp_path)


def test_a_checkpoint_of_another_version_is_an_error_and_not_replaced_by_an_older_one(tmp_path):
    toys.run(tmp_path, options=replace(toys.QUIET, stop_after=8))
    checkpoint.write_tensors(tmp_path / "checkpoint.pt", {"format": "another", "step": 8})
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        toys.run(tmp_path)
