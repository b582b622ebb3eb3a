"""Installed, the five rooms live under one name: ``selfzoo.zoo``, ``selfzoo.engine``, ``selfzoo.reproduce``, …

In a checkout they stay the top-level packages ``zoo``, ``engine``, … Building a wheel copies them below ``selfzoo/`` and
rewrites the imports between them; nothing is installed under a short name that another project may use. Everything else
about the distribution is declared in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = ("zoo", "engine", "reproduce", "evaluations", "results")
_ROOM = "|".join(ROOMS)


def under_one_name(text: str) -> str:
    """Python source with its imports of the rooms rewritten: ``from zoo import data`` -> ``from selfzoo.zoo import data``."""
    text = re.sub(rf"^(\s*)from ({_ROOM})(?=[. ])", r"\1from selfzoo.\2", text, flags=re.MULTILINE)
    return re.sub(rf"^(\s*)import ({_ROOM})$", r"\1from selfzoo import \2", text, flags=re.MULTILINE)


class BuildUnderOneName(build_py):
    """``build_py``, then the rewritten imports and the package ``selfzoo`` itself."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        root = Path(self.build_lib) / "selfzoo"
        for file in root.rglob("*.py"):
            file.write_text(under_one_name(file.read_text(encoding="utf-8")), encoding="utf-8")
        (root / "__init__.py").write_text(
            '"""selfzoo: label-free visual pre-training, reproduced, judged and loaded."""\n', encoding="utf-8"
        )


found = [package for room in ROOMS for package in find_packages(include=[room, f"{room}.*"])]
setup(
    packages=[f"selfzoo.{package}" for package in found],
    package_dir={f"selfzoo.{package}": package.replace(".", "/") for package in found},
    package_data={
        "reproduce": ["curves.json"],
        "": ["**/*.yaml", "**/*.txt", "**/*.lock", "**/*.html", "**/*.css", "**/*.js"],
    },
    cmdclass={"build_py": BuildUnderOneName},
)
