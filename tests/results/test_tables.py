import json
import re
from dataclasses import replace

import pytest
from result_fakes import ZOO, catalogue
from result_samples import sample

from results import generate, tables
from results.pages import block, difference, fill_blocks, markdown, page
from results.record import Metric, write
from results.store import RecordStore
from zoo.errors import UserError

SPEC = """
tables:
  - id: zoo
    title: Zoo
    readme: true
    rows:
      - {ids: [swav_big, moco_big]}
      - {external: [rival]}
    columns:
      - {head: epochs, kind: field, field: schedule.epochs}
      - {head: published, kind: published, protocol: linear_big@1, metric: top1}
      - {head: VISSL, kind: published, protocol: linear_big@1, metric: top1, by: VISSL}
      - {head: measured, kind: measured, protocol: linear_big@1, metric: top1}
  - id: digits
    title: Digits
    against: random_digits
    unmeasured_rows: hide
    rows: [{ids: [pixels_digits]}, {query: "*_digits"}]
    columns:
      - {head: linear, kind: measured, protocol: linear_digits@1, metric: top1}
      - {head: best, kind: measured, protocol: linear_digits@1, metric: top1_best_on_test, style: paper}
"""
MAPPED = """
facts:
  - {protocol: linear_big, source: "vissl/zoo:MODEL_ZOO.md @0123456", origin: retrain, by: VISSL, values: {swav_big: {top1: 74.92}}}
"""
EXTERNAL = """
rows: {rival: {title: Rival, fields: {schedule.epochs: 300}}}
facts:
  - {protocol: linear_big, source: "paper, Table 1", origin: quoted, by: the paper, values: {rival: {top1: 69.3}}}
"""


@pytest.fixture
def specs(tmp_path):
    (tmp_path / "tables.yaml").write_text(SPEC)
    return tables.load(tmp_path / "tables.yaml")


@pytest.fixture
def rows(tmp_path):
    return catalogue(tmp_path, MAPPED, EXTERNAL)


def measure(root, model, values, **changes):
    for seed, value in enumerate(values):
        metrics = {
            "top1": Metric(value=value, n=540),
            "top1_best_on_test": Metric(value=value + 1, style="paper", note="best epoch on test"),
        }
        write(sample(model, seed=seed, metrics=metrics, **changes), root)


def text(specs, rows, root, which):
    built = tables.build(next(t for t in specs if t.id == which), RecordStore([root]), rows)
    return page(built, root)


def line(page_text, start):
    return next(x for x in page_text.splitlines() if x.startswith(f"| {start}"))


def cells(page_text, start):
    return [c.strip() for c in line(page_text, start).strip("|").split("|")]


def test_published_numbers_stand_beside_empty_unmeasured_cells(specs, rows, tmp_path):
    assert cells(text(specs, rows, tmp_path, "zoo"), "swav_big") == ["swav_big", "100", "75.3 [1]", "74.92", ""]


def test_a_quoted_number_says_who_quotes_it_and_a_retrained_one_stays_out_of_the_authors_column(specs, rows, tmp_path):
    shown = text(specs, rows, tmp_path, "zoo")
    assert cells(shown, "moco_big")[2] == "71.0 (as quoted by the SwAV paper) [2]"
    assert "| VISSL [" in shown and "VISSL, own training: [vissl/zoo:MODEL_ZOO.md @0123456]" in shown
    ZOO_ONLY = catalogue(tmp_path, MAPPED.replace("swav_big", "simclr_digits"), EXTERNAL)
    assert ZOO_ONLY.cell("simclr_digits", "linear_big", "top1") is None


def test_an_external_row_prints_its_title_and_fields(specs, rows, tmp_path):
    shown = cells(text(specs, rows, tmp_path, "zoo"), "Rival")
    assert shown[:3] == ["Rival", "300", "69.3 (as quoted by the paper) [3]"]


def test_a_measured_cell_has_mean_spread_and_seeds_and_links_to_every_record(specs, rows, tmp_path):
    measure(tmp_path, "swav_big", (75.0, 75.4, 75.2), protocol="linear_big")
    shown = text(specs, rows, tmp_path, "zoo")
    assert cells(shown, "swav_big")[4] == "75.2 ± 0.2 (3)"
    linked = re.findall(r"\[seed \d\]\((.*?)\)", shown)
    assert [json.loads((tmp_path / p).read_text())["metrics"]["top1"]["value"] for p in linked] == [75.0, 75.4, 75.2]


