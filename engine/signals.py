"""Ctrl-C and a scheduler's notice (SIGTERM, SIGUSR1, SIGUSR2): finish the step, save, leave; a second one leaves at once.

The exit status is 128 and the number of the signal, as of a process that the signal ended: who sent it can tell them apart.

A launcher that is signalled together with its processes passes the signal on, so that they get it twice: what comes within a
second of the first is the same notice.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME = 1.0  # seconds
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """Remembers the first signal in `received`. A second notice, or any while `at_once` is set, exits."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.since = 0.0
        self.at_once = False

    def note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.at_once or (self.received is not None and now - self.since > SAME):
            raise SystemExit(128 + number)
        if self.received is None:
            self.received, self.since = number, now


@contextmanager
def noticed() -> Iterator[Signals]:
    """The signals of HEARD go to the Signals object while this is open (in the main thread; elsewhere nothing happens)."""
    signals, old = Signals(), {}
    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, signals.note) for number in HEARD}
    try:
        yield signals
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def left_to_main(worker: int = 0) -> None:
    """In a worker of a DataLoader (``worker_init_fn``): a signal to the whole process group is the main process's to answer.

    It finishes its step, for which it needs its workers, saves, and lets them go; a worker whose parent is gone ends by itself.
    """
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)
