"""DETR learns 32 composed scenes by heart: AP50 on its own training images, and the loss on scenes that it has not seen.

    python -m benchmarks.detr_overfit MODEL [--scenes 32] [--steps 3000] [--minutes 30] [--report benchmarks/detr_overfit.md]

``detr_scenes`` without flips and with the settings below, trained by the engine's loop through the evaluation's own code; every
``--every`` steps the detector is scored on the scenes that it learns and on as many of the part val. MODEL: an id, a run folder or a file.
The same command continues after an interruption. The report has the whole curve, whatever it is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import dist, loop, optim, provenance, rng
from engine.progress import duration
from evaluations.detection.data import Items, Stream
from evaluations.detection.train import Learner
from evaluations.kinds import detr
from evaluations.measure import Measurement, Settings

SETTINGS: dict[str, Any] = {"head.views.flip": 0.0, "head.batch": 16, "head.group": 16}
CELL = {"lr": 1e-3, "weight_decay": 1e-4}  # the backbone has half of the rate
WANTED = 30.0  # AP50 in percent


class Few(detr.Kind):
    """DETR on the first ``count`` images of each part."""

    count = 32

    def items(self, split: str, seed: int = 0) -> Items:
        found = super().items(split, seed)
        found.source = found.source.subset(np.arange(min(self.count, len(found.source))))
        return found


@torch.no_grad()
def mean_loss(kind: Few, network: torch.nn.Module, split: str, seed: int) -> float:
    """Mean of DETR's loss over the images of a part in their plain size, one group of 16 after the other."""
    network.eval()
    items = kind.items(split, seed)
    losses = []
    for start in range(0, len(items.source), 16):
        part = items[(0, 0, list(range(start, min(start + 16, len(items.source)))))]
        part.objects = max(float(sum(len(t["boxes"]) for t in part.targets)), 1.0)
        losses.append(float(kind.losses(network, part)[0]))
    network.train()
    return float(np.mean(losses))


def run(
    model: str, scenes: int, steps: int, every: int, minutes: float, out: str, lr: float = CELL["lr"]
) -> dict[str, Any]:
    """The curve: for each scored step the AP50 and loss on the learned scenes and on those of val."""
    cell = {**CELL, "lr": lr, "lr_backbone": lr / 2}
    task = Measurement.of("detr_scenes", model, Settings.of(SETTINGS, out))
    kind = Few(task.protocol, task)
    kind.count = scenes
    source = kind.items("train").source
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(0, "detector"))
        network = kind.build(len(source.classes))
    stream = Stream(kind.items("train"), kind.kept(source), kind.head.batch, kind.group, total=steps)
    learner = Learner(
        network, lambda part: kind.losses(network, part), kind.parameter_groups(network, cell), 0, kind.head.clip
    )
    recipe = {
        "optimizer": {"name": "adamw", "lr": cell["lr"], "weight_decay": cell["weight_decay"]},
        "schedule": {"name": "step", "milestones": [0.8 * steps / stream.steps_per_epoch], "factor": 0.1},
        "seed": 0,
        "precision": "float32",
        "channels_last": False,
        "sync_bn": False,
        "sync_bn_group": None,
        "batch": kind.head.batch,
        "model": task.model.name,
        "scenes": scenes,
    }
    folder = Path(out) / f"detr_{scenes}_{lr:g}_{task.model.name}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "curve.json"
    curve: list[dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else []
    spent = curve[-1]["cpu_s"] if curve else 0.0
    for stop in range(every, steps + every, every):
        if curve and stop <= curve[-1]["step"]:
            continue
        began = time.process_time()
        options = {**task.compute.options.__dict__, "stop_after": min(stop, steps), "tensorboard": False}
        found = loop.fit(
            learner,
            stream,
            rates=optim.schedule(recipe["schedule"], stream.steps_per_epoch, steps, lr=cell["lr"]),
            recipe=recipe,
            folder=folder / "run",
            options=type(task.compute.options)(**options),
            world=dist.World(0, 1),
            provenance=provenance.collect(),
        )
        spent += time.process_time() - began
        row = {"step": float(found.steps), "cpu_s": round(spent, 1)}
        for part in ("train", "val"):
            score, _ = kind.measure(network.eval(), part)
            row[f"ap50_{part}"] = round(score(np.arange(len(kind.items(part).source)))["ap50"], 2)
            row[f"loss_{part}"] = round(mean_loss(kind, network, part, 0), 4)
        curve.append(row)
        kept.write_text(json.dumps(curve))
        print(", ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)
        if found.finished or spent > 60 * minutes:
            break
    unseen = len(kind.items("val").source)
    return {"curve": curve, "model": task.model.name, "scenes": len(source), "unseen": unseen, "lr": lr}


def report(found: dict[str, Any], command: str) -> str:
    """The page: verdict, curve, machine."""
    curve, machine = found["curve"], provenance.collect()["hardware"]["cpu"]
    learned, unseen = (max(row[f"ap50_{part}"] for row in curve) for part in ("train", "val"))
    reached = next((row for row in curve if row["ap50_train"] >= WANTED), None)
    verdict = (
        f"AP50 {WANTED:.0f} on the learned scenes after {reached['step']:,.0f} steps, {duration(reached['cpu_s'])} of CPU time"
        if reached
        else f"AP50 {WANTED:.0f} on the learned scenes was not reached"
    )
    verdict += f"; best {learned:.1f} there and {unseen:.1f} on unseen scenes. The curve is below as it is."
    rows = [
        f"| {r['step']:,.0f} | {duration(r['cpu_s'])} | {r['loss_train']:.3f} | {r['ap50_train']:.1f} | {r['loss_val']:.3f} | {r['ap50_val']:.1f} |"
        for r in curve
    ]
    lines = [
        f"# DETR on {found['scenes']} scenes",
        "",
        f"`{command}`",
        "",
        f"`detr_scenes` on {found['model']}, rate {found['lr']:g}, no flips; scored on the {found['scenes']} scenes that it learns and on "
        f"{found['unseen']} scenes of val that it never sees. {verdict}",
        "",
        "| step | CPU time | loss, learned | AP50, learned | loss, unseen | AP50, unseen |",
        "|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        f"torch {torch.__version__}, one process on {machine}; the machine did other work at the same time. Not run on a GPU.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="registry id, run folder or weight file")
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=200, help="steps between scores")
    parser.add_argument("--lr", type=float, default=CELL["lr"], help="the backbone has half of it")
    parser.add_argument("--minutes", type=float, default=30.0, help="CPU minutes after which it stops")
    parser.add_argument("--out", default="runs/detr_overfit")
    parser.add_argument("--report", metavar="FILE.md")
    args = parser.parse_args()
    found = run(args.model, args.scenes, args.steps, args.every, args.minutes, args.out, args.lr)
    if args.report:
        command = f"python -m benchmarks.detr_overfit MODEL --scenes {args.scenes} --steps {args.steps} --report {args.report}"
        Path(args.report).write_text(report(found, command), encoding="utf-8")


if __name__ == "__main__":
    main()