def test_rows_are_judged_against_random_with_the_same_backbone_only(specs, rows, tmp_path):
    measure(tmp_path, "random_digits", (60, 61, 62, 63, 64))
    measure(tmp_path, "swav_digits", (80, 81, 82))
    measure(tmp_path, "simclr_digits", (63, 64, 65))
    measure(tmp_path, "pixels_digits", (99, 98))
    shown = text(specs, rows, tmp_path, "digits")
    assert cells(shown, "swav_digits")[1].endswith("▲") and cells(shown, "simclr_digits")[1].endswith("○")
    assert not re.search("[▲▼○]", line(shown, "pixels_digits") + line(shown, "random_digits"))
    assert not re.search("[▲▼○]", cells(shown, "swav_digits")[2]), "paper-style numbers are not ranked"
    assert "compare a cell with random_digits" in shown and "(best epoch on test); not ranked" in shown
    assert "nothing claimed: pixels_digits (another network than random_digits)." in shown


def test_four_random_seeds_give_no_mark(specs, rows, tmp_path):
    measure(tmp_path, "random_digits", (60, 61, 62, 63))
    measure(tmp_path, "swav_digits", (80, 81, 82))
    shown = text(specs, rows, tmp_path, "digits")
    assert not re.search("[▲▼○]", line(shown, "swav_digits"))
    assert "nothing claimed: swav_digits (random_digits has 4 seeds, 5 are needed)." in shown


def test_a_row_of_one_seed_and_a_column_without_random_say_why_they_have_no_mark(specs, rows, tmp_path):
    measure(tmp_path, "swav_digits", (80, 81))
    assert "nothing claimed: swav_digits (random_digits was not measured)." in text(specs, rows, tmp_path, "digits")
    measure(tmp_path, "random_digits", (60, 61, 62, 63, 64))
    measure(tmp_path, "simclr_digits", (80,))
    shown = text(specs, rows, tmp_path, "digits")
    assert "nothing claimed: simclr_digits (one pre-training seed, its spread is not known)." in shown
    assert "(unknown)" not in shown, "no verdict, no line among the verdicts"


def test_other_data_than_the_random_row_s_are_not_judged(specs, rows, tmp_path):
    measure(tmp_path, "random_digits", (60, 61, 62, 63, 64))
    measure(tmp_path, "swav_digits", (80, 81, 82), data_fingerprint="other")
    shown = text(specs, rows, tmp_path, "digits")
    assert not re.search("[▲▼○]", line(shown, "swav_digits")) and "(other data than random_digits)" in shown


def test_a_table_without_any_measured_row_says_so(specs, rows, tmp_path):
    assert "(nothing of table digits has been measured here yet)" in text(specs, rows, tmp_path, "digits")
    assert "|" not in text(specs, rows, tmp_path, "digits")


def test_transductive_rows_carry_a_mark(specs, rows, tmp_path):
    measure(tmp_path, "swav_digits", (80, 81), transductive=True)
    measure(tmp_path, "simclr_digits", (80, 81))
    shown = text(specs, rows, tmp_path, "digits")
    assert cells(shown, "swav_digits†")[0] == "swav_digits†" and cells(shown, "simclr_digits")[0] == "simclr_digits"
    assert "† transductive" in shown
    measure(tmp_path / "one", "swav_digits", (80,), transductive=True)  # one record is enough
    assert cells(text(specs, rows, tmp_path / "one", "digits"), "swav_digits†")[0] == "swav_digits†"


def test_a_paper_style_number_needs_a_column_that_says_so(specs, rows, tmp_path):
    write(sample("swav_digits", metrics={"top1": Metric(value=99, style="paper")}), tmp_path)
    with pytest.raises(UserError, match="paper-style; column 'linear' says style: honest"):
        text(specs, rows, tmp_path, "digits")


def test_a_table_hides_or_shows_rows_without_a_measurement(specs, rows, tmp_path):
    measure(tmp_path, "swav_digits", (80, 81))
    shown = text(specs, rows, tmp_path, "digits")
    assert "swav_digits" in shown and "simclr_digits" not in shown
    assert "moco_big" in text(specs, rows, tmp_path, "zoo")


