"""What a trained detector sees: truth and predictions on the first test images, as one PNG.

    python -m benchmarks.detect_picture detect_scenes MODEL [path=value ...] --file FILE.png [--images 6] [--above 0.5]

The detector is that of an evaluation that has run with the same words: its weights lie in the evaluation's folder below
``out=``. Upper row: the objects of the file, dashed. Lower row: predictions with a score of ``--above`` or more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from evaluations.measure import Measurement, Settings
from evaluations.protocol import module_of
from zoo.errors import UserError
from zoo.settings import parse

LINES = ("#1666b0", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#0e7490", "#a16207", "#be185d", "#4d7c0f", "#334155")


def detections(measurement: Measurement, images: int) -> list[tuple[Any, Any, dict[str, np.ndarray]]]:
    """(image, objects, {boxes, scores, labels}) of the first test images. Raises UserError where no detector was trained."""
    kind = module_of(measurement.protocol.kind).Kind(measurement.protocol, measurement)
    items = kind.items(measurement.protocol.splits.test)
    file = measurement.workspace / f"seed{measurement.settings.seed * 1000}" / "weights.pth"
    if not file.is_file():
        raise UserError(
            f"no detector in {file.parent}; run: python -m evaluations run {measurement.protocol.id} {measurement.model.name}"
        )
    network = kind.build(len(items.source.classes))
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval()
    found = []
    with torch.no_grad():
        for i in range(min(images, len(items.source))):
            (answer,) = kind.answer(network, items[(None, 0, [i])])
            seen = {name: answer[name].numpy() for name in ("boxes", "scores", "labels")}
            found.append((items.source.image(i), items.source.objects(i), seen))
    return found


def draw(found: list[tuple[Any, Any, dict[str, np.ndarray]]], classes: list[str], above: float, title: str) -> Figure:
    """Two rows of pictures, classes by colour and name."""
    figure = Figure(figsize=(2.1 * len(found), 4.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for column, (image, objects, seen) in enumerate(found):
        kept = seen["scores"] >= above
        rows = (
            ("truth", objects.boxes[~objects.crowd], objects.classes[~objects.crowd], None),
            ("predicted", seen["boxes"][kept], seen["labels"][kept], seen["scores"][kept]),
        )
        for row, (name, boxes, labels, scores) in enumerate(rows):
            axes = figure.add_subplot(2, len(found), row * len(found) + column + 1)
            axes.imshow(np.asarray(image), cmap="gray")
            axes.set_xticks([])
            axes.set_yticks([])
            if not column:
                axes.set_ylabel(name)
            for n, (box, label) in enumerate(zip(boxes, labels, strict=True)):
                colour = LINES[int(label) % len(LINES)]
                style = "--" if scores is None else "-"
                x, y, wide, high = box[0], box[1], box[2] - box[0], box[3] - box[1]
                axes.add_patch(
                    Rectangle((x, y), wide, high, fill=False, edgecolor=colour, linestyle=style, linewidth=1.5)
                )
                text = classes[int(label)] + ("" if scores is None else f" {scores[n]:.2f}")
                axes.text(x, y, text, fontsize=5, color="white", backgroundcolor=colour, va="bottom")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("protocol")
    parser.add_argument("model")
    parser.add_argument("settings", nargs="*", metavar="path=value")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--above", type=float, default=0.5, help="lowest score that is drawn")
    args = parser.parse_intermixed_args()
    words = parse(args.settings)
    measurement = Measurement.of(args.protocol, args.model, Settings.of(words, str(words.pop("out", "runs"))))
    title = f"{measurement.protocol.id}, {measurement.model.name}, {measurement.protocol.splits.test} images; predictions above {args.above:g}"
    classes = list(measurement.open(measurement.protocol.splits.test).classes)
    figure = draw(detections(measurement, args.images), classes, args.above, title)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.file, dpi=110, metadata={"Software": None})
    print(f"wrote {args.file}")


if __name__ == "__main__":
    main()
