"""--help of every command answers at once and shows an example: nothing heavy is imported before the words are parsed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "zoo": ("", "data"),
    "evaluations": ("",),
    "results": ("",),
    "reproduce": (),
}  # where sub-commands are listed
REPRODUCE = ("", "labels", "runs", "slurm", "extend")  # of which the first word decides, before argparse
HEAVY = ("torch", "torchvision", "faiss", "sklearn", "pandas", "matplotlib", "scipy")
# Runs in a process of its own: in this one torch is imported already.
PROGRAM = """
import contextlib, importlib, io, sys
for line in sys.stdin.read().splitlines():
    package, *words = line.split()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(package + ".__main__").main([*words, "--help"])
    heavy = [name for name in {heavy} if name in sys.modules]
    print(repr((line, said.getvalue(), heavy)))
"""


def helped(lines):
    """{command: (what --help printed, heavy modules that are imported by then)}."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{heavy}", repr(HEAVY))],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return {line: (text, heavy) for line, text, heavy in map(eval, found.stdout.splitlines())}


@pytest.fixture(scope="module")
def answers():
    above = [f"{package} {command}".strip() for package, commands in PACKAGES.items() for command in commands]
    top = helped(above)
    below = []
    for line, (text, _) in top.items():
        commands = re.findall(r"^    ([a-z]+) ", text, re.M)
        assert len(commands) > 4, text
        below += [f"{line} {command}" for command in commands if f"{line} {command}" not in top]
    return top | helped([*below, *(f"reproduce {command}".strip() for command in REPRODUCE), "benchmarks"])


def test_every_help_shows_an_example_of_its_own_command(answers):
    assert len(answers) > 30
    for line, (text, _) in answers.items():
        found = re.search(r"example: (python -m (?:\S+\s+)+)", text)
        assert found, f"python -m {line} --help has no example:\n{text}"
        assert " ".join(found[1].split()).startswith(f"python -m {line}"), text


def test_no_help_imports_what_is_slow(answers):
    assert {line: heavy for line, (_, heavy) in answers.items() if heavy} == {}


def test_a_misspelt_option_is_refused_before_torch_is_imported():
    program = "import sys\nfrom zoo.errors import UserError\nfrom reproduce.__main__ import main\ntry: main(['swav_digits', '--paln'])\nexcept UserError as e: print(e, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--paln" in found.stdout and found.stdout.split()[-1] == "False"
