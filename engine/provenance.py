"""Where a number came from: code, libraries, hardware. No paths and no names of machines or people."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "faiss-gpu", "faiss-cpu", "pillow", "simplejpeg")


def collect() -> dict[str, Any]:
    """{git: {commit, dirty}, versions, hardware, threads, platform, time}: plain values for a JSON file."""
    import torch

    return {
        "git": _git(),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any]:
    """Commit of the code that runs, and whether that code differs from it; nulls outside a checkout.

    Records, tables and tests do not count: writing a first record must not make the second one look doubtful.
    """
    here = str(Path(__file__).parent)

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", here, *words], check=False, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    code = [f":/{room}/*" for room in ("zoo", "engine", "reproduce", "evaluations")] + [":/results/record.py"]
    changes = ask("status", "--porcelain", "--untracked-files=no", "--", *code) if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _hardware() -> dict[str, Any]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "cpu": _cpu(),
        "kernels": _kernels(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
    }


def _kernels() -> str:
    """The instructions that torch's own CPU code uses, and what the environment chose: ``AVX2, ATEN_CPU_CAPABILITY=avx2``."""
    import torch

    chosen = [
        f"{name}={os.environ[name]}" for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA") if os.environ.get(name)
    ]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *chosen])


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """{dotted path: [before, now]} of what differs, the time apart: said when a run goes on under other conditions."""
    found: dict[str, list[Any]] = {}
    for key in sorted({*old, *new} - {"time"}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found |= {f"{key}.{inner}": pair for inner, pair in changes(before, now).items()}
        elif before != now:
            found[key] = [before, now]
    return found
