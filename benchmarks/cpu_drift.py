"""How far the numbers of digits, and the verdicts on them, move when the same commands run by the kernels of another CPU family.

    python -m benchmarks.cpu_drift [--models random_digits:5 deepcluster_digits:3 swav_digits:3] [--report results/cpu_drift.json]

Each model is pre-trained and judged, once for each of its seeds (``:5``: 0 to 4), by each set of kernels that this CPU can run: ATen
takes them from ATEN_CPU_CAPABILITY, oneDNN from ONEDNN_MAX_CPU_ISA. MKL, which has no such switch for every CPU, keeps its own choice,
so that another machine may differ by more. What is finished in --out is not run again. `python -m results replay` reads the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine import provenance
from results.record import Record, files, read
from results.store import LEVEL, welch

KERNELS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
PROTOCOLS = ("knn_digits", "linear_digits", "fewlabel_digits", "cluster_digits")
# A run of the same kind on a machine that is not here: its kernels cannot be chosen, so that it is kept as it was reported.
REPORTED = [
    {
        "model": "deepcluster_digits",
        "protocol": "knn_digits",
        "metric": "top1",
        "values": {"AVX-512": 94.43, "a CPU with AVX2 only": 97.22},
    },
]


def measured(model: str, seed: int, place: Path) -> list[Record]:
    """The records of every protocol, or none."""
    found = [r for r in map(read, files(place / "measured")) if (r.model, r.pretrain_seed) == (model, seed)]
    return found if {r.protocol for r in found} == set(PROTOCOLS) else []


def measure(model: str, seed: int, kernels: str, out: Path) -> dict[tuple[str, str], float]:
    """{(protocol, metric): value} of one run."""
    place = out / kernels
    if not measured(model, seed, place):
        clean = {k: v for k, v in os.environ.items() if k not in KERNELS["avx2"]}
        environment = clean | KERNELS[kernels] | {"OMP_NUM_THREADS": "1"}
        commands: list[tuple[str, ...]] = [("reproduce", model, f"seed={seed}")]
        commands += [("evaluations", "run", p, model, f"pretrain_seed={seed}") for p in PROTOCOLS]
        for words in commands:
            subprocess.run(
                [sys.executable, "-m", *words, f"out={place}"], env=environment, check=True, stdout=subprocess.DEVNULL
            )
    return {
        (r.protocol, n): m.value for r in measured(model, seed, place) for n, m in r.metrics.items() if n != "majority"
    }


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """Each model's mark beside random_digits, by each set of kernels, from the rows of values."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        for kernels, value in row["values"].items():
            values.setdefault((row["model"], row["protocol"], row["metric"], kernels), []).append(value)
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for (model, protocol, metric, kernels), own in values.items():
        if model == "random_digits" or metric.endswith("best_on_test"):  # never ranked
            continue
        errors, p = welch(own, values["random_digits", protocol, metric, kernels])
        mark = "not shown" if p >= LEVEL else "better" if errors > 0 else "worse"
        found.setdefault((model, protocol, metric), {})[kernels] = mark
    return [{"model": m, "protocol": p, "metric": n, "marks": marks} for (m, p, n), marks in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL:SEEDS",
        default=["random_digits:5", "deepcluster_digits:3", "swav_digits:3"],
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cpu_drift"))
    parser.add_argument("--report", type=Path, default=Path("results/cpu_drift.json"))
    args = parser.parse_args()
    rows = []
    for model, _, seeds in (word.partition(":") for word in args.models):
        for seed in range(int(seeds)):
            found = {kernels: measure(model, seed, kernels, args.out) for kernels in KERNELS}
            for protocol, metric in found["native"]:
                values = {kernels: round(of[protocol, metric], 4) for kernels, of in found.items()}
                rows.append({"model": model, "seed": seed, "protocol": protocol, "metric": metric, "values": values})
            print(f"{model} seed {seed}: {len(rows)} rows", flush=True)
    made = provenance.collect()
    report = {
        "command": f"python -m benchmarks.cpu_drift --models {' '.join(args.models)}",
        "cpu": made["hardware"]["cpu"],
        "torch": made["versions"]["torch"],
        "kernels": KERNELS,
    }
    lists = {
        "rows": rows,
        "verdicts": verdicts(rows),
        "reported": REPORTED,
    }
    text = json.dumps(report, indent=1)[:-2]
    for name, each in lists.items():
        text += f',\n "{name}": [\n  ' + ",\n  ".join(json.dumps(row) for row in each) + "\n ]"
    args.report.write_text(text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
