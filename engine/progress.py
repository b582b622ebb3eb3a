"""One line that says how a run is doing: loss, images per second, time left, memory; and numbers of the device, read a step late."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process held, on the accelerator if it computes there, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """'0:42', '1:05:09', '3d 04:00'."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """Prints to a terminal several times a second on one line, elsewhere a plain line every `every` seconds.

    name, total    what runs and its number of steps; `start` of them were done before
    images         images of one step, over all processes
    quiet          print nothing (processes other than the first)
    chance         the loss of a network that says the same of every image, where there is one: printed beside the loss
    expected       from the share of the run that is done (0 to 1) to the lowest and highest loss of earlier runs: printed beside it too
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        images: int,
        device: torch.device,
        start: int = 0,
        every: float = 10.0,
        quiet: bool = False,
        stream: TextIO | None = None,
        chance: float | None = None,
        expected: Callable[[float], tuple[float, float]] | None = None,
    ) -> None:
        self.stream = stream or sys.stderr
        self.name, self.total, self.images, self.device, self.quiet = name, total, images, device, quiet
        self.chance, self.expected = chance, expected
        self.live = self.stream.isatty()
        self.every = 0.2 if self.live else every
        self.seconds_per_step: float | None = None  # a moving average
        self._step, self._printed, self._last = start, time.perf_counter(), 0.0
        self._width = 0
        self._waited, self.waiting = 0.0, 0.0  # seconds since the last update; a moving average of the share

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.seconds_per_step if self.seconds_per_step else None

    def update(self, step: int, epoch: int, loss: float) -> None:
        """`step` steps are done; the last had this loss."""
        now = time.perf_counter()
        if self._last:  # not the first step of a process, nor one after a pause
            latest = (now - self._last) / max(step - self._step, 1)
            self.waiting += 0.05 * (min(1.0, self._waited / max(now - self._last, 1e-9)) - self.waiting)
            old = self.seconds_per_step or latest
            self.seconds_per_step = old + 0.05 * (latest - old)
        self._step, self._last, self._waited = step, now, 0.0
        if not self.quiet and self.seconds_per_step and now - self._printed >= self.every:
            self._printed = now
            self._print(self.line(step, epoch, loss))

    def beside(self, step: int) -> str:
        """What the loss is to be compared with: chance, and earlier runs of this recipe at the same share of their steps."""
        said = [f"chance {self.chance:.2f}"] if self.chance is not None else []
        if self.expected is not None:
            low, high = (f"{value:.2f}" for value in self.expected(step / self.total))
            said.append(f"earlier runs {low}" + (f" to {high}" if high != low else ""))
        return f" ({', '.join(said)})" if said else ""

    def line(self, step: int, epoch: int, loss: float) -> str:
        rate, left = self.images_per_second or 0.0, (self.total - step) * (self.seconds_per_step or 0.0)
        memory = peak_memory(self.device) / 2**20
        return (
            f"{self.name}  step {step}/{self.total}  epoch {epoch}  loss {loss:.4f}{self.beside(step)}  {rate:,.0f} images/s"
            f"  waiting for data {self.waiting:.0%}  left {duration(left)}  {memory:,.0f} MB"
        )

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; how long each was waited for is part of the line."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def pause(self) -> None:
        """What happens until the next update is not a step alone."""
        self._last = 0.0

    def note(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            self.close()
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the live line."""
        if self.live and self._width:
            print(file=self.stream, flush=True)
            self._width = 0

    def _print(self, text: str) -> None:
        if self.live:
            print("\r" + text.ljust(self._width), end="", file=self.stream, flush=True)
            self._width = len(text)
        else:
            print(text, file=self.stream, flush=True)


def counter(name: str, total: int, *, start: int = 0, quiet: bool = False) -> Any:
    """A tqdm bar for work that has no loss (images whose features were computed, rows that were read), `start` of `total` done before.

    On a terminal one line several times a second, elsewhere a plain line every ten seconds.
    """
    from tqdm import tqdm

    live = sys.stderr.isatty()
    every = 0.2 if live else 10.0
    form = "{desc}  {n:,}/{total:,}  {rate_noinv_fmt}  left {remaining}" + ("" if live else "\n")
    return tqdm(
        desc=name,
        total=total,
        initial=start,
        unit="",
        disable=quiet,
        mininterval=every,
        delay=every,
        bar_format=form,
        leave=live,
    )


class Late:
    """Numbers of one step, held until they are read or until those of the next step come: the host never waits for the device."""

    def __init__(self) -> None:
        self._held: tuple[int, Tensor, Any] | None = None

    def put(self, step: int, values: Tensor) -> tuple[int, list[float]] | None:
        """Keep `values` (n,) of `step`; returns those of the step before, as `read` does."""
        host, arrived = values, None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        before, self._held = self.read(), (step, host, arrived)
        return before

    def read(self) -> tuple[int, list[float]] | None:
        """(step, values) of what is held, once; None if nothing is."""
        if self._held is None:
            return None
        (step, values, arrived), self._held = self._held, None
        if arrived is not None:
            arrived.synchronize()
        return step, values.tolist()
