"""One thread per process, private cache folders, and the ledger of golden numbers."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

import golden

# The same examples in every run: what decides whether a change lands must not depend on luck. `-m slow` looks further.
hypothesis.settings.register_profile("suite", derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def private_folders(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's torch.hub cache, data folders or runs."""
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("SELFZOO_DATA", "SELFZOO_MIRROR"):
        monkeypatch.delenv(name, raising=False)


def is_whole_suite(config) -> bool:
    """True when nothing was deselected by path, keyword or failure."""
    option = config.option
    plain = not option.keyword and not getattr(option, "lf", False) and not option.collectonly and not option.maxfail
    return plain and [str(a) for a in config.args] in (["tests"], [str(config.rootpath / "tests")])


def pytest_testnodedown(node, error):
    """pytest-xdist: a worker hands over what it compared."""
    output = getattr(node, "workeroutput", None) or {}
    if "golden" in output:
        golden.merge(output["golden"])


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput["golden"] = golden.ledger()
        return
    if exitstatus != pytest.ExitCode.OK or not is_whole_suite(session.config):
        return
    complaints = golden.complaints()
    if complaints:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line("")
        for line in complaints:
            reporter.write_line(f"FAILED {line}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
