"""Pages that are generated are up to date, and links inside the repository lead somewhere."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

import zoo
from benchmarks import bench, demo, select_recipes
from benchmarks.__main__ import programs
from evaluations import __main__ as evaluations_main
from evaluations import protocol
from reproduce import __main__ as reproduce_main
from reproduce import deviations
from results import __main__ as results_main
from zoo import __main__ as zoo_main
from zoo.errors import UserError
from zoo.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MAINS = {
    "zoo": zoo_main.main,
    "reproduce": reproduce_main.main,
    "evaluations": evaluations_main.main,
    "results": results_main.main,
    "benchmarks.bench": bench.main,
    "benchmarks.demo": demo.main,
    "benchmarks.select_recipes": select_recipes.main,
}
CHEAP = {
    ("zoo", "list"),
    ("zoo", "show"),
    ("zoo", "validate"),
    ("evaluations", "list"),
    ("results", "show"),
    ("results", "compare"),
}


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


def commands(page: Path) -> list[str]:
    """Command lines of the fenced blocks of a page; what follows a # is for the reader, and words like RUN or <id> are places."""
    text = re.sub(r"```(?:python|yaml)\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [re.split(r"\s+#", re.sub(r"^(srun|\$) ", "", line.strip()))[0].strip() for line in lines]
    return [
        line
        for line in found
        if re.match(r"(python -m|make|torchrun|[A-Z_]+=\S+ python -m) ", line) and " · " not in line
    ]


EVERY = sorted({(command, page.name) for page in PAGES for command in commands(page)})


@cache
def targets() -> dict[str, str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):[^\n]*##[^\n]*\n((?:\t.*\n?)*)", text, re.MULTILINE))


def is_place(word: str) -> bool:
    return bool(re.search(r"[<>…]|^[A-Z][A-Z_./]*$|=[A-Z]+$|^/data|^runs/", word))


def ids(words: list[str]) -> list[str]:
    """Words that look like a model, protocol or table of this project."""
    return [w for w in words if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", w)]


def known(word: str) -> bool:
    from results.tables import load

    places = (zoo.models(), protocol.names(), [table.id for table in load()], dir(zoo), ["export", "weights"])
    return any(word in place for place in places)


def test_pages_hold_commands_that_can_be_collected():
    by_page = {name for _, name in EVERY}
    assert {"README.md", "reproducing.md", "loading.md", "evaluating.md", "cluster.md", "results.md"} <= by_page
    assert len(EVERY) > 50


@pytest.mark.parametrize(("command", "page"), EVERY, ids=[f"{page}: {command}" for command, page in EVERY])
def test_every_command_of_the_pages_does_what_its_line_says(command, page, tmp_path, monkeypatch, capsys):
    """Cheap ones run, pre-trainings are planned, the others must be known to their parser with every id that they name."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    if words[0] == "make":
        (target, *rest) = [w for w in words[1:] if "=" not in w]
        assert target in targets() and not rest, f"no target {target}"
        named = {w.partition("=")[0] for w in words[1:] if "=" in w}
        text = targets()[target]
        assert all(f"$({name})" in text or name in ("PYTHON", "VENV") for name in named), named
        return
    if words[0] == "torchrun":
        options = [w for w in words[1:] if w.startswith("--")]
        assert all(re.match(r"--(standalone|nproc_per_node=|nnodes=)", o) for o in options)
        words = ["python", *(w for w in words[1:] if not w.startswith("--nproc") and w not in options)]
    module, rest = words[2], words[3:]
    if module.startswith("benchmarks") and module not in MAINS:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file() or module == "benchmarks"
        return
    if module == "reproduce.deviations":
        assert deviations.page()
        return
    assert all(known(w) for w in ids(rest)), [w for w in ids(rest) if not known(w)]
    monkeypatch.chdir(tmp_path)
    main = MAINS[module]
    if any(is_place(w) for w in rest) and module != "reproduce":
        rest = [*rest[:1], "--help"]
    elif module == "reproduce":
        if (
            rest[0] in ("labels", "extend", "runs")
            or is_place(rest[0])
            or any(w.startswith("data=") and not w.startswith("data=/data") for w in rest)
        ):
            rest = [rest[0], "--help"] if rest[0] in ("labels", "extend", "runs") else ["--help"]
        else:
            rest = [*(w for w in rest if not w.startswith(("data=", "--plan"))), "--plan"]
    elif module == "results" and rest[0] == "fill":
        rest = [*(w for w in rest if w not in ("--sbatch",)), "--plan"]
    elif (module, rest[0]) not in CHEAP:
        rest = [rest[0], "--help"]
    try:
        assert main(rest) == 0
    except SystemExit as done:
        assert not done.code
    assert capsys.readouterr().out


def test_a_command_that_does_not_exist_is_noticed(tmp_path, monkeypatch, capsys):
    def check(command):
        test_every_command_of_the_pages_does_what_its_line_says(command, "", tmp_path, monkeypatch, capsys)

    for wrong in (
        "make tabels",
        "python -m evaluations run linear_imagnet swav_800ep",
        "python -m zoo lst",
        "python -m results fill swav_zo",
    ):
        with pytest.raises((AssertionError, UserError, SystemExit)):
            check(wrong)


def test_the_page_of_licences_is_what_the_registry_says():
    from zoo import fetch

    page = (ROOT / "docs" / "weight-licences.md").read_text(encoding="utf-8")
    rows = {cells[1]: cells[2] for line in page.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 5}
    found: dict[str, set[str]] = {}
    for model in zoo.models():
        for item in fetch.items(model):
            found.setdefault(zoo.entry(model).code.repository, set()).add(item.license)
    assert {repository: set(rows[repository].split(" or ")) for repository in found} == found


def test_every_variable_of_the_environment_is_in_the_readme():
    code = "".join(
        p.read_text(encoding="utf-8")
        for room in ("zoo", "engine", "reproduce", "evaluations")
        for p in (ROOT / room).rglob("*.py")
    )
    variables = set(re.findall(r"SELFZOO_[A-Z_]+", code))
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Settings by environment")[2]
    assert variables and all(f"`{name}`" in table for name in variables)


@pytest.mark.parametrize(
    "setting",
    sorted(
        set(
            re.findall(
                r"`((?:params|optimizer|schedule)\.[a-z_.]+)", (ROOT / "docs" / "troubleshooting.md").read_text()
            )
        )
    ),
)
def test_every_setting_that_troubleshooting_proposes_exists(setting):
    from zoo.settings import leaves

    recipes = [zoo.resolve(f"{method}_digits").model_dump() for method in ("swav", "deepcluster", "mocov2")]
    assert any(setting in leaves(recipe) for recipe in recipes)


def test_messages_that_troubleshooting_quotes_are_those_of_the_code():
    code = "".join(
        (ROOT / path).read_text(encoding="utf-8")
        for path in ("reproduce/health.py", "engine/loop.py", "zoo/data/locate.py")
    )
    for said in ("the loss", "before the queue took part", "a few prototypes take all images", "dead features: embeddings hardly differ between images",
                 "collapse onto few directions: embeddings have an effective rank of", "not finite", "no data found. Tried:"):  # fmt: skip
        assert said in code and said in (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
