"""Tables of the original repositories: each printed number stands in its cell, every cell has what it rests on, footnotes resolve."""

from __future__ import annotations

import csv
import io
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from results import __main__ as cli
from results import cells, pages, tables
from results.published import Catalogue
from results.record import COMMITTED
from results.store import RecordStore

PRINTED = yaml.safe_load(Path(__file__).with_name("readme_numbers.yaml").read_text(encoding="utf-8"))
SPECS = {table.id: table for table in tables.load()}


@cache
def built(name: str) -> tables.Built:
    return tables.build(SPECS[name], RecordStore([COMMITTED]), Catalogue())


@pytest.mark.parametrize("table", list(PRINTED))
def test_what_a_readme_prints_stands_in_its_cell(table):
    heads = [column.head for column in SPECS[table].columns]
    found = {name: {head: cell.text for head, cell in zip(heads, row, strict=True)} for name, row in built(table).rows}
    for row, printed in PRINTED[table].items():
        assert {head: found[row][head] for head in printed} == printed, row


@pytest.mark.parametrize("table", list(SPECS))
def test_every_cell_of_a_table_rests_on_a_fact_a_record_or_the_registry(table):
    catalogue = Catalogue()
    for name, row in built(table).rows:
        for column, cell in zip(SPECS[table].columns, row, strict=True):
            if column.kind == "published":
                assert bool(cell.text) == (cell.fact is not None), (name, column.head)
                if cell.fact:
                    assert cell.text == cells.published(cell.fact.published.value, column.unit)
                    assert cell.fact.published.source and cell.fact in catalogue.facts(cell.fact.row)
            elif column.kind == "measured":
                assert bool(cell.text) == (cell.summary is not None), (name, column.head)
                if cell.summary:
                    assert all(s.path.is_file() for s in cell.summary.records)
                    assert cell.text.startswith(cells.measured(cell.summary))


@pytest.mark.parametrize("table", list(SPECS))
def test_footnotes_of_a_page_resolve_and_are_all_used(table):
    page = pages.page(built(table), pages.FOLDER)
    grid, _, rest = page.partition("\n## ")
    used = set(map(int, re.findall(r"\[(\d+)\](?!\()", grid)))
    listed = set(map(int, re.findall(r"^(\d+)\. ", rest.partition("Published numbers\n")[2], re.MULTILINE)))
    assert used == listed


def test_csv_and_latex_hold_the_cells_of_the_page(tmp_path, capsys):
    for form, ending in (("csv", "csv"), ("latex", "tex")):
        assert cli.main(["tables", "--only", "pic", "--format", form, "--to", str(tmp_path)]) == 0
        assert (tmp_path / f"pic.{ending}").is_file()
    rows = list(csv.reader(io.StringIO((tmp_path / "pic.csv").read_text(encoding="utf-8"))))
    head, found, _, _ = pages.grid(built("pic"))
    assert rows == [head, *found]
    latex = (tmp_path / "pic.tex").read_text(encoding="utf-8")
    assert (
        r"\toprule" in latex and r"pic\_1600ep" in latex and "70.8" in latex and "% [2] the method's authors" in latex
    )
    assert cli.main(["tables", "--only", "digits", "--format", "latex", "--to", str(tmp_path)]) == 0
    assert not re.search("[±▲▼○–×†]", (tmp_path / "digits.tex").read_text(encoding="utf-8").partition("\n")[2])


def test_times_and_counts_are_printed_as_such():
    assert cells.published(220, "seconds") == "3 min 40 s" and cells.published(3130, "seconds") == "52 min 10 s"
    assert cells.published(94, "count") == "94" and cells.published(94) == "94.0"
