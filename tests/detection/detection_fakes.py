"""Small scenes in COCO's and VOC's layouts, and runs of narrow networks, for tests of detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import zoo
from zoo import backbones, yamlfile
from zoo.data import specs

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

RCNN = {
    "head.levels": ["res3", "res4"],
    "head.anchors": [[16], [24], [32]],
    "head.channels": 16,
    "head.box_features": 24,
    "head.iterations": 4,
    "head.batch": 4,
    "head.group": 2,
    "head.norm": "frozen",
    "head.warmup": 2,
    "head.milestones": [3],
    "head.views.short": [48, 56],
    "head.views.test_short": 48,
    "head.test_group": 4,
    "head.score_threshold": 0.0,
    "head.kept": {"training": [50, 30], "testing": [50, 10]},
}
DETR = {
    "head.d_model": 32,
    "head.encoder_layers": 1,
    "head.decoder_layers": 2,
    "head.heads": 4,
    "head.ffn": 32,
    "head.queries": 5,
    "head.dropout": 0.1,
    "head.epochs": 2,
    "head.milestones": [1],
    "head.batch": 4,
    "head.group": 2,
    "head.views.short": [48, 56],
    "head.views.test_short": 48,
    "head.views.crop": {"short": [50], "size": [30, 45]},
    "head.freeze": "res2",
}
MAPS = {
    "head.layer": "res4",
    "head.dropout": 0.0,
    "head.norm": "sync",
    "head.iterations": 3,
    "head.batch": 4,
    "head.milestones": [2],
    "head.views.short": [48],
    "head.views.test_short": 48,
    "dataset": "scenes_fashion_coco",
}
CASES = {"detect_scenes": RCNN, "detr_scenes": DETR, "segment_scenes": MAPS}
CHECKED = {"tensorboard": False, "checkpoint_interval": 2, "log_interval": 1}


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


def small_scenes() -> dict:
    """The table of data sets, whose composed scenes may be of any number and of any classes."""
    table = dict(specs.load(specs.FILE))
    spec = table["scenes_fashion_coco"]
    splits = {name: rule.model_copy(update={"count": None}) for name, rule in spec.splits.items()}
    table["scenes_fashion_coco"] = spec.model_copy(update={"splits": splits, "classes": None})
    return table


def scenes_and_network(home: Path) -> tuple[Path, Path]:
    """(data, run folder): a few coloured rectangles under the name of the composed scenes, and an untrained network."""
    options = {"width": 16, "blocks": [1, 1, 1], "stem_stride": 2, "in_channels": 3}
    return coco(home / "coco"), run_folder(home / "net", **options)
