"""Pages that are generated are up to date, and links inside the repository lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import programs
from reproduce import deviations
from zoo.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_deviations_is_what_the_methods_say():
    page = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    assert page == deviations.page(), "run: python -m reproduce.deviations > docs/deviations.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (page.parent / link).exists()]


def test_the_targets_that_the_readme_names_exist():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named and named <= targets


def test_every_measurement_is_listed_with_a_command_that_names_it():
    listed = programs()
    files = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert {command.split()[2].removeprefix("benchmarks.") for command, _, _ in listed} == files
    assert all(what for _, what, _ in listed), "a program's first line says what it measures"
    assert ROOT / "benchmarks" / "pic_scale.md" in [report for _, _, report in listed]


def test_the_yaml_file_that_the_docs_show_is_a_method(tmp_path):
    text = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "simsiam.yaml").write_text(
        text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8"
    )
    (tmp_path / "profiles.yaml").write_text(
        (ROOT / "zoo" / "profiles.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    entry = Registry(tmp_path).read().entry("simsiam_digits")
    assert entry.recipe.params == {"dim": 128, "hidden": 64} and entry.recipe.dataset == "digits"
