"""Errors that are the user's to fix: one sentence, no traceback."""

from __future__ import annotations

from zoo.errors import UserError, choices, suggest

__all__ = [
    "CheckpointError",
    "DamagedCheckpoint",
    "Degenerate",
    "LockedError",
    "NonFiniteLoss",
    "UserError",
    "choices",
    "suggest",
]


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
