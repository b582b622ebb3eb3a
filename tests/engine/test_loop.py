"""What the loop writes, refuses and lets a method do."""

import json
import math
from dataclasses import replace

import engine_toys as toys
import pytest
import torch
from torch import nn

from engine import checkpoint, loop, optim
from engine.errors import CheckpointError, NonFiniteLoss, UserError


def log_of(folder):
    return [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_has_a_line_per_interval_with_rate_loss_and_health(tmp_path):
    result, _ = toys.run(tmp_path)
    lines = [line for line in log_of(tmp_path) if "event" not in line]
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    rates = optim.schedule(toys.RECIPE["schedule"], 5, 20, lr=0.5)
    assert [line["lr"] for line in lines] == rates[1::2].tolist()
    assert set(lines[0]) == {"step", "epoch", "loss", "lr", "images_per_second", "cosine", "spread"}
    assert lines[-1]["loss"] == result.loss and result.alarms == ["the queue is long"]


def test_a_finished_folder_holds_everything(tmp_path):
    result, method = toys.run(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.pt", "weights.pth", "log.jsonl", "recipe.yaml", "provenance.json", "done.json", "lock"}
    done = json.loads((tmp_path / "done.json").read_text())
    assert (done["steps"], done["loss"], done["alarms"]) == (20, result.loss, ["the queue is long"])
    weights = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert torch.equal(weights["module.5.weight"], method.net[5].weight)


def test_tensorboard_events_stand_beside_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    toys.run(tmp_path, options=replace(toys.QUIET, tensorboard=True, stop_after=4))
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_hooks_come_in_order_and_once(tmp_path):
    _, method = toys.run(tmp_path)
    expected = [call for e in range(4) for call in [("epoch", e), *(("step", 5 * e + i, e) for i in range(5))]]
    assert method.calls == expected


class Explodes(toys.Toy):
    def __init__(self, value, at=7):
        super().__init__(reset_every=0)
        self.value, self.at, self.seen = value, at, None

    def loss(self, batch, step):
        if step == self.at:
            self.seen = [p.detach().clone() for p in self.parameters()]
        loss, logs = super().loss(batch, step)
        return loss * (self.value if step == self.at else 1.0), logs


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [7, 8, 19])  # read in the next step; before the checkpoint after it; at the very end
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step_and_no_file_has_it(tmp_path, value, at):
    intact = at // 3 * 3
    with pytest.raises(NonFiniteLoss, match=rf"at step {at} .*checkpoint of step {intact} is intact.*optimizer\.lr"):
        toys.run(tmp_path, Explodes(value, at))
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state["step"] == intact and all(torch.isfinite(p).all() for p in state["model"].values())
    assert not (tmp_path / "weights.pth").exists()
    last = log_of(tmp_path)[-1]
    assert last["event"] == "non_finite_loss" and last["step"] == at


def test_the_loss_is_read_a_step_late_and_told_of_its_own_step(tmp_path, monkeypatch):
    """Most steps read the loss of the step before; lines of the log and checkpoints read their own."""
    reads: list[tuple[int, int]] = []  # (step of the loss, steps done when it is read)
    learn = loop._Run._learn

    def spied(run, known):
        if known is not None:
            reads.append((known[0], run.step))
        learn(run, known)

    monkeypatch.setattr(loop._Run, "_learn", spied)

    class Counts(toys.Toy):
        def loss(self, batch, step):
            loss, logs = super().loss(batch, step)
            return loss * 0 + step, logs

    toys.run(tmp_path, Counts(reset_every=0), options=replace(toys.QUIET, log_interval=4, checkpoint_interval=6))
    assert [step for step, _ in reads] == list(range(20))
    late = {step for step, done in reads if done == step + 2}
    assert late == {
        step for step in range(20) if (step + 1) % 4 and (step + 1) % 6 and (step + 1) % 5
    }  # 5 steps an epoch
    assert [(line["step"], line["loss"]) for line in log_of(tmp_path) if "loss" in line] == [
        (s, s - 1) for s in (4, 8, 12, 16, 20)
    ]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Poisoned(toys.Toy):
        def after_backward(self, step):
            if step == 8:
                self.net[0].bias.grad.fill_(math.nan)

    with pytest.raises(NonFiniteLoss, match="a weight is not finite at step 9.*checkpoint of step 6 is intact"):
        toys.run(tmp_path, Poisoned(reset_every=0))
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 6


def test_new_heads_leave_the_momentum_of_the_rest(tmp_path):
    seen = {}

    class Watched(toys.Toy):
        def before_step(self, step, ctx):
            seen[step] = (self.generation, self.head)

        def after_backward(self, step):
            if step == 5:  # first step with the new head
                seen["gradient"] = self.head.weight.grad is not None

    method = Watched()
    folder = tmp_path
    toys.run(folder, method, options=replace(toys.QUIET, checkpoint_interval=5, stop_after=5))
    before = checkpoint.load(folder / "checkpoint.pt")["optimizer"]["state"]
    toys.run(folder, method, options=replace(toys.QUIET, checkpoint_interval=1, stop_after=6))
    after = checkpoint.load(folder / "checkpoint.pt")["optimizer"]["state"]
    assert seen[4][0] == 0 and seen[5][0] == 1 and seen[4][1] is not seen[5][1] and seen["gradient"]
    trunk, head = len(list(method.net.parameters())), 2
    assert set(before) == set(after) == set(range(trunk + head))
    kept = after[0]["momentum_buffer"] - 0.9 * before[0]["momentum_buffer"]
    assert kept.abs().max() < before[0]["momentum_buffer"].abs().max(), "the trunk's momentum was dropped"


def test_frozen_parameters_stay_while_their_gradient_is_none(tmp_path):
    method = toys.Toy()
    start = method.head.weight.detach().clone()
    toys.run(tmp_path, method, options=replace(toys.QUIET, stop_after=2))
    assert torch.equal(method.head.weight, start)
    toys.run(tmp_path, method, options=replace(toys.QUIET, stop_after=3))
    assert not torch.equal(method.head.weight, start)


@pytest.mark.parametrize(("precision", "channels_last"), [("bfloat16", True), ("float16", False)])
def test_mixed_precision_stays_close_and_resumes_exactly(tmp_path, precision, channels_last):
    plain, _ = toys.run(tmp_path / "plain", toys.Toy(dropout=0.0))
    half = {"precision": precision, "channels_last": channels_last}
    mixed, method = toys.run(tmp_path / "mixed", toys.Toy(dropout=0.0), **half)
    assert 0 < abs(mixed.loss - plain.loss) < 0.1
    assert all(p.dtype == torch.float32 for p in method.parameters())
    assert method.net[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    toys.run(tmp_path / "again", toys.Toy(dropout=0.0), options=replace(toys.QUIET, stop_after=8), **half)
    toys.run(tmp_path / "again", toys.Toy(dropout=0.0), **half)
    assert toys.bits(tmp_path / "mixed") == toys.bits(tmp_path / "again")


def test_a_budget_may_end_within_an_epoch_or_be_nothing(tmp_path):
    result, method = toys.run(tmp_path / "seven", stream=toys.Stream(total=7))
    assert result.steps == 7 and result.finished and method.calls[-1] == ("step", 6, 1)
    result, method = toys.run(tmp_path / "none", stream=toys.Stream(total=0))
    assert (result.steps, result.finished, result.loss, method.calls) == (0, True, None, [])
    assert (tmp_path / "none" / "weights.pth").exists() and not (tmp_path / "none" / "checkpoint.pt").exists()
    assert toys.run(tmp_path / "none", stream=toys.Stream(total=0))[0].already


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(tmp_path):
    toys.run(tmp_path, options=replace(toys.QUIET, stop_after=3))
    with pytest.raises(CheckpointError, match=r"optimizer\.lr is 0\.5 there and 0\.2 here"):
        toys.run(tmp_path, optimizer={**toys.RECIPE["optimizer"], "lr": 0.2})
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt belongs to another recipe: seed is 3 there and 4 here"):
        toys.run(tmp_path, seed=4)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    toys.run(tmp_path, options=replace(toys.QUIET, stop_after=3))
    method = toys.Toy()
    method.net[5] = nn.Linear(64, 7)
    with pytest.raises(CheckpointError, match=r"does not fit this version.*net\.5\.weight.*resume=false"):
        toys.run(tmp_path, method)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out="):
        toys.run(tmp_path / "file" / "run")


def test_state_that_could_not_be_read_back_is_not_saved(tmp_path):
    method = toys.Toy()
    method.extra_state = lambda: {"labels": {"first": torch.zeros(2).numpy()}}
    with pytest.raises(TypeError, match=r"checkpoint\['extra'\]\['labels'\]\['first'\] is a ndarray"):
        toys.run(tmp_path, method)
    assert not (tmp_path / "checkpoint.pt").exists()
