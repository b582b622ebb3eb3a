"""``python -m results``: tables, figures, comparisons and replays of what was measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo.errors import Parser, guard

from .record import COMMITTED

KEPT = {"fill": "finished runs and records, and the checkpoint of the one that ran, are"}
EXTRA = "more records, for example runs/measured; they take the place of committed ones of the same model and protocol"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m results", description=__doc__, example="python -m results tables")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    tables = commands.add_parser(
        "tables",
        help="write results/tables/*.md and the marked blocks of README.md",
        example="python -m results tables --check",
    )
    tables.add_argument("--check", action="store_true", help="write nothing; fail on any difference")
    tables.add_argument("--only", metavar="ID", help="one table")
    tables.add_argument("--to", type=Path, metavar="DIR", help="write pages there; README.md stays as it is")
    tables.add_argument(
        "--format",
        choices=("markdown", "csv", "latex"),
        default="markdown",
        help="csv and latex go to runs/tables (or --to)",
    )
    tables.set_defaults(run=_tables)

    compare = commands.add_parser(
        "compare",
        help="one model: published, measured, spread, verdict and likely reasons; several: paired tests of each two",
        example="python -m results compare swav_digits simclr_digits random_digits --protocol 'linear*'",
    )
    compare.add_argument("id", nargs="+")
    compare.add_argument("--protocol", default="*", metavar="PATTERN", help="several models: only these protocols")
    compare.set_defaults(run=_compare)

    figures = commands.add_parser(
        "figures", help="write results/figures/*.svg", example="python -m results figures --check"
    )
    figures.add_argument("--check", action="store_true", help="write nothing; fail on any difference")
    figures.add_argument("--to", type=Path, metavar="DIR")
    figures.set_defaults(run=_figures)

    show = commands.add_parser("show", help="list the records, or print one", example="python -m results show 'swav*'")
    show.add_argument("what", nargs="?", default="*", help="pattern of model ids, or the path of a record")
    show.set_defaults(run=_show)

    site = commands.add_parser(
        "site",
        help="static HTML pages of the zoo, its methods, protocols and tables",
        example="python -m results site --to runs/site",
    )
    site.add_argument("--to", type=Path, metavar="DIR", default=Path("runs/site"))
    site.set_defaults(run=_site)

    replay = commands.add_parser(
        "replay",
        help="run a record's commands again and compare",
        example="python -m results replay results/measured/swav_digits/RECORD.json",
    )
    replay.add_argument("record", type=Path)
    replay.add_argument("--tolerance", type=float, metavar="PERCENT", help="largest difference of a metric that agrees")
    replay.add_argument("--data", metavar="PATH", help="where the data set is, when it is not found by itself")
    replay.set_defaults(run=_replay)

    fill = commands.add_parser(
        "fill",
        help="the commands that fill a table's empty measured cells, and their execution, cheapest first",
        example="python -m results fill digits --plan",
    )
    fill.add_argument("table", help="id of a table in results/tables.yaml")
    fill.add_argument(
        "settings", nargs="*", metavar="path=value", help="data=, device=, workers=, precision= of every command"
    )
    fill.add_argument("--plan", action="store_true", help="print what would run and what is missing here, and stop")
    fill.add_argument("--sbatch", action="store_true", help="print a Slurm batch script for every run, and stop")
    fill.add_argument("--record", action="store_true", help="write the records to results/measured/ (maintainers)")
    fill.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="where runs and records go (default runs)"
    )
    fill.set_defaults(run=_fill)

    for command in (tables, compare, figures, show, site):
        command.add_argument("--root", action="append", type=Path, default=[], metavar="DIR", help=EXTRA)
    args = parser.parse_args(argv)
    return int(args.run(args))


def _roots(args: argparse.Namespace) -> list[Path]:
    from zoo.errors import UserError

    for root in args.root:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder of records; evaluations write to <out>/measured")
    return [COMMITTED, *args.root]


def _tables(args: argparse.Namespace) -> int:
    from . import generate

    return generate.tables(_roots(args), only=args.only, to=args.to, check=args.check, form=args.format)


def _figures(args: argparse.Namespace) -> int:
    from . import generate

    return generate.figures(_roots(args), to=args.to, check=args.check)


def _compare(args: argparse.Namespace) -> int:
    from .published import Catalogue
    from .store import RecordStore

    if len(args.id) > 1:
        from . import against

        print(against.report(against.duels(args.id, RecordStore(_roots(args)), Catalogue(), args.protocol)))
        return 0
    from .compare import compare, report

    print(report(compare(args.id[0], RecordStore(_roots(args)), Catalogue())))
    return 0


def _show(args: argparse.Namespace) -> int:
    from .show import one, table
    from .store import RecordStore

    print(one(Path(args.what)) if args.what.endswith(".json") else table(RecordStore(_roots(args)), args.what))
    return 0


def _site(args: argparse.Namespace) -> int:
    from .site import write

    print(write(_roots(args), args.to))
    return 0


def _fill(args: argparse.Namespace) -> int:
    from zoo.settings import parse

    from .fill import fill

    options = {"plan": args.plan, "sbatch": args.sbatch, "record": args.record, "out": args.out}
    return fill(args.table, options=parse(args.settings), **options)


def _replay(args: argparse.Namespace) -> int:
    from .replay import replay, report

    outcome = replay(args.record, tolerance=args.tolerance, data=args.data, echo=True)
    print(report(outcome))
    return 0 if outcome.agrees else 1


if __name__ == "__main__":
    sys.exit(guard(main, kept=KEPT))
