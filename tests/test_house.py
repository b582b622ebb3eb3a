"""The rules of the house that a machine can hold us to: which room may import which, and what golden numbers are pinned."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import shutil
from pathlib import Path

import pytest

import golden

ROOT = Path(__file__).parents[1]
ROOMS = ("zoo", "engine", "reproduce", "evaluations", "results")
MAY_IMPORT = {
    "zoo": set(),
    "engine": {"zoo.errors"},
    "reproduce": {"zoo", "engine"},
    "evaluations": {"zoo", "engine", "results.record"},
    "results": {"zoo"},
}


def imports(path: Path) -> list[tuple[int, str]]:
    """Every module that a file names in an import, lazy ones inside functions too; relative ones as ``.``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append((node.lineno, "."))
            else:
                found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def trespasses(room: str, path: Path) -> list[str]:
    found = []
    for line, name in imports(path):
        top = name.split(".")[0]
        if top not in ROOMS:
            continue
        if room == "zoo":
            found.append(f"{path}:{line}: zoo imports itself relatively, not as {name!r}")
        elif top == room:
            if path.parts[-2:] == ("results", "record.py"):
                found.append(f"{path}:{line}: results/record.py is a leaf and imports nothing of the project")
        elif not any(name == ok or name.startswith(ok + ".") for ok in MAY_IMPORT[room]):
            found.append(f"{path}:{line}: {room} may not import {name}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ holds no Python file"
    assert not [t for f in files for t in trespasses(room, f)]


def test_an_import_that_goes_up_is_noticed(tmp_path):
    file = tmp_path / "zoo" / "bad.py"
    file.parent.mkdir()
    file.write_text("def late():\n    from engine.maths import sinkhorn\n")
    assert trespasses("zoo", file) and not trespasses("reproduce", file)
    leaf = tmp_path / "results" / "record.py"
    leaf.parent.mkdir()
    leaf.write_text("import results.store\n")
    assert trespasses("results", leaf)


def test_no_two_test_files_share_a_name():
    """pytest imports them by their bare names, and so does a process that a test starts."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not sorted({name for name in names if names.count(name) > 1})


def test_the_engine_honours_every_recipe_of_the_registry():
    """Of zoo, engine imports its errors alone: their names of optimisers, schedules and settings must agree here."""
    import torch

    import zoo
    from engine import optim

    recipes = {id: zoo.entry(id).recipe for id in zoo.models()}
    for recipe in filter(None, recipes.values()):
        spec = recipe.dump()
        total = 10 * (spec["schedule"]["epochs"] or 3)
        rates = optim.schedule(spec["schedule"], 10, total, lr=spec["optimizer"]["lr"])
        assert len(rates) == total and (rates >= 0).all()
        optim.build(spec["optimizer"], [{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}])


def test_engine_and_registry_have_the_same_optimisers_and_schedules_with_the_same_defaults():
    from engine import optim
    from zoo.schema import OPTIMIZERS, SCHEDULES

    for name, settings in SCHEDULES.items():
        assert optim.settings_of(optim._SCHEDULES[name]) == settings, name
    own = {name: {*known} - {"weight_decay"} for name, (_, known) in optim._OPTIMIZERS.items()}
    assert own == {name: {*settings} for name, settings in OPTIMIZERS.items()}
    defaults = inspect.signature(optim.LARC.__init__).parameters
    for name in ("larc", "lars"):
        assert {key: OPTIMIZERS[name][key] for key in ("trust", "eps")} == {
            key: defaults[key].default for key in ("trust", "eps")
        }


def test_every_tolerance_is_that_of_some_array_and_names_are_matched_whole():
    used = set()
    for file in golden.files():
        pattern = next(p for p in golden.TOLERANCES if fnmatch.fnmatch(file, p))
        for name in golden.arrays(file):
            table = golden.TOLERANCES[pattern]
            used.add((pattern, next(p for p in table if golden.re.fullmatch(p, name))))
    assert used == {(pattern, p) for pattern, table in golden.TOLERANCES.items() for p in table}, (
        "a rule that catches nothing"
    )
    losses = golden.tolerances("swav/swav_loss.npz")
    assert (
        golden.tolerance(losses, "queue.grad_raw_last")
        == golden.tolerance(losses, "two_crops.grad_raw_last")
        == (0, 2e-5)
    )
    mixtures = golden.tolerances("swav/unmix_swav.npz")
    assert golden.tolerance(mixtures, "queue_region.grad_fc") == (0, 3e-5) and golden.tolerance(
        mixtures, "queue_region.queue_after"
    ) == (0, 1e-6)


def test_a_pinned_tolerance_is_corrected_only_with_a_reason(monkeypatch, tmp_path):
    for name in ("PINNED", "CORRECTIONS"):
        monkeypatch.setattr(golden, name, tmp_path / name)
    shutil.copy(golden.ROOT / "PINNED", tmp_path / "PINNED")
    file = "swav/larc.npz"
    monkeypatch.setitem(golden.TOLERANCES, file, {".*": (0, 1e-3)})
    with pytest.raises(SystemExit, match="swav/larc.npz: the file or a tolerance differs"):
        golden.pin()
    with pytest.raises(SystemExit, match="no reason"):
        golden.pin(file, " ")
    with pytest.raises(SystemExit, match="swav/sinkhorn.npz: nothing changed"):
        golden.pin("swav/sinkhorn.npz", "another file")
    golden.pin(file, "as the README says")
    assert golden.pinned() == golden.pins() and "as the README says" in (tmp_path / "CORRECTIONS").read_text()


def test_golden_files_and_tolerances_are_the_pinned_ones():
    assert golden.pins() == golden.pinned(), "run `python tests/golden.py pin` after copying a new golden file"


def test_a_changed_tolerance_or_number_breaks_its_pin(tmp_path, monkeypatch):
    file = golden.files()[0]
    before = golden.pins()[file]
    monkeypatch.setattr(golden, "TOLERANCES", {"*": {".*": (1.0, 1.0)}})
    assert golden.pins()[file] != before
    monkeypatch.undo()
    shutil.copytree(golden.ROOT, tmp_path / "golden")
    monkeypatch.setattr(golden, "ROOT", tmp_path / "golden")
    damaged = tmp_path / "golden" / file
    damaged.write_bytes(damaged.read_bytes() + b"other")
    assert golden.pins()[file] != before


def test_an_untouched_golden_array_is_a_complaint(monkeypatch):
    file = next(f for f in golden.files() if f.endswith(".npz"))
    monkeypatch.setattr(golden, "compared", golden.defaultdict(set))
    monkeypatch.setattr(golden, "given", golden.defaultdict(set))
    assert any(file in c for c in golden.complaints())
    golden.compared[file].add("no such array")
    assert any(file in c and "neither" in c for c in golden.complaints())
