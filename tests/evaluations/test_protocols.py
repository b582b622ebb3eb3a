"""Protocol files are complete and typed; whatever is wrong is told with its line and a suggestion."""

from __future__ import annotations

import pytest

from evaluations import protocol
from zoo.errors import UserError

GOOD = """\
id: toy
version: 1
kind: knn
title: a toy
dataset: digits
grid: {k: [1, 5], temperature: [0.1]}
metrics: [top1]
source: nobody
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "path_of", lambda name: tmp_path / f"{name}.yaml")
    monkeypatch.setattr(protocol, "names", lambda pattern="*": sorted(p.stem for p in tmp_path.glob("*.yaml")))
    protocol._read.cache_clear()
    yield lambda text, name="toy": (tmp_path / f"{name}.yaml").write_text(text)
    protocol._read.cache_clear()


@pytest.mark.parametrize("name", protocol.names())
def test_every_protocol_is_complete(name):
    found = protocol.complete(protocol.load(name))
    assert found.id == name and found.source and found.metrics
    assert set(found.differs_from) <= set(protocol.names()) - {name}, "differs_from names protocols that exist"


def test_laptop_protocols_exist_for_both_data_sets():
    for dataset in ("digits", "fashion_mnist"):
        for kind in ("linear", "knn", "fewlabel", "cluster"):
            assert protocol.load(f"{kind}_{dataset}").dataset == dataset


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("version: 1", "version: one"), ["toy.yaml:2:1", "version", "'one'"]),
        (("kind: knn", "kind: knm"), ["toy.yaml:3:1", "'knm'", "did you mean 'knn'"]),
        (("title: a toy", "titel: a toy"), ["toy.yaml:4:1", "'titel'", "did you mean 'title'"]),
        (("source: nobody\n", ""), ["source is missing"]),
        (
            ("source: nobody", "source: nobody\nhead: {querys: 3}"),
            ["toy.yaml:9:8", "'head.querys'", "did you mean 'queries'"],
        ),
        (("source: nobody", "source: nobody\nselect: {on: none}"), ["select.on"]),
        (("source: nobody", "source: nobody\nselect: {on: val}"), ["splits.val"]),
        (("grid: {k: [1, 5], temperature: [0.1]}", "grid: {k: []}"), ["at least one value"]),
        (("temperature: [0.1]", "temprature: [0.1]"), ["toy.yaml:6:19", "did you mean 'temperature'"]),
        (("id: toy", "id: toys"), ["toy.yaml:1:1", "'toys'", "must agree"]),
        (("title: a toy", "title: a toy\ntitle: b"), ["toy.yaml:5:1", "duplicate"]),
    ],
)
def test_a_mistake_in_the_file_is_told_with_place_and_remedy(folder, change, words):
    folder(GOOD.replace(*change))
    with pytest.raises(UserError) as error:
        protocol.complete(protocol.load("toy"))
    for word in words:
        assert word in str(error.value)


def test_overrides_reach_defaults_and_misspelled_ones_are_told(folder):
    folder(GOOD)
    assert protocol.load("toy", {"head.queries": 7}).head["queries"] == 7
    assert protocol.load("toy", {"grid.k": [3]}).grid["k"] == [3.0]
    with pytest.raises(UserError, match=r"head\.querys.*did you mean 'head\.queries'"):
        protocol.load("toy", {"head.querys": 7})
    with pytest.raises(UserError, match="says what a protocol is"):
        protocol.load("toy", {"kind": "linear"})
    with pytest.raises(UserError, match=r"select\.folds=1"):
        protocol.load("toy", {"select.folds": 1})


def test_an_unknown_protocol_has_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'linear_digits'"):
        protocol.load("linear_digit")


def test_a_protocol_like_another_says_what_differs_and_inherits_neither_version_nor_title(tmp_path, monkeypatch):
    (tmp_path / "linear_digits.yaml").write_text(
        protocol.path_of("linear_digits").read_text(encoding="utf-8"), encoding="utf-8"
    )
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    protocol._read.cache_clear()
    mine = "id: mine\nlike: linear_digits\nversion: 3\ntitle: my own\nhead: {epochs: 7}\n"
    (tmp_path / "mine.yaml").write_text(mine)
    base, found = protocol.load("linear_digits"), protocol.load("mine")
    assert (found.id, found.version, found.title, found.differs_from) == ("mine", 3, "my own", {})
    assert found.head == {**base.head, "epochs": 7} and found.grid == base.grid and found.source == base.source
    wrong = {
        "id: a\nlike: nothing\nversion: 1\ntitle: t\n": "no protocol 'nothing' to be like",
        "id: a\nlike: mine\nversion: 1\ntitle: t\n": "mine is itself like linear_digits; one level is allowed",
        "id: a\nlike: linear_digits\ntitle: t\n": "version is missing",
        "id: a\nlike: linear_digits\nversion: 1\ntitle: t\nhed: {epochs: 1}\n": "unknown field 'hed'",
    }
    for text, said in wrong.items():
        (tmp_path / "a.yaml").write_text(text)
        protocol._read.cache_clear()
        with pytest.raises(UserError, match=f"a.yaml:.*{said}"):
            protocol.load("a")
    protocol._read.cache_clear()
