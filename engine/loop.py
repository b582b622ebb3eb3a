"""The training loop of every method: build, resume, for each step: compute, average, update, log, save.

`fit` knows nothing of methods. It calls, in this order and on every process:

    before_epoch(epoch, ctx) · before_step(step, ctx) · loss(batch, step) · backward · after_backward(step) · optimiser

The loss of a step, and whether a process was asked to stop, are read while the next step runs, or before a line of the log, a
checkpoint or an error tells them: what is told is the same, and the host does not wait for the device.

A run can be killed at any moment and goes on with the same command: on a CPU it ends with the bits of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from torch import Tensor

from . import backends, checkpoint, dist, layout, optim, rng
from . import provenance as origin
from .dist import World
from .errors import CheckpointError, Degenerate, NonFiniteLoss
from .folder import exclusive
from .log import RunLog
from .options import RunOptions
from .place import same_for_all
from .progress import Late, Progress
from .signals import Signals, noticed
from .step import Update

_LONG = 60.0  # seconds; work between epochs that takes longer gets a checkpoint before and after it
# When not told otherwise: a checkpoint every _OFTEN steps, if saving takes this share of the time at most.
_OFTEN, _SHARE = 20, 0.02
_DROP = 0.5  # a rate that falls to half or less from one step to the next is a drop, of which authors keep the weights before


@dataclass
class FitResult:
    """What a call of `fit` came to.

    steps         that are done
    finished      the run is complete; False when options.stop_after ended it early
    already       it was complete before this call, which did nothing
    resumed_from  the step that this call went on from; None when it began at the beginning
    loss          of the last step, over all processes
    seconds       of all sessions of this run
    """

    folder: Path
    steps: int = 0
    finished: bool = False
    already: bool = False
    resumed_from: int | None = None
    loss: float | None = None
    seconds: float = 0.0
    alarms: list[str] = field(default_factory=list)


def fit(
    method: Any,
    stream: Any,
    *,
    rates: np.ndarray,
    recipe: Mapping[str, Any],
    folder: Path,
    options: RunOptions,
    world: World,
    provenance: Mapping[str, Any],
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    monitor: Any = None,
    expected: Callable[[float], tuple[float, float]] | None = None,
) -> FitResult:
    """Train `method` on `stream`; leave weights.pth, log.jsonl, recipe.yaml, provenance.json and done.json in `folder`.

    method   see reproduce.method.Method; only what this file calls is needed
    stream   steps_per_epoch, total_steps, epoch(epoch, start) -> batches of this process, context(method, epoch) -> ctx;
             its attribute `workspace` is set to a folder for large files, which is gone when the run has finished
    rates    (total_steps,) the learning rate of each step (optim.schedule)
    recipe   plain values; read here: seed, batch, optimizer, schedule, precision, channels_last, sync_bn, sync_bn_group
    folder   the same for all processes, seen by all of them
    warnings what to say at the start about this run
    notes    comments at the head of recipe.yaml: where the recipe comes from
    expected the lowest and highest loss of earlier runs of this recipe at a share of the run (0 to 1), for the progress line
    monitor  looks at the method while it trains and changes nothing: due(step) -> bool, the call (step) -> numbers; process 0 asks it
    Raises NonFiniteLoss, LockedError or CheckpointError; SystemExit after SIGINT or SIGTERM, with a checkpoint written.
    """
    folder, recipe = Path(folder), dict(recipe)
    with exclusive(folder, recipe, resume=options.resume) as done, noticed() as signals:
        if done:
            known = {name: done[name] for name in ("steps", "loss", "seconds", "alarms")}
            return FitResult(folder, finished=True, already=True, **known)
        run = _Run(method, stream, rates, recipe, folder, options, world, dict(provenance), signals, notes)
        run.monitor, run.progress.expected = monitor, expected
        for warning in warnings:
            run.progress.note(f"warning: {warning}")
        try:
            run.train()
            return run.finish()
        except Degenerate as error:
            run.refuse(str(error))
        finally:
            run.close()


class _Run:
    """One process's part of a run: what it trains, and what it has done so far."""

    def __init__(
        self,
        method: Any,
        stream: Any,
        rates: np.ndarray,
        recipe: dict[str, Any],
        folder: Path,
        options: RunOptions,
        world: World,
        provenance: dict[str, Any],
        signals: Signals,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes, self.monitor = notes, None
        self.method, self.stream, self.recipe, self.folder = method, stream, recipe, folder
        self.options, self.world, self.signals = options, world, signals
        if options.threads:
            torch.set_num_threads(options.threads)
        backends.configure(options, world.device)
        self.rates = rates
        self.update = Update(method, recipe, world)
        self.step, self.prepared, self.seconds = 0, -1, 0.0  # steps done, last epoch prepared, time of earlier sessions
        self.loss, self.late, self.asked = math.nan, Late(), False
        self.path = folder / "checkpoint.pt"
        stream.workspace = folder / "features"
        self.resumed = self._resume()
        self.finite_loss = self.loss  # the last loss that was a number
        self.began = self.saved = time.perf_counter()
        self.saving = 0.0  # seconds that the last save took
        name, total = folder.parent.name, stream.total_steps
        self.progress = Progress(
            name,
            total,
            images=recipe["batch"],
            device=world.device,
            start=self.step,
            quiet=not world.is_main,
            chance=getattr(method, "collapsed_loss", None),
        )
        self.log = self._open_log(provenance) if world.is_main else None

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        last = min(self.options.stop_after or self.stream.total_steps, self.stream.total_steps)
        while self.step < last:
            epoch, start = divmod(self.step, self.stream.steps_per_epoch)
            ctx = self.stream.context(self.method, epoch)
            if self.prepared < epoch:
                self._prepare(epoch, ctx)
            for batch in self.progress.timed(self.stream.epoch(epoch, start)):
                self._one_step(batch, ctx)
                self._look()
                self._snapshot()
                if self.step == last or self._checkpoint_is_due():
                    self.save()
                if self.asked:
                    self._leave()
                if self.step == last:
                    return

    def _leave(self) -> NoReturn:
        if self.step > self.checkpointed:
            self.save()
        self.progress.note(f"stopped at step {self.step}: the same command goes on from here")
        raise SystemExit(128 + (self.signals.received or 15))

    def _one_step(self, batch: Any, ctx: Any) -> None:
        """One update of the weights."""
        step = self.step
        rng.seed_torch(self.world.device, self.recipe["seed"], "step", step, self.world.rank)  # dropout
        self.method.before_step(step, ctx)
        loss, logs = self.update(batch, step, self.rates[step])
        self.step += 1
        self._learn(self.late.put(step, self._over_all(loss)))
        self.progress.update(self.step, batch.epoch, self.loss)
        if self.step % self.options.log_interval == 0 or self.step == self.stream.total_steps:
            self._report(batch.epoch, logs)

    def _prepare(self, epoch: int, ctx: Any) -> None:
        """Work between epochs. When it is killed, it starts again from the checkpoint before it.

        A signal that came after the last step's agreement is answered here: this work may take hours, and its handler leaves
        without a checkpoint.
        """
        self._learn(self.late.read())
        asked = torch.tensor(float(self.signals.received is not None), device=self.world.device)
        if dist.all_reduce_(asked) > 0:
            self._leave()
        if self._is_long_since(self.saved, _LONG):
            self.save()
        rng.seed_torch(self.world.device, self.recipe["seed"], "epoch", epoch)  # new heads
        began, self.signals.at_once = time.perf_counter(), True
        self.method.before_epoch(epoch, ctx)
        self.signals.at_once, self.prepared = False, epoch
        if self._is_long_since(began, _LONG):
            self.save()
        self.progress.pause()

    def _over_all(self, loss: Tensor) -> Tensor:
        """(2,) on the device: the mean loss over all processes, and above 0 if one of them was asked to stop."""
        asked = torch.full_like(loss, float(self.signals.received is not None), dtype=torch.float32)
        return dist.all_reduce_(torch.stack([loss.detach().float(), asked])) / self.world.size

    def _learn(self, known: tuple[int, list[float]] | None) -> None:
        """Every process learns the loss of an earlier step, the same everywhere, and whether to stop."""
        if known is None:
            return
        step, (self.loss, stop) = known
        self.asked = self.asked or stop > 0
        if not math.isfinite(self.loss):
            self.refuse(f"the loss is {self.loss}", step)
        self.finite_loss = self.loss

    def refuse(self, what: str, step: int | None = None) -> NoReturn:
        """End a run that has diverged: what was seen, the step, the last loss, the rate, and settings to try instead.

        step: at which it was seen; by default the present one, if the loss of the step before was a number.
        """
        if step is None:
            self._learn(self.late.read())
            step = self.step
        last = (
            f"the checkpoint of step {self.checkpointed} is intact"
            if self.checkpointed
            else "no checkpoint was written"
        )
        rate = self.rates[min(step, len(self.rates) - 1)] if len(self.rates) else 0.0
        before = f"loss before it {self.finite_loss:.4g}, " if math.isfinite(self.finite_loss) else ""
        at = f"{what} at step {step} ({before}learning rate {rate:.4g})"
        if self.log is not None:
            self.log.event("non_finite_loss", step, message=at)
        paths = getattr(self.method, "rates", ("optimizer.lr",))
        words = optim.gentler(self.recipe, paths, self.stream.steps_per_epoch, self.stream.total_steps)
        with same_for_all():
            raise NonFiniteLoss(f"{at}; training stopped, {last}. Try {', or '.join(words) or 'other images'}")

    # -- what is remembered --------------------------------------------------------------------------------------------

    def save(self) -> None:
        began = time.perf_counter()
        self._learn(self.late.read())
        update, extra = self.update.state_dict(), self.method.extra_state()  # both may communicate
        self._require_finite(self.method.state_dict())
        if self.world.is_main:
            state = {"recipe": self.recipe, "step": self.step, "prepared": self.prepared, "loss": self.loss}
            state["processes"] = self.world.size
            checkpoint.save(self.path, {**state, "extra": extra, **update, "seconds": self._elapsed()})
        self.checkpointed, self.saved = self.step, time.perf_counter()
        self.saving = self.saved - began
        self.progress.pause()

    def _snapshot(self) -> None:
        """At the end of an epoch that is kept: the weights as a finished run has them, in a folder of their own."""
        every, (epoch, within) = self.options.checkpoint_keep, divmod(self.step, self.stream.steps_per_epoch)
        if not every or within:
            return
        drops = self.step < len(self.rates) and self.rates[self.step] <= _DROP * self.rates[self.step - 1]
        if epoch % every and not drops:
            return
        self._learn(self.late.read())
        weights = self._exported()
        if self.world.is_main:
            folder = self.folder / "epochs" / str(epoch)
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(folder / "recipe.yaml", yaml.safe_dump(self.recipe, sort_keys=False))
            checkpoint.write_tensors(folder / "weights.pth", weights)
        self.progress.pause()

    def _exported(self) -> dict[str, Tensor]:
        weights = self.method.export()  # may communicate
        self._require_finite(weights)
        return weights

    def _require_finite(self, weights: Mapping[str, Tensor]) -> None:
        """On every process: what is wrong on one ends the run on all."""
        wrong = not all(torch.isfinite(value).all() for value in weights.values())
        if dist.all_reduce_(torch.tensor(float(wrong), device=self.world.device), "max") > 0:
            self.refuse("a weight is not finite")

    def _look(self) -> None:
        """Process 0 asks the monitor, if it is due; the others meet it again in the next step."""
        if self.monitor is None or self.log is None or not self.monitor.due(self.step):
            return
        found = self.monitor(self.step)
        self.log.look(self.step, found)
        seen = "  ".join(f"{name.removeprefix('monitor_')} {value:.4g}" for name, value in found.items())
        self.progress.note(f"{self.progress.name}  step {self.step}/{self.stream.total_steps}  monitor: {seen}")
        self.progress.pause()

    def _checkpoint_is_due(self) -> bool:
        if self.options.checkpoint_interval:
            return self.step % self.options.checkpoint_interval == 0
        return self.step % _OFTEN == 0 and self._is_long_since(self.saved, self.saving / _SHARE)

    def _is_long_since(self, moment: float, seconds: float) -> bool:
        """The same answer on all processes, whose clocks differ."""
        return dist.broadcast_object(time.perf_counter() - moment >= seconds)

    def _resume(self) -> int | None:
        self.checkpointed = 0
        state, self.fallback = checkpoint.latest(self.path)
        found = -1 if state is None else state["step"]
        if found != dist.broadcast_object(found):
            raise CheckpointError(
                f"process {self.world.rank} does not see the same {self.path}: out= must be a shared folder"
            )
        if state is None:
            return None
        checkpoint.require_recipe(self.path, state["recipe"], self.recipe)
        self.step, self.prepared, self.seconds, self.loss = (state[k] for k in ("step", "prepared", "seconds", "loss"))
        try:
            self.method.load_extra_state(state["extra"])  # first: it may give heads their shapes
            self.update.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{self.path} does not fit this version: {reason}; use resume=false") from error
        self.checkpointed = self.step
        self.before = state.get("processes", self.world.size)
        return self.step

    def _other_processes(self, before: int) -> str:
        """What a run says that goes on by another number of processes. Images, views and losses do not depend on it; what else does,
        the method says (``of_each_process``)."""
        said = f"{before} process{'es' * (before > 1)} before, {self.world.size} now"
        alone: list[str] = getattr(self.method, "of_each_process", lambda recipe: [])(self.recipe)
        if not alone:
            return f"{said}: the same mathematics, sums in another order"
        return f"warning: {said}, and {', '.join(alone)}: this trains otherwise from here on; start {before} to train as before"

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    def _open_log(self, provenance: dict[str, Any]) -> RunLog:
        """The log up to this step; a resumed run's method sees the old lines again, since some alarms need a history."""
        recorded = self.folder / "provenance.json"
        if self.resumed is None:
            checkpoint.write_json(recorded, provenance)
            comments = "".join(f"# {' '.join(line.split())}\n" for line in self.notes)
            checkpoint.write_text(self.folder / "recipe.yaml", comments + yaml.safe_dump(self.recipe, sort_keys=False))
        log = RunLog(self.folder, step=self.step, tensorboard=self.options.tensorboard)
        if self.resumed is None:
            chance = getattr(self.method, "collapsed_loss", None)
            log.event(
                "began", 0, steps=self.stream.total_steps, steps_per_epoch=self.stream.steps_per_epoch, chance=chance
            )
        if self.recipe["channels_last"] and self.update.memory is not torch.channels_last:
            why = (
                f"channels_last is not used: torch's CPU backward of {layout.narrow_strided(self.method)[0]}, "
                "a narrow strided 1x1 convolution, is not safe in it"
            )
            log.event("contiguous", self.step, message=why)
            self.progress.note(f"{self.progress.name}: {why}")
        if self.resumed is not None:
            for line in log.history:
                self.method.alarms(line["step"], line["loss"], line)
            changed = origin.changes(checkpoint.read_json(recorded), provenance)
            log.event("resumed", self.step, reached_before=log.reached, processes=self.world.size, changed=changed)
            if self.fallback:
                log.event("fallback", self.step, message=self.fallback)
                self.progress.note(f"warning: {self.fallback}")
            self.progress.note(f"{self.progress.name}: resumed at step {self.step} of {self.stream.total_steps}")
            if self.before != self.world.size:
                message = self._other_processes(self.before)
                log.event("other_processes", self.step, message=message)
                self.progress.note(f"{self.progress.name}: {message}")
        return log

    def _report(self, epoch: int, logs: Mapping[str, float | Tensor]) -> None:
        self._learn(self.late.read())
        health = self.method.health()  # may communicate
        mine = torch.tensor([float(value) for value in logs.values()], dtype=torch.float64)
        means = (dist.all_reduce_(mine) / self.world.size).tolist()
        if self.log is None:
            return
        values = dict(zip(logs, means, strict=True)) | {name: float(value) for name, value in health.items()}
        own = {"epoch": epoch, "loss": self.loss, "lr": float(self.rates[self.step - 1])}
        self.log.write(self.step, **own, images_per_second=self.progress.images_per_second, **values)
        for message in self.method.alarms(self.step, self.loss, values):
            if message not in self.log.alarms:
                self.log.event("alarm", self.step, message=message)
                self.progress.note(f"warning: {message}")

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self) -> FitResult:
        result = FitResult(self.folder, self.step, resumed_from=self.resumed, seconds=self._elapsed())
        result.loss = self.loss if self.step else None
        result.alarms = list(self.log.alarms) if self.log is not None else []
        result.finished = self.step >= self.stream.total_steps
        if result.finished:
            weights = self._exported()
            if self.log is not None:
                path = self.folder / "weights.pth"
                checkpoint.write_tensors(path, weights)
                self.log.event("finished", self.step)
                done: dict[str, Any] = {
                    "steps": self.step,
                    "loss": result.loss,
                    "seconds": result.seconds,
                    "alarms": result.alarms,
                }
                done["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
                checkpoint.write_json(self.folder / "done.json", done)
                checkpoint.previous(self.path).unlink(missing_ok=True)
                shutil.rmtree(self.folder / "features", ignore_errors=True)
            dist.barrier()
        return result

    def close(self) -> None:
        self.progress.close()
        if self.log is not None:
            self.log.close()