@pytest.mark.parametrize(
    ("value", "sd", "images", "shown"),
    [
        (96.134, 0.42, None, "96.1 ± 0.4"),
        (47.32, 3.2, None, "47 ± 3"),
        (79.123, 0.0961, None, "79.12 ± 0.10"),
        (47.3, 12.6, None, "47 ± 13"),
        (100.0, 0.0, None, "100.0 ± 0.0"),
        (95.79, 0.11, 1.7, "95.8 ± 0.1 / 1.7"),  # 539 images do not carry two digits
        (82.06, 0.08, 0.75, "82.1 ± 0.1 / 0.8"),
        (79.123, 0.0137, 0.137, "79.12 ± 0.01 / 0.14"),
        (69.2, 4.8, 3.9, "69 ± 5 / 4"),
        (81.23, 0.43, 2.4, "81.2 ± 0.4 / 2.4"),
        (96.47, None, 1.55, "96.5 ± – / 1.6"),
        (96.47, None, 4.2, "96.5 ± – / 4.2"),
        (61.25, None, None, "61.2"),
    ],
)
def test_numbers_are_rounded_to_what_their_spreads_support(value, sd, images, shown, tmp_path):
    from results.cells import measured

    measure(tmp_path, "swav_digits", (value, value))
    found = RecordStore([tmp_path]).summary("swav_digits", "linear_digits", 1, "top1")
    assert measured(replace(found, sd=sd, images=images)) == f"{shown} (2)"


def test_the_interval_for_other_images_is_the_mean_half_width_of_the_records(tmp_path):
    for seed, half in ((0, 1.0), (1, 2.0)):
        write(sample(seed=seed, metrics={"top1": Metric(value=80.0, n=540, ci=(80 - half, 80 + half))}), tmp_path)
    assert RecordStore([tmp_path]).summary("swav_digits", "linear_digits", 1, "top1").images == 1.5
    write(sample(seed=2, metrics={"top1": Metric(value=80.0, n=540)}), tmp_path)
    assert RecordStore([tmp_path]).summary("swav_digits", "linear_digits", 1, "top1").images is None, (
        "one of them has none"
    )


def test_a_column_counts_the_recipes_that_were_tried(tmp_path):
    (tmp_path / "swav_digits.yaml").write_text("candidates: [{score: 1}, {score: 2}]\n")
    assert tables.candidates("swav_digits", tmp_path) == 2 and tables.candidates("random_digits", tmp_path) == 0


def test_a_circle_is_never_called_equal(specs, rows, tmp_path):
    measure(tmp_path, "random_digits", (60, 61, 62, 63, 64))
    measure(tmp_path, "simclr_digits", (63, 64, 65))
    shown = text(specs, rows, tmp_path, "digits")
    assert "○ no difference shown, which does not say that there is none" in shown and "(not shown)" in shown
    assert "0.7 to 2.3 % of marks are ▲ or ▼ all the same" in shown and "same)" not in shown


def test_one_set_of_weights_says_so(tmp_path):
    from results.cells import measured

    write(sample(seed=None, metrics={"top1": Metric.over_seeds([60.0, 62.0])}), tmp_path / "a")
    write(sample(seed=None, value=61.25), tmp_path / "b")
    assert (
        measured(RecordStore([tmp_path / "a"]).summary("swav_digits", "linear_digits", 1, "top1")) == "61.0 ± 1.4 (1×2)"
    )
    assert (
        measured(RecordStore([tmp_path / "b"]).summary("swav_digits", "linear_digits", 1, "top1"))
        == "61.2 ± – / 3.0 (1)"
    )


def test_the_same_records_give_the_same_bytes_whatever_order_they_came_in(specs, rows, tmp_path):
    for root, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        for seed in order:
            write(sample(seed=seed, value=80 + seed / 3), tmp_path / root)
    assert text(specs, rows, tmp_path / "a", "zoo") == text(specs, rows, tmp_path / "b", "zoo")
    built = [tables.build(specs[0], RecordStore([tmp_path / r]), rows) for r in "ab"]
    assert block(built[0], "x.md") == block(built[1], "x.md")


def test_pipes_and_line_breaks_cannot_break_a_table():
    assert markdown(["a"], [["x|y\nz"]], [False]).splitlines()[2] == "| x\\|y z |"


