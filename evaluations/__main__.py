"""python -m evaluations: judge a model by one protocol or by all; compare two; cluster a folder of images, or rank models on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from engine.place import who
from zoo import settings
from zoo.errors import Parser, guard

MODEL = "registry id, run folder or weight file"
RECORDS = "finished records, features and trained heads are"
KEPT = dict.fromkeys(("run", "suite", "pair", "rank"), RECORDS) | dict.fromkeys(
    ("cluster", "pictures"), "the features, once computed, are"
)
PATHS = "path=value of the protocol, or data=, out=, device=, workers=, precision=, decoded=, pretrain_seed=, seed=, max_bad=; of a weight file backbone=, prefix=, path=, mean=, std="


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = Parser(
        prog="python -m evaluations", description=__doc__, example="python -m evaluations run linear_digits swav_digits"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    own = commands.add_parser(
        "list", help="all protocols, or those that match a pattern", example="python -m evaluations list 'linear*'"
    )
    own.add_argument("pattern", nargs="?", default="*")
    own.set_defaults(func=_list)

    own = commands.add_parser(
        "run", help="one protocol on one model", example="python -m evaluations run linear_digits swav_digits"
    )
    own.add_argument("protocol", help="an id from `list`")
    own.add_argument("model", help=MODEL)
    own.add_argument("paths", nargs="*", metavar="path=value", help=PATHS)
    own.add_argument("--plan", action="store_true", help="say what would run: passes, images, disk, time")
    own.add_argument("--record", action="store_true", help="write to results/measured/ (the project's own models)")
    own.set_defaults(func=_run)

    own = commands.add_parser(
        "suite",
        help="every protocol that the data at hand permits",
        example="python -m evaluations suite swav_digits --plan",
    )
    own.add_argument("model", help=MODEL)
    own.add_argument("paths", nargs="*", metavar="path=value", help=PATHS + "; only=PATTERN of protocols")
    own.add_argument("--plan", action="store_true", help="say what would run: passes, images, disk, time")
    own.add_argument("--record", action="store_true", help="write to results/measured/ (the project's own models)")
    own.set_defaults(func=_suite)

    own = commands.add_parser(
        "pair",
        help="two models on the same test images, with a paired test",
        example="python -m evaluations pair swav_digits random_digits linear_digits",
    )
    own.add_argument("a", help=MODEL)
    own.add_argument("b", help=MODEL)
    own.add_argument("protocol", help="an id from `list`")
    own.add_argument("paths", nargs="*", metavar="path=value", help=PATHS)
    own.set_defaults(func=_pair)

    own = commands.add_parser(
        "cluster",
        help="cluster a folder of images without labels: assignment and montage",
        example="python -m evaluations cluster swav_800ep FOLDER clusters=20",
    )
    own.add_argument("model", help=MODEL)
    own.add_argument("folder", help="a folder of images")
    own.add_argument("paths", nargs="*", metavar="path=value", help="clusters=, out=, device=, workers=, seed=")
    own.set_defaults(func=_cluster)

    own = commands.add_parser(
        "pictures",
        help="neighbours, confusion, PCA, montages of clusters, accuracy by layer and epoch, as PNG files",
        example="python -m evaluations pictures swav_digits digits",
    )
    own.add_argument("model", help=MODEL)
    own.add_argument(
        "data", help="a data set with a cluster protocol (digits, fashion_mnist, …), or a folder of a folder per class"
    )
    own.add_argument(
        "paths",
        nargs="*",
        metavar="path=value",
        help="kinds=[pca,…], clusters=, out=, device=, workers=, seed=, pretrain_seed=",
    )
    own.set_defaults(func=_pictures)

    own = commands.add_parser(
        "rank",
        help="every model at hand on a folder of images: which backbone for these images?",
        example="python -m evaluations rank FOLDER",
    )
    own.add_argument("folder", help="a folder of images, with a folder for each class where there are classes")
    own.add_argument(
        "paths",
        nargs="*",
        metavar="path=value",
        help="models=PATTERN[,PATTERN], files=[FILE], by=knn|ridge (what ranks them), out=, device=, workers=",
    )
    own.add_argument("--models", metavar="PATTERN", help="ids of the zoo and of runs below out= (*)")
    own.set_defaults(func=_rank)

    words = list(sys.argv[1:] if argv is None else argv)
    chosen = commands.choices.get(words[0]) if words else None
    options = parser.parse_args(words) if chosen is None else chosen.parse_intermixed_args(words[1:])
    return int(options.func(options) or 0)


def _list(options: argparse.Namespace) -> int:
    from . import protocol

    for name in protocol.names(options.pattern):
        found = protocol.load(name)
        print(f"{found.name:<38} {found.kind:<11} {found.form:<9} {found.title}")
    return 0


def _run(options: argparse.Namespace) -> int:
    given = settings.parse(options.paths)
    if options.plan:
        from .suite import plan

        print(plan([options.protocol], options.model, given))
        return 0
    from engine import dist

    from .measure import evaluate

    try:
        path = evaluate(options.protocol, options.model, given, record=options.record)
        if dist.is_main():
            print(path)
    finally:
        dist.finish()
    return 0


def _suite(options: argparse.Namespace) -> int:
    from . import suite

    # A pattern is text, not YAML, in which * and [ mean something.
    given = settings.parse(word for word in options.paths if not word.startswith("only="))
    patterns = [word.removeprefix("only=") for word in options.paths if word.startswith("only=")]
    if patterns:
        given["only"] = patterns[-1]
    chosen = suite.choose(options.model, given, download=not options.plan)
    if options.plan:
        print(suite.plan(chosen, options.model, given))
        return 0
    return suite.run(chosen, options.model, given, record=options.record)


def _pair(options: argparse.Namespace) -> int:
    from .pair import compare

    print(compare(options.a, options.b, options.protocol, settings.parse(options.paths)))
    return 0


def _rank(options: argparse.Namespace) -> int:
    from .rank import rank

    # A pattern is text, not YAML, in which * means something.
    given = settings.parse(word for word in options.paths if not word.startswith("models="))
    patterns = [word.removeprefix("models=") for word in options.paths if word.startswith("models=")]
    patterns += [options.models] if options.models else []
    given |= {"models": patterns[-1]} if patterns else {}
    print(rank(options.folder, given))
    return 0


def _pictures(options: argparse.Namespace) -> int:
    from .pictures import pictures

    for path in pictures(options.model, options.data, settings.parse(options.paths)):
        print(path)
    return 0


def _cluster(options: argparse.Namespace) -> int:
    from .cluster_folder import cluster

    for path in cluster(options.model, options.folder, settings.parse(options.paths)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main, lambda: who(os.environ), KEPT))
