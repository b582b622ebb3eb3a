"""Planted faults as data: which text of which file is replaced, what a user would suffer, which tests should notice.

``tests/mutations/faults/<package>.yaml`` maps a source file to its ``tests``, perhaps a ``select`` (an expression
for pytest's -k, to run fewer of them), and its ``faults``:

    breaks   what goes wrong for a user
    old, new text that occurs exactly once in the file, and what takes its place
    tests    optional: tests of this fault alone, run before those of the file
    lives    optional: why no test can or need notice it; such a fault counts as a survivor all the same
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "faults"
KEYS = {"breaks", "old", "new", "tests", "lives"}


@dataclass(frozen=True)
class Fault:
    package: str  # the name of the list that holds it
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]
    select: str = ""
    lives: str = ""

    def apply(self, root: Path) -> None:
        """Plant it in the tree at ``root``."""
        path = root / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")


def read() -> list[Fault]:
    """All faults, in the order of the lists. Raises ValueError for an entry of another form."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for file, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for fault in entry["faults"]:
                if not {"breaks", "old", "new"} <= set(fault) <= KEYS:
                    raise ValueError(f"{path.name}: {file}: a fault has the entries {sorted(fault)}")
                tests = (*fault.get("tests", ()), *entry["tests"])
                texts = (fault["old"], fault["new"], fault["breaks"])
                # The selection is of the file's tests, not of a fault's own.
                select = "" if "tests" in fault else entry.get("select", "")
                found.append(Fault(path.stem, file, *texts, tests, select, fault.get("lives", "")))
    return found


def complaints(faults: list[Fault], root: Path = ROOT) -> list[str]:
    """What is wrong with the lists: texts that do not occur exactly once, changes that change nothing, tests that are gone."""
    found = []
    for fault in faults:
        where = f"tests/mutations/faults/{fault.package}.yaml: {fault.file}: {fault.breaks!r}"
        path = root / fault.file
        count = path.read_text(encoding="utf-8").count(fault.old) if path.exists() else 0
        if count != 1:
            found.append(f"{where}: its old text occurs {count} times; update it with the code")
        if fault.old == fault.new:
            found.append(f"{where}: old and new are equal")
        missing = [test for test in fault.tests if not (root / test.split("::")[0]).exists()]
        if missing or not fault.tests:
            found.append(f"{where}: no such test: {', '.join(missing) or 'none named'}")
    known = [(fault.file, fault.old, fault.new) for fault in faults]
    return found + [
        f"{file}: the same change is listed twice: {old!r}"
        for file, old, new in {k for k in known if known.count(k) > 1}
    ]
