"""python -m zoo: list, show and validate the registry; fetch, verify, export and data live in modules of their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .errors import Parser, guard

# What goes on after Ctrl-C; everything else begins anew.
KEPT = {
    "fetch": "finished files, and what has come of a file whose server can send the rest, are",
    "data prepare": "images that are sorted already are",
}

# Commands that other modules add, imported only when asked for, so that `list` stays quick.
ELSEWHERE = {
    "fetch": (".fetch", "download released files and check them"),
    "verify": (".verify", "a health table of the released files"),
    "data": (".data.commands", "check, make, pack and prepare data sets"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="python -m zoo", description=__doc__, example="python -m zoo list 'swav*'")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    own = commands.add_parser(
        "list", help="all models, or those that match a pattern such as 'swav*'", example="python -m zoo list 'swav*'"
    )
    own.add_argument(
        "pattern", nargs="?", default="*", help="shell pattern for ids and aliases, or the name of a method"
    )
    own.set_defaults(func=_list)
    own = commands.add_parser(
        "show",
        help="the card of one model, or what a weight file holds and looks like",
        example="python -m zoo show swav_800ep",
    )
    own.add_argument("id", metavar="ID or FILE")
    own.set_defaults(func=_show)
    own = commands.add_parser(
        "validate", help="check every entry, recipe and profile", example="python -m zoo validate --no-networks"
    )
    own.add_argument("--no-networks", action="store_true", help="skip what needs torch: parameter counts and widths")
    own.set_defaults(func=_validate)
    own = commands.add_parser(
        "export",
        help="write a model in another project's format",
        description="Write a model in another project's format, with a note of where it comes from and what its licence permits.",
        example="python -m zoo export swav_digits --to torchvision",
    )
    own.add_argument("model", help="an id, a run folder or a weight file")
    own.add_argument(
        "--to",
        required=True,
        dest="form",
        metavar="FORMAT",
        help="torchvision or timm (ResNets that both know), detectron2 (its ResNets), safetensors or onnx (every network)",
    )
    own.add_argument("--out", help="the file to write; default: <model>-<format> in the current folder")
    own.add_argument("--head", help="with a released classifier, such as linear_imagenet (not for detectron2)")
    own.set_defaults(func=_export)
    module = ELSEWHERE.get(words[0], ("", ""))[0] if words else ""
    if module:
        import_module(module, __package__).register(commands)
    else:
        for name, (_, text) in ELSEWHERE.items():
            commands.add_parser(name, help=text)
    options = parser.parse_args(words)
    return int(options.func(options) or 0)


def _export(options: argparse.Namespace) -> int:
    from .export import run

    return run(options)


def _list(options: argparse.Namespace) -> int:
    from .card import listing
    from .registry import registry

    print(listing(registry(), options.pattern))
    return 0


def _show(options: argparse.Namespace) -> int:
    from .card import card
    from .registry import registry

    known = registry()
    if options.id not in (*known.models(), *known.aliases()) and Path(options.id).is_file():
        from .showing import described

        print(described(Path(options.id)))
        return 0
    print(card(known.entry(options.id)))
    return 0


def _validate(options: argparse.Namespace) -> int:
    from .registry import registry
    from .validate import validate

    report = validate(registry(), networks=not options.no_networks)
    print(report)
    return 0 if report.ok else 2


if __name__ == "__main__":
    sys.exit(guard(main, kept=KEPT))
