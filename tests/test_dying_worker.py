"""How the suite is run: by the options of the Makefile."""

import os
import re
import subprocess
import sys
from pathlib import Path

DYING = """
import os
import pytest

@pytest.mark.parametrize("number", range(12))
def test_one(number):
    if number in (2, 9):
        os.abort()

@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(4))
def test_other(number):
    pass
"""


def options(target: str) -> list[str]:
    """What `make TARGET` tells pytest, without the folders."""
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    spread = re.search(r"^SPREAD := (.*)$", makefile, re.MULTILINE)
    command = re.search(rf"^{target}:.*\n(?:\t.*\n)*?\t.*-m pytest (.*)$", makefile, re.MULTILINE)
    assert spread and command
    return command[1].replace("$(SPREAD)", spread[1]).replace("$(JOBS)", "2").split()[:-1]


def test_a_worker_that_dies_is_a_failed_test_and_the_others_still_run(tmp_path):
    (tmp_path / "test_dying.py").write_text(DYING)
    words = [
        *options("test"),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1 and "INTERNALERROR" not in done.stdout + done.stderr, done.stdout[-2000:]
    failed = re.findall(r"^FAILED .*::(\S+) - worker '\w+' crashed", done.stdout, re.MULTILINE)
    assert sorted(failed) == ["test_one[2]", "test_one[9]"] and "2 failed, 14 passed" in done.stdout
