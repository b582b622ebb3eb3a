"""log.jsonl, one JSON object a line: a line every few steps, and a line per event. TensorBoard events beside it."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import checkpoint


class RunLog:
    """The log of one run folder. Opening it at step n drops the lines of steps after n: those steps happen again.

    folder       where log.jsonl and tensorboard/ are
    step         steps that are done; 0 starts an empty log
    tensorboard  also write TensorBoard events, if tensorboard can be imported
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = True) -> None:
        path = folder / "log.jsonl"
        found = read(path) if step else []
        kept = [line for line in found if line.get("step", 0) <= step]
        self.reached = max((line.get("step", 0) for line in found), default=0)
        self.history = [line for line in kept if "event" not in line]  # lines of earlier sessions
        self.alarms = [line["message"] for line in kept if line.get("event") == "alarm"]  # of the whole run
        checkpoint.write_text(path, "".join(_dump(line) for line in kept))
        self._file = open(path, "a")  # noqa: SIM115  open as long as the run
        if not step:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._board = _board(folder / "tensorboard", step) if tensorboard else None

    def write(self, step: int, **values: Any) -> None:
        """A line of numbers for step `step`."""
        self._append({"step": step, **values})
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)

    def event(self, name: str, step: int, **values: Any) -> None:
        """A line about something that happened: resumed, alarm, non_finite_loss, finished."""
        if name == "alarm":
            self.alarms.append(values["message"])
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._append({"event": name, "step": step, "time": now, **values})

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """What a monitor saw at step `step`: an event of its own, since its steps are not those of the other lines."""
        self.event("monitor", step, **values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(_dump(line))
        self._file.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was cut off by a crash is left out. No file, no lines."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


def _dump(line: Mapping[str, Any]) -> str:
    """Strict JSON: infinities and NaN, which JSON lacks, become strings."""
    safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(safe, allow_nan=False) + "\n"


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
