"""Small scenes in COCO's and VOC's layouts, and runs of narrow networks, for tests of detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import zoo
from zoo import backbones, yamlfile

CARD = {
    "resize": None,
    "crop": None,
    "channels": 3,
    "pad": 0,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
COLOURS = {1: (220, 40, 40), 7: (40, 220, 40), 9: (40, 40, 220)}  # categories, numbered with holes
NAMES = {1: "red", 7: "green", 9: "blue"}


def coco(root: Path, parts=(("train", 12), ("val", 4), ("test", 6)), size=(64, 48), seed=0) -> Path:
    """Coloured rectangles on noise; every fifth image is empty, every fourth has a crowd region."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    ident = image_id = 0
    for part, count in parts:
        (root / part).mkdir()
        images, annotations = [], []
        for i in range(count):
            image_id += 3
            pixels = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
            for k in range(0 if i % 5 == 4 else 1 + i % 2):
                w, h = rng.integers(14, 26, 2)
                x, y = rng.integers(0, size[0] - w), rng.integers(0, size[1] - h)
                kind = int(rng.choice(list(COLOURS)))
                pixels[y : y + h, x : x + w] = COLOURS[kind]
                ident += 1
                box = [int(v) for v in (x, y, w, h)]
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {
                        "id": ident,
                        "image_id": image_id,
                        "category_id": kind,
                        "iscrowd": int(k == 0 and i % 4 == 3),
                        "bbox": box,
                        "area": box[2] * box[3],
                        "segmentation": [[int(v) for v in corners]],
                    }
                )
            name = f"{image_id:06d}.png"
            Image.fromarray(pixels).save(root / part / name)
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k, "name": n} for k, n in NAMES.items()],
        }
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def run_folder(folder: Path, name="tiny_resnet", **options) -> Path:
    """A finished run of an untrained network; narrow, three channels."""
    recipe = zoo.resolve("random_digits").dump()
    spec = {"name": name, "options": options}
    recipe |= {"backbone": spec, "input": {**recipe["input"], **CARD}}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(backbones.build(spec).state_dict(), folder / "weights.pth")
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe))
    return folder
