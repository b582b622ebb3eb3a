import re
from xml.etree import ElementTree

import pytest
from result_fakes import catalogue
from result_samples import sample

from results import figures, show, site, tables
from results.record import write
from results.store import Store
from zoo.errors import UserError

SPEC = """
tables:
  - {id: zoo, title: Zoo, rows: [{ids: [swav_big]}], columns: [
      {head: published, kind: published, protocol: linear_big@1, metric: top1},
      {head: measured, kind: measured, protocol: linear_big@1, metric: top1}]}
  - {id: digits, title: "Digits & more, percent", rows: [{query: "*_digits"}], unmeasured_rows: hide, columns: [
      {head: linear, kind: measured, protocol: linear_digits@1, metric: top1}]}
"""


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    (tmp_path / "tables.yaml").write_text(SPEC)
    monkeypatch.setattr(tables.load, "__defaults__", (tmp_path / "tables.yaml",))
    for seed in range(2):
        write(sample("swav_digits", seed=seed, value=80 + 2 * seed), tmp_path / "measured")
        write(sample("random_digits", seed=seed, value=60 + seed), tmp_path / "measured")
        write(sample("swav_big", seed=seed, value=75 + seed, protocol="linear_big"), tmp_path / "measured")
    return Store([tmp_path / "measured"]), catalogue(tmp_path)


def texts(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_dots_stand_at_their_values_and_whiskers_reach_one_deviation(drawn):
    svg = figures.draw_all(*drawn)["laptop.svg"]
    assert {"swav", "random", "81.0", "60.5", "Digits & more"} <= set(texts(svg))
    tree = ElementTree.fromstring(svg)
    dots = {e.get("fill"): float(e.get("cx")) for e in tree if e.tag.endswith("circle")}
    scale = {float(t.text): float(t.get("x")) for t in tree if t.get("text-anchor") == "middle"}
    (low, x_low), (high, x_high) = min(scale.items()), max(scale.items())
    unit = (x_high - x_low) / (high - low)
    at = [x_low + unit * (value - low) for value in (81.0, 60.5)]
    assert [dots[figures.FIRST], dots[figures.SECOND]] == pytest.approx(at, abs=0.11)
    whiskers = [
        float(e.get("x2")) - float(e.get("x1")) for e in tree if e.get("y1") is not None and e.get("y1") == e.get("y2")
    ]
    assert whiskers == pytest.approx([2 * 0.5**0.5 * unit, 2 * 2**0.5 * unit], abs=0.21)  # random, swav


def test_published_and_measured_meet_on_the_diagonal(drawn):
    points = [p for t in tables.load() for p in figures.pairs(tables.build(t, *drawn))]
    assert [(p.label, p.published, p.value) for p in points] == [("swav_big", 75.3, 75.5)]
    assert "swav_big" in texts(figures.diagonal(points))
    on_line = figures.diagonal([figures.Point("x", 70.0, None, 70.0), figures.Point("y", 60.0, None, 60.0)])
    places = re.findall(r"<circle cx='([\d.]+)' cy='([\d.]+)'", on_line)
    assert len({round(float(x) + float(y)) for x, y in places}) == 1


def test_the_same_records_draw_the_same_bytes(drawn):
    assert figures.draw_all(*drawn) == figures.draw_all(*drawn)


def test_nothing_measured_is_said_in_the_figure(tmp_path, drawn):
    empty = figures.draw_all(Store([tmp_path / "none"]), drawn[1])
    assert "make demo" in empty["laptop.svg"] and "has been measured" in empty["published_vs_measured.svg"]


@pytest.mark.parametrize(("low", "high"), [(0, 100), (59.3, 61.2), (70.05, 78.55), (5, 5)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    found = figures.ticks(low, high)
    assert found[0] <= low and found[-1] >= high - 1e-6 and 2 <= len(found) <= 9 or low == high


def test_the_page_holds_every_table_and_needs_nothing_else(drawn):
    page = site.html(*drawn)
    assert "81.0 ± 1.4 (2)" in page and "Digits &amp; more" in page and page.count("<svg") == 2
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\(", page)


def test_the_list_of_records_shows_mean_and_spread(drawn):
    text = show.table(drawn[0], "swav*")
    assert "81.0 ± 1.4 (2)" in text and "random" not in text
    with pytest.raises(UserError, match="no record of 'moco"):
        show.table(drawn[0], "moco*")
