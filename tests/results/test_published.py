import pytest
from result_fakes import ZOO, catalogue, entry

from results.published import whose
from zoo.errors import UserError
from zoo.schema import Published

BLOCK = 'facts:\n  - {{protocol: linear_big, source: "{source}", {more}values: {{{row}: {{top1: {value}}}}}}}\n'


def mapped(row="swav_big", value="74.92", source="vissl/zoo:README.md", more="origin: retrain, by: VISSL, "):
    return BLOCK.format(row=row, value=value, source=source, more=more)


def test_a_model_has_the_numbers_of_its_entry_and_of_the_map(tmp_path):
    facts = catalogue(tmp_path, mapped()).facts("swav_big")
    assert [(f.published.value, f.published.origin) for f in facts] == [(75.3, "authors"), (74.92, "retrain")]
    assert facts[0].place == "zoo/fake.yaml:7" and facts[1].place == "published_map.yaml: facts[0]"


def test_only_the_authors_number_fills_the_authors_column(tmp_path):
    rows = catalogue(tmp_path, mapped())
    assert rows.cell("swav_big", "linear_big", "top1").published.value == 75.3
    assert rows.cell("swav_big", "linear_big", "top1", by="VISSL").published.value == 74.92
    assert rows.cell("simclr_digits", "linear_big", "top1") is None
    assert catalogue(tmp_path, mapped(row="simclr_digits")).cell("simclr_digits", "linear_big", "top1") is None


def test_a_quoted_number_stands_in_when_the_authors_printed_none(tmp_path):
    rows = catalogue(tmp_path, mapped(row="simclr_digits", more="origin: quoted, by: a survey, "))
    assert rows.cell("simclr_digits", "linear_big", "top1").published.value == 74.92
    rows = catalogue(tmp_path, mapped(more="origin: quoted, by: a survey, "))
    assert rows.cell("swav_big", "linear_big", "top1").published.value == 75.3


def test_a_column_may_show_everything_that_one_source_prints(tmp_path):
    rows = catalogue(tmp_path, mapped())
    assert rows.cell("swav_big", "linear_big", "top1", source="vissl/zoo").published.value == 74.92
    assert rows.cell("swav_big", "linear_big", "top1", source="authors/code").published.value == 75.3


def test_two_numbers_for_one_cell_are_an_error_that_names_both(tmp_path):
    rows = catalogue(tmp_path, mapped(value="74.0", more=""))
    with pytest.raises(UserError, match=r"which number is meant\? 75.3 in zoo/fake.yaml:7 .*; 74.0 in published_map"):
        rows.cell("swav_big", "linear_big", "top1")


def test_the_same_number_in_entry_and_map_counts_once_and_a_slip_is_noticed(tmp_path):
    same = mapped(value="75.3", source="authors/code:README.md", more="")
    assert len(catalogue(tmp_path, same).facts("swav_big")) == 1
    with pytest.raises(UserError, match="two values of swav_big"):
        catalogue(tmp_path, same.replace("75.3", "75.4")).facts("swav_big")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row": "swav_bgi"}, "'swav_bgi' is no model of the zoo.*did you mean 'swav_big'"),
        ({"more": "origin: retrain, "}, "origin retrain needs `by`"),
        ({"more": "origin: quoted, "}, "origin quoted needs `by`"),
        ({"more": "orgin: authors, "}, "orgin: unknown field"),
        ({"value": "'75'"}, "values.swav_big.top1"),
    ],
)
def test_a_mistake_in_the_map_is_told_with_its_place(tmp_path, changes, said):
    with pytest.raises(UserError, match=r"published_map.yaml: facts\[0\].*" + said):
        catalogue(tmp_path, mapped(**changes)).facts("swav_big")


def test_an_external_fact_needs_a_described_row(tmp_path):
    with pytest.raises(UserError, match="'rival' is no row of published_external.yaml"):
        _ = catalogue(tmp_path, external="rows: {}\n" + mapped(row="rival")).outside


def test_fields_come_from_the_recipe_then_the_entry_then_nowhere(tmp_path):
    rows = catalogue(tmp_path)
    assert rows.field("swav_big", "schedule.epochs") == 100
    assert rows.field("swav_big", "params.heads") == 3
    assert rows.field("swav_big", "backbone") == "tiny"
    assert rows.field("swav_big", "params.tails") is None
    ZOO["no_recipe"] = entry("no_recipe")
    ZOO["no_recipe"].recipe = None
    try:
        assert rows.field("no_recipe", "schedule.epochs") is None
    finally:
        del ZOO["no_recipe"]


def test_every_origin_has_its_words():
    fact = {"protocol": "p", "metric": "m", "value": 1.0, "source": "s"}
    assert whose(Published(**fact)) == "the method's authors"
    assert whose(Published(**fact, origin="quoted", by="X")) == "as quoted by X"
    assert whose(Published(**fact, origin="retrain", by="X")) == "X, own training"
    assert whose(Published(**fact, origin="reeval", by="X")) == "X, the authors' weights"
