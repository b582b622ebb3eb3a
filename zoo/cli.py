"""The command lines' common manners: nothing said prints the help, a wrong word is one line that begins with ``error:``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, except that wrong words are a UserError for ``zoo.errors.guard`` to print, like every other mistake.

    Sub-commands become Parsers too. Each error names the help that lists what there is.
    """

    _silent = False

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._silent = not (sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if self._silent:
            self.print_help(sys.stderr)
            raise SystemExit(2)
        raise UserError(f"{message.removeprefix('argument COMMAND: ')}; see {self.prog} --help")
