"""What a wheel holds: every room under the one name ``selfzoo``, working without a checkout."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
USE = """
import importlib, json, pkgutil, sys
import selfzoo
names = [m.name for m in pkgutil.walk_packages(selfzoo.__path__, "selfzoo.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
from selfzoo import zoo
from selfzoo.evaluations import protocol
from selfzoo.reproduce import methods
methods.find("swav")
protocol.complete(protocol.load("linear_digits"))
short = {"zoo", "engine", "reproduce", "evaluations", "results"} & {name.split(".")[0] for name in sys.modules}
print(json.dumps({"modules": len(names), "models": len(zoo.models()), "short": sorted(short)}))
"""


def test_an_installed_project_lives_under_one_name(tmp_path):
    build = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "build_py",
        "--build-lib",
        str(tmp_path / "lib"),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    assert [p.name for p in (tmp_path / "lib").iterdir()] == ["selfzoo"]
    ran = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'lib')!r})\n{USE}"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["short"] == [] and found["models"] > 90 and found["modules"] > 100
