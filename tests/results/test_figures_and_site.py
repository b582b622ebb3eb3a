import posixpath
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from result_fakes import catalogue
from result_samples import sample

import zoo
from results import figures, generate, show, site, tables
from results.published import Catalogue
from results.record import write
from results.store import RecordStore
from zoo.errors import UserError

ROOT = Path(__file__).parents[2]
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
    return RecordStore([tmp_path / "measured"]), catalogue(tmp_path)


def texts(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def dots(axes):
    """(x, y, half width of the whisker) of every point with error bars."""
    found = []
    for container in axes.containers:
        line, _, bars = container.lines
        ends = [segment[:, 0] for bar in bars for segment in bar.get_segments()]
        found.append((line.get_xdata()[0], line.get_ydata()[0], (ends[0][1] - ends[0][0]) / 2 if ends else None))
    return found


def test_dots_stand_at_their_values_and_whiskers_reach_one_deviation(drawn):
    built = next(b for b in (tables.build(t, *drawn) for t in tables.load()) if b.table.id == "digits")
    figure = figures.whiskers([("Digits & more", figures.linear(built))])
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    at = dict(zip(labels, sorted(dots(axes), key=lambda dot: dot[1]), strict=True))
    assert at["swav"][0] == pytest.approx(81.0) and at["swav"][2] == pytest.approx(2**0.5)
    assert at["random"][0] == pytest.approx(60.5) and at["random"][2] == pytest.approx(0.5**0.5)
    assert {"swav", "random", "81.0", "60.5", "Digits & more"} <= set(texts(figures.draw_all(*drawn)["laptop.svg"]))


def test_published_and_measured_meet_on_the_diagonal(drawn):
    points = [p for t in tables.load() for p in figures.pairs(tables.build(t, *drawn))]
    assert [(p.label, p.published, p.value) for p in points] == [("swav_big", 75.3, 75.5)]
    (axes,) = figures.diagonal(points).axes
    assert [dot[:2] for dot in dots(axes)] == [(75.3, 75.5)] and axes.get_xlim() == axes.get_ylim()
    line = axes.lines[-1]
    assert list(line.get_xdata()) == list(line.get_ydata()) and axes.get_xlabel() == "published"


def test_the_same_records_draw_the_same_bytes(drawn):
    assert figures.draw_all(*drawn) == figures.draw_all(*drawn)


def test_a_figure_of_another_matplotlib_agrees_only_when_it_shows_the_same_numbers(drawn, tmp_path, capsys):
    wanted = figures.draw_all(*drawn)["laptop.svg"]
    elsewhere = wanted.replace(f"Matplotlib {matplotlib.__version__}", "Matplotlib 3.0").replace("<path", "<path ")
    assert figures.agrees(elsewhere, wanted)
    assert not figures.agrees(wanted.replace("<path", "<path "), wanted), "same version, other bytes: edited by hand"
    assert not figures.agrees(elsewhere.replace("numbers ", "numbers 0")[:-1], wanted)
    generate.figures(drawn[0].roots, to=tmp_path / "f", catalogue=drawn[1])
    (tmp_path / "f" / "laptop.svg").write_text(elsewhere)
    assert generate.figures(drawn[0].roots, to=tmp_path / "f", catalogue=drawn[1], check=True) == 0
    write(sample("swav_digits", seed=2, value=90), drawn[0].roots[0])
    assert generate.figures(drawn[0].roots, to=tmp_path / "f", catalogue=drawn[1], check=True) == 1
    assert "laptop.svg" in capsys.readouterr().out


def test_nothing_measured_is_said_in_the_figure(tmp_path, drawn):
    empty = figures.draw_all(RecordStore([tmp_path / "none"]), drawn[1])
    assert "make demo" in empty["laptop.svg"] and "has been measured" in empty["published_vs_measured.svg"]


class Links(HTMLParser):
    """Addresses that a page refers to, and the ids that it defines."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.loaded, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "a":
            self.targets.append(attributes["href"])
        elif tag in ("link", "script", "img", "iframe"):
            self.loaded += [attributes[name] for name in ("href", "src") if name in attributes]


@pytest.fixture(scope="module")
def whole_site():
    return site.pages(RecordStore(), Catalogue())


def test_every_model_protocol_method_and_table_has_a_page(whole_site):
    kinds = Counter(name.split("/")[0] for name in whole_site if name.count("/") and name.endswith(".html"))
    protocols = list((ROOT / "evaluations" / "protocols").glob("*.yaml"))
    methods = list((ROOT / "zoo" / "methods").glob("*.yaml"))
    wanted = {
        "model": len(zoo.models()),
        "protocol": len(protocols),
        "method": len(methods),
        "table": len(tables.load()),
    }
    assert kinds == wanted


def test_every_link_of_the_site_resolves_and_no_page_loads_anything_from_outside(whole_site):
    for name, text in whole_site.items():
        if not name.endswith(".html"):
            assert name.endswith(".svg") or "://" not in text, f"{name} loads something from outside"
            continue
        links = Links(text)
        for target in links.targets + links.loaded:
            if target in links.loaded and target != "data:,":
                assert "://" not in target, f"{name} loads {target}"
            if "://" in target or target == "data:,":
                continue
            path, _, anchor = target.partition("#")
            reached = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            assert reached in whole_site, f"{name}: broken link {target}"
            assert not anchor or anchor in Links(whole_site[reached]).ids, f"{name}: no place {target}"
        assert not re.search(r"@import|url\((?!#)", text)


def test_the_site_prints_the_numbers_of_tables_and_comparisons(drawn):
    content = site.Content(*drawn)
    built = next(b for b in content.tables if b.table.id == "digits")
    assert ["swav_digits", "81.0 ± 1.4 / 3.0 (2)"] in content.table(built).rows
    big = next(m for m in content.models if m.id == "swav_big")
    assert big.numbers["linear_big top1"] == ["75.3", "75.5 ± 0.7 / 3.0 (2)"]


def test_text_of_the_registry_is_escaped_in_the_pages():
    assert (
        str(site.content.linked("<b>x</b> https://a.b/c"))
        == "&lt;b&gt;x&lt;/b&gt; <a href='https://a.b/c'>https://a.b/c</a>"
    )


def test_the_list_of_records_shows_mean_and_spread(drawn):
    text = show.table(drawn[0], "swav*")
    assert "81.0 ± 1.4 / 3.0 (2)" in text and "random" not in text
    with pytest.raises(UserError, match="no record of 'moco"):
        show.table(drawn[0], "moco*")
