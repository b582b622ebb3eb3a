"""The error that a user reads (``UserError``), and the manners that all command lines share.

Without arguments a command prints its help; an error is one line that begins with ``error:``.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

# What a place can be that nobody may write to, or that is full: the user's to put right, whichever command it is.
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}


class UserError(Exception):
    """Something that the user can put right: the message names the value, the place and the next step."""

    user_error = True


def suggest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """'; did you mean X?' for the closest known word, or an empty string; before more words: ``suggest(…) or ";"``."""
    close = get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def choices(word: str, known: Iterable[str]) -> str:
    """As ``suggest``; where no known word is close, all of them: '; known: a, b'."""
    names = [str(name) for name in known]
    return suggest(word, names) or f"; known: {', '.join(names) or 'none'}"


@contextmanager
def writing(place: os.PathLike[str] | str) -> Iterator[None]:
    """Around writing to ``place``: a system without files of its own there (/proc) reports them as missing, which
    ``guard`` takes for a bug.  Raises UserError instead.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{place}: cannot be made there; name another place") from None


def interrupted(kept: Mapping[str, str]) -> str:
    """What a command that was stopped says last: what is kept and the command that goes on; of one that does not go on only the command.

    kept  what is kept by each command that goes on where it stopped, by the longest of its first words that are listed ("": any
          other). A command that is not there, or has an empty text, does not go on.
    """
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "").removesuffix(".__main__")
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    known = [" ".join(words[:n]) for n in (2, 1)] + [""]
    what = next((kept[name] for name in known if name in kept), "")
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and "SLURM_STEP_NUM_TASKS" not in os.environ
    # Of several processes the launcher's words are not known here.
    command = shlex.join(["python", "-m", module, *sys.argv[1:]]) if module and alone else "the same command"
    return f"interrupted; {what} kept. Go on: {command}" if what else f"interrupted. Once more: {command}"


def guard(main: Callable[[], int | None], who: Callable[[], str] = str, kept: Mapping[str, str] | None = None) -> int:
    """Run ``main`` and return its exit status: 2 after a user's error, 130 after Ctrl-C, 141 when the reader has gone.

    who   says which of several processes this is, before its errors; errors marked ``agreed`` are told by the first one ("") alone.
    kept  see ``interrupted``, which the first process says after Ctrl-C or a scheduler's SIGTERM.

    Errors of other packages count as the user's when their class has a true ``user_error``, and the system's when a named
    place may not be used or is full; anything else is a bug and keeps its traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a file's name need not be text in this system's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(main() or 0)
    except KeyboardInterrupt:
        if not who():
            print(f"\n{interrupted(kept or {})}", file=sys.stderr)
        return 130
    except SystemExit as stop:  # a training that saved after a signal (engine/signals.py)
        if stop.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) and not who():
            print(interrupted(kept or {}), file=sys.stderr)
        raise
    except BrokenPipeError:
        # `zoo list | head`: leave quietly, and keep the interpreter from flushing into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        where = error.filename or "the folder written to"
        print(
            f"{who()}error: {where}: {os.strerror(error.errno)}; name another place, or make this one usable",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        if not getattr(type(error), "user_error", False):
            raise
        process = who()
        if not (process and getattr(error, "agreed", False)):
            print(f"{process}error: {error}", file=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """argparse, except that wrong words are a UserError for ``zoo.errors.guard`` to print, like every other mistake.

    Sub-commands become Parsers too. Each error names the help that lists what there is.
    example: a whole command, the first line after the options in --help; ``epilog`` follows it.
    """

    _silent = False

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        if example:
            settings["epilog"] = f"example: {example}" + (f". {settings['epilog']}" if settings.get("epilog") else "")
        super().__init__(*args, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._silent = not (sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if self._silent:
            self.print_help(sys.stderr)
            raise SystemExit(2)
        raise UserError(f"{message.removeprefix('argument COMMAND: ')}; see {self.prog} --help")