# ---------------------------------------------------------------- tables.yaml


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: field, field: schedule.epochs", "kind: field", "tables.yaml:.*a field column needs field"),
        ("kind: measured, protocol: linear_big@1", "kind: measured, protocol: linear_big", "protocol.*pattern"),
        ("title: Digits", "titel: Digits", "tables.yaml:15: titel: unknown field"),
        ("id: digits", "id: zoo", "two tables are called 'zoo'"),
        ("kind: measured", "kind: guessed", "kind"),
    ],
)
def test_a_mistake_in_tables_yaml_is_told_with_its_place(tmp_path, old, new, said):
    assert old in SPEC
    (tmp_path / "tables.yaml").write_text(SPEC.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        tables.load(tmp_path / "tables.yaml")


@pytest.mark.parametrize(("old", "new"), [("swav_big, moco", "swav_bgi, moco"), ("[rival]", "[rivla]")])
def test_an_unknown_row_is_an_error(tmp_path, rows, old, new):
    (tmp_path / "tables.yaml").write_text(SPEC.replace(old, new, 1))
    with pytest.raises(UserError, match="swav_bgi|rivla.*did you mean 'rival'"):
        tables.build(tables.load(tmp_path / "tables.yaml")[0], RecordStore([tmp_path / "none"]), rows)


def test_an_unknown_table_is_an_error(specs):
    with pytest.raises(UserError, match="no table 'digist'; did you mean 'digits'"):
        tables.pick(specs, "digist")


# ---------------------------------------------------------------- blocks and files

README = "# x\n<!-- table:zoo -->\nold\n<!-- /table -->\nbetween\n<!-- table:digits -->\n<!-- /table -->\nend\n"


def test_only_what_stands_between_markers_changes():
    filled = fill_blocks(README, {"zoo": "Z", "digits": "D"}, "README.md")
    assert filled == README.replace("old", "Z").replace("digits -->\n", "digits -->\nD\n")
    assert fill_blocks(filled, {"zoo": "Z", "digits": "D"}, "README.md") == filled
    assert "\nold\n" in fill_blocks(README, {"digits": "D"}, "README.md", known=["zoo", "digits"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("old\n<!-- /table -->", "old", "README.md:2: the block of table 'zoo' is not closed"),
        ("digits -->\n<!-- /table -->", "digits -->", "README.md:6: the block of table 'digits' is not closed"),
        ("table:zoo", "table:zo", "README.md:2: no table 'zo'; did you mean 'zoo'"),
        ("table:digits", "table:zoo", "a second block of table 'zoo'"),
        ("<!-- table:zoo -->\n", "", "no block of table 'zoo'; add"),
        ("end", "<!-- /table -->", "stray"),
    ],
)
def test_broken_markers_are_told(old, new, said):
    with pytest.raises(UserError, match=said):
        fill_blocks(README.replace(old, new, 1), {"zoo": "Z", "digits": "D"}, "README.md", needed=["zoo"])


@pytest.fixture
def checkout(tmp_path, monkeypatch, rows):
    """A little repository: tables, README and records of its own."""
    spec = tmp_path / "tables.yaml"
    spec.write_text(SPEC)
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(tables.load, "__defaults__", (spec,))
    monkeypatch.setattr(generate, "COMMITTED", tmp_path / "measured")
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "tables")
    measure(tmp_path / "measured", "swav_digits", (80, 81))

    def run(roots=None, **options):
        options = {"catalogue": rows, "readme": tmp_path / "README.md", **options}
        return generate.tables([tmp_path / "measured", *(roots or [])], **options)

    return run


def test_a_check_passes_after_writing_and_writing_again_changes_nothing(checkout, tmp_path, capsys):
    assert checkout(check=True) == 1
    assert checkout() == 0 and checkout(check=True) == 0
    times = {p: p.stat().st_mtime_ns for p in [*tmp_path.glob("tables/*.md"), tmp_path / "README.md"]}
    assert checkout() == 0 and times == {p: p.stat().st_mtime_ns for p in times}
    assert "wrote" not in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("damage", ["page", "readme", "record", "extra", "gone"])
