"""Errors that are the user's to fix: one sentence, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A message that names the value, the place and the next step. Commands print it and exit with status 2."""

    user_error = True  # commands of every floor recognise it by this mark, without importing this module


class LockedError(UserError):
    """Another process works in the same run folder."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, foreign, or belongs to another recipe or number of processes."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that cannot be read to its end."""


class NonFiniteLoss(UserError):
    """A run diverged: the loss, features or weights became NaN or infinite, or all features equal; nothing of it was saved."""


class Degenerate(ValueError):
    """Rows with which a computation can do nothing: NaN or infinite, or all of them equal. The training loop ends with NonFiniteLoss."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` when something known is close to `word`, else the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
