"""Everything derived is derived: in a copy of the tree, without its tables, figures, README blocks and site, the commands behind
``make tables figures site`` bring back the same bytes; another published number, record or README cell is told by its name."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = "zoo engine reproduce evaluations results docs benchmarks README.md CHANGELOG.md CITATION.cff LICENSE Makefile hubconf.py"
SKIP = shutil.ignore_patterns("__pycache__", "runs", ".*")
BLOCK = re.compile(r"(<!-- table:[^ ]* -->\n).*?(<!-- /table -->)", re.S)

# One process imports the copy's code once; each command then runs in a child of it, as if it were started anew.
SERVER = r"""
import contextlib, io, json, os, sys, tempfile
from zoo.errors import guard
import results, results.generate, results.site
from results.__main__ import main
assert os.path.dirname(results.__file__) == os.path.join(os.getcwd(), "results"), results.__file__
for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            status = guard(lambda: main(json.loads(line)))
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(json.dumps([status, said.read()]), flush=True)
"""


class Copy:
    """A copy of the tree, and a way to run ``python -m results …`` with the copy's code, in the copy."""

    def __init__(self, folder):
        self.root = folder
        for part in PARTS.split():
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=SKIP)
            else:
                shutil.copy2(ROOT / part, folder / part)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def results(self, *words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def make(self, *targets):
        """The commands that the Makefile has for these targets."""
        text = (self.root / "Makefile").read_text()
        for target in targets:
            commands = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.M)[1].splitlines()
            assert len(commands) == 1 and commands[0].startswith("\t$(PY) -m results "), commands
            status, said = self.results(*commands[0].split()[3:])
            assert status == 0, said

    def bytes(self):
        places = ["README.md", "results/tables", "results/figures", "runs/site"]
        found = [f for p in places for f in [self.root / p, *(self.root / p).rglob("*")] if f.is_file()]
        return {str(f.relative_to(self.root)): f.read_bytes() for f in found}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    found = Copy(tmp_path_factory.mktemp("tree") / "copy")
    yield found
    found.process.stdin.close()
    found.process.wait(60)


def test_what_is_deleted_comes_back_with_the_same_bytes(copy):
    copy.make("site")  # the site is no part of the repository: it is made from what is committed
    before = copy.bytes()
    assert len([f for f in before if f.endswith(".md")]) > 20 and len([f for f in before if f.endswith(".html")]) > 20
    readme = copy.root / "README.md"
    readme.write_text(BLOCK.sub(r"\1\2", readme.read_text()))
    for folder in ("results/tables", "results/figures", "runs"):
        shutil.rmtree(copy.root / folder)
    lost = len(before["README.md"].splitlines()) - len(readme.read_text().splitlines())
    assert list(copy.bytes()) == ["README.md"] and lost > 20
    status, said = copy.results("tables", "--check")
    assert status == 1 and "README.md" in said and "results/tables/digits.md" in said

    copy.make("tables", "figures", "site")
    after = copy.bytes()
    drawn = {f for f in before if f.endswith(".svg") and matplotlib.__version__ not in before[f].decode()}
    changed = [f for f in {**before, **after} if before.get(f) != after.get(f) and f not in drawn]
    assert changed == [], "a figure of another matplotlib has other bytes; nothing else may"
    if drawn:
        assert copy.results("figures", "--check")[0] == 0


def swav_linear(root):
    """A committed record of swav_digits under linear_digits."""
    return sorted((root / "results/measured/swav_digits").glob("linear_digits--*.json"))[0].relative_to(root)


def test_a_changed_number_fails_the_check_by_name(copy):
    def told(file, old, new):
        """What the check says with one number changed; the file is put back."""
        path = copy.root / file
        text = path.read_text()
        assert text.count(old), f"{file} has no {old!r}; choose another number"
        path.write_text(text.replace(old, new, 1))
        try:
            status, said = copy.results("tables", "--check")
        finally:
            path.write_text(text)
        assert status == 1, f"{file}: {old} became {new}, and nobody noticed\n{said}"
        assert "write them again with: python -m results tables" in said
        return said

    def lines(said, page):
        """Lines that the check takes from, and adds to, one page."""
        assert f"--- {page}\n" in said, said
        part = said.split(f"--- {page}\n")[1].split("\n--- ")[0].splitlines()
        return [x for x in part if x[:1] == "-"], [x for x in part if x[:1] == "+" and x[:3] != "+++"]

    assert copy.results("tables", "--check")[0] == 0
    # Published, in the registry: SwAV, 800 epochs.
    old, new = lines(told("zoo/methods/swav.yaml", "value: 75.3,", "value: 75.8,"), "results/tables/swav_zoo.md")
    assert any("swav_800ep" in x and "75.3" in x for x in old) and any("swav_800ep" in x and "75.8" in x for x in new)
    # Published, of a row that is no model of the zoo.
    said = told("results/published_external.yaml", "simclr_rn50: {top1: 48.3", "simclr_rn50: {top1: 43.8")
    old, new = lines(said, "results/tables/semisupervised.md")
    assert any("SimCLR, ResNet-50 " in x and "48.3" in x for x in old)
    assert any("SimCLR, ResNet-50 " in x and "43.8" in x for x in new)
    # A record.
    record = swav_linear(copy.root)
    value = json.loads((copy.root / record).read_text())["metrics"]["top1"]["value"]
    said = told(record, f'"value": {value}', f'"value": {value - 30}')
    old, new = lines(said, "results/tables/digits.md")
    assert any("swav" in x for x in old) and any("swav" in x for x in new)
    # A cell of README.md, of each block.
    blocks = list(BLOCK.finditer((copy.root / "README.md").read_text()))
    assert blocks
    for block in blocks:
        row = next(x for x in reversed(block[0].splitlines()) if x.startswith("| ") and re.search(r"\d\d\.\d", x))
        old, new = lines(told("README.md", row, re.sub(r"\d\d\.\d", "12.3", row, count=1)), "README.md")
        assert row in [x[1:] for x in new] and any("12.3" in x for x in old)