def test_a_check_notices_any_difference_and_names_the_command(checkout, tmp_path, capsys, damage):
    checkout()
    target = {"page": "tables/digits.md", "readme": "README.md", "gone": "tables/zoo.md"}.get(damage)
    if damage == "record":
        measure(tmp_path / "measured", "simclr_digits", (70, 71))
    elif damage == "extra":
        (tmp_path / "tables" / "stale.md").write_text("x")
    elif damage == "gone":
        (tmp_path / str(target)).unlink()
    else:
        file = tmp_path / str(target)
        file.write_text(file.read_text().replace("80.5", "90.5"))
    capsys.readouterr()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert checkout(check=True) == 1
    said = capsys.readouterr()
    assert "write them again with: python -m results tables" in said.err and said.out
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, "a check writes nothing"
    assert checkout() == 0 and checkout(check=True) == 0


def test_a_users_records_never_reach_the_repository_tables(checkout, tmp_path, monkeypatch):
    checkout()
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in [*tmp_path.glob("tables/*.md"), tmp_path / "README.md"]}
    measure(tmp_path / "own", "swav_digits", (10, 11))
    assert checkout(roots=[tmp_path / "own"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert "10.5 ± 0.7 (2)" in (tmp_path / "runs/tables/digits.md").read_text()


def test_one_table_leaves_the_other_pages_and_blocks_alone(checkout, tmp_path):
    checkout()
    measure(tmp_path / "measured", "simclr_digits", (70, 71))
    (tmp_path / "README.md").write_text(README)
    assert checkout(only="zoo") == 0
    assert "simclr" not in (tmp_path / "tables/digits.md").read_text() + (tmp_path / "README.md").read_text()
    assert "swav_big" in (tmp_path / "README.md").read_text()


def test_a_missing_file_and_a_needless_one_are_differences(tmp_path):
    assert "missing" in difference(tmp_path / "a.md", "", "a.md")
    (tmp_path / "a.md").write_text("")
    assert difference(tmp_path / "a.md", "", "a.md") == ""
    assert "not generated" in difference(tmp_path / "a.md", None, "a.md")


def test_the_fake_zoo_is_the_one_the_tables_name():
    assert {"swav_big", "moco_big", "random_digits"} <= set(ZOO)


def test_a_column_takes_a_rows_number_from_another_protocol_of_its_question_and_says_so(specs, rows, tmp_path):
    """PIC's SimCLR is probed at another rate than its MoCo: one column, two protocols, each row under its own."""
    spec = SPEC.replace(
        "protocol: linear_big@1, metric: top1}", "protocol: linear_other@2, also: [linear_big@1], metric: top1}"
    )
    (tmp_path / "tables.yaml").write_text(spec)
    measure(tmp_path, "swav_big", (75.0, 75.4, 75.2), protocol="linear_big")
    measure(tmp_path, "moco_big", (70.0, 70.4, 70.2), protocol="linear_other", version=2)
    shown = text(tables.load(tmp_path / "tables.yaml"), rows, tmp_path, "zoo")
    assert (
        cells(shown, "swav_big")[2:5:2] == ["75.3 [1]", "75.2 ± 0.2 (3)"]
        and cells(shown, "moco_big")[4] == "70.2 ± 0.2 (3)"
    )
    assert "Under a protocol of their own: swav_big, moco_big, Rival (linear_big)." in shown
    assert "protocol of their own" not in text(specs, rows, tmp_path, "zoo")
    measure(tmp_path, "swav_big", (60.0, 60.2), protocol="linear_other", version=2)
    again = text(tables.load(tmp_path / "tables.yaml"), rows, tmp_path, "zoo")
    assert cells(again, "swav_big")[4].startswith("60.1"), "the column's own protocol comes first"


def test_every_marker_of_a_source_has_its_note_on_the_same_page(specs, rows, tmp_path):
    """In README.md's block as on the table's own page: no [1] without its source."""
    built = tables.build(specs[0], RecordStore([tmp_path]), rows)
    for shown, note in (
        (block(built, "zoo.md"), r"\[(\d+)\] (.*?)[;.] "),
        (page(built, tmp_path), r"(?m)^(\d+)\. (.*)$"),
    ):
        table = "".join(x for x in shown.splitlines() if x.startswith("|"))
        rest = "\n".join(x for x in shown.splitlines() if not x.startswith("|"))
        said = {int(number): text for number, text in re.findall(note, rest)}
        assert set(said) == {int(n) for n in re.findall(r" \[(\d+)\]", table)} == {1, 2, 3, 4}
        assert "the method's authors" in said[1] and "MODEL_ZOO.md" in said[4]
