"""Every registered evaluation kind on images held in memory, whose pixels are the features: scores are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from evaluations import protocol
from evaluations.inputs import datasets, models
from evaluations.inputs.features import Features
from evaluations.measure import Measurement, Settings
from evaluations.result import Result
from zoo import data, yamlfile

_NUMBER = count()
HOME = (
    "folder",
    "images",
    "digits",
    "fashion_mnist",
    "scenes_fashion_voc",
)  # sets of protocols at laptop scale, the first best
# What a kind needs to get separable images right within a second; a newly registered kind runs with CHEAP alone.
TUNED: dict[str, dict[str, Any]] = {
    "linear": {"head.epochs": 15, "head.batch": 64, "select.folds": 3},
    "linear fast sgd": {"grid.lr": [0.01, 0.1], "grid.weight_decay": [0.0]},
    "linear faithful sgd": {
        "grid.lr": [0.01, 0.1],
        "grid.weight_decay": [0.0],
        "select.on": "folds",
        "head.norm": "batch",
    },
    "knn": {"grid.k": [1, 3], "grid.temperature": [0.1]},
    "fewlabel": {"head.epochs": 30, "head.per_class": 3, "head.draws": 3},
    "svm": {"grid.cost": [0.1, 1.0], "select.folds": 3},
    "clustering": {"head.restarts": 3, "seeds": 2, "head.score": "test", "head.assignments": "kmeans"},
    "finetune": {"grid.lr": [0.01, 0.1], "grid.weight_decay": [0.0], "select.on": "val", "head.epochs": 8, "seeds": 1},
    "voc": {"grid.lr": [0.01, 0.1], "grid.stepsize": [1000], "select.on": "val", "head.iterations": 30, "seeds": 1},
    "multilabel": {"grid.lr": [0.01, 0.1], "grid.weight_decay": [0.0], "select.on": "val", "head.epochs": 8},
}
CHEAP: dict[str, Any] = {
    "layers": ["output"],
    "pool": "avg",
    "splits.train": "train",
    "splits.fit": "fit",
    "splits.val": "val",
    "splits.test": "test",
    "transform.resize": None,
    "transform.crop": None,
    "transform.pad": None,
    "transform.train": "centre",
    "transform.test": "centre",
    "head.batch": 16,
    "head.snapshots": 1,
    "head.views": 0,
    "head.shots": [],
    "head.draws": 2,
    "head.milestones": [],
    "head.percent": None,
    "head.per_class": None,
    "head.merge_sobel": False,
    "head.restart": False,
    "head.drop_last": False,
    "head.queries": None,
    "head.std": 0.01,
    "head.schedule": {"name": "constant"},
    "head.lr_of": {},
    "head.classifier": "linear",
    "head.labels": None,
}


@dataclass(frozen=True)
class Case:
    """One way of running a kind: ``name`` is kind, form and solver; ``several``: it takes several labels per image only."""

    name: str
    protocol: str
    several: bool

    @property
    def kind(self) -> str:
        return self.name.split()[0]


DENSE = (
    "rcnn",
    "detr",
    "segmentation",
)  # they learn boxes and masks, not labels of images: tests/detection is their contract

# They measure images without labels, so nothing here that labels decide concerns them: tests/evaluations/test_quality.py.
WITHOUT_LABELS = tuple(k for k in protocol.kinds() if not protocol.module_of(k).KIND.labelled)


def cases() -> list[Case]:
    """Each registered kind of labelled images in each of its forms, by the protocol that is nearest to a laptop."""
    found: dict[str, tuple[int, str]] = {}
    for name in protocol.names():
        wanted = protocol.complete(protocol.load(name))
        if wanted.head.get("assignments") == "own" or wanted.kind in (*DENSE, *WITHOUT_LABELS):
            continue
        label = " ".join(filter(None, (wanted.kind, wanted.form, wanted.head.get("solver"))))
        place = HOME.index(wanted.dataset) if wanted.dataset in HOME else len(HOME)
        found[label] = min(found.get(label, (99, "")), (place, name))
    return [Case(label, name, wants_several(name)) for label, (_, name) in sorted(found.items())]


def wants_several(name: str) -> bool:
    """Whether a protocol's own data have several labels per image, and its kind takes nothing else."""
    wanted = protocol.load(name)
    return wanted.dataset.startswith(("voc", "scenes", "coco")) and wanted.kind != "svm"


def overrides(case: Case, more: Mapping[str, Any]) -> dict[str, Any]:
    """CHEAP and TUNED where the protocol has such a setting, then ``more``."""
    wanted = protocol.complete(protocol.load(case.protocol))
    given = {k: v for k, v in CHEAP.items() if not k.startswith("head.") or k[5:] in wanted.head}
    for words in (case.kind, case.name):
        given |= {k: v for k, v in TUNED.get(words, {}).items() if not k.startswith("head.") or k[5:] in wanted.head}
    if wanted.head.get("solver") == "ridge":
        given = {k: v for k, v in given.items() if not k.startswith("grid.")} | {"grid.penalty": [0.01, 1.0]}
    return {**given, **more}


@dataclass
class Toy:
    """The parts train, fit, val and test: images (N, H, W) uint8, and labels (N,) or targets (N, C) with several labels.

    classes   names of the numbers; named: those of a part that numbers its classes otherwise
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: Sequence[str]
    named: dict[str, Sequence[str]] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], classes: Sequence[str]
    ) -> Toy:
        """Every fourth training image is the part val, the others are fit."""
        chosen = np.arange(len(train[1])) % 4 == 1
        val, fit = (tuple(rows[mask] for rows in train) for mask in (chosen, ~chosen))
        return cls({"train": train, "fit": fit, "val": val, "test": test}, classes)


class Held(data.ArraySource):
    """Images in memory, with one label or several."""

    targets: np.ndarray | None = None


def source(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], split: str, several: bool) -> Held:
    made = Held(images, None if several else labels.astype(np.int64), classes, split)
    if several:
        made.targets = labels if labels.ndim == 2 else np.eye(len(classes), dtype=np.uint8)[labels]
    return made


def pixels(out: Path, side: int = 8) -> Path:
    """A run folder of the network that passes pixels on."""
    recipe = zoo.resolve("pixels_digits").dump()
    recipe["backbone"] = {"name": "pixels", "options": {"dim": side * side, "in_channels": 1}}
    folder = out / f"pixels{side}" / "net-s0"
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe))
    torch.save({}, folder / "weights.pth")
    return folder


def task(case: Case, toy: Toy, out: Path, **more: Any) -> Measurement:
    """``case`` on ``toy``. A split that is sealed cannot be opened; what is opened is noted in ``toy.opened``."""
    given = overrides(case, {k.replace("__", "."): v for k, v in more.items()})
    settings = Settings.of({**given, "batch": 64}, str(out))
    wanted = protocol.complete(protocol.load(case.protocol, settings.overrides))
    name = f"toy{next(_NUMBER)}"

    def opener(split: str) -> Held:
        data.permit(name, split)
        toy.opened.append(split)
        return source(*toy.parts[split], toy.named.get(split, toy.classes), split, case.several)

    model = models.resolve(str(pixels(out, toy.parts["train"][0].shape[1])))
    wanted = wanted.model_copy(update={"dataset": name})
    return Measurement(wanted, model, settings, datasets.joined(wanted, opener))


def measure(case: Case, toy: Toy, out: Path, seed: int = 0, **more: Any) -> tuple[Result, Features]:
    found = task(case, toy, out, seed=seed, **more)
    return found.measure(), found


def headline(result: Result) -> float:
    """The number that the kind is about, in percent: accuracy, mean average precision, or NMI."""
    name = next(n for n in ("top1", "map", "nmi") if n in result.metrics)
    return result.metrics[name].value


def bars(labels: np.ndarray, side: int = 8, seed: int = 0, noise: int = 20) -> np.ndarray:
    """(N, side, side) uint8: class c has bright rows c (two pixels thick, from the top) over faint noise: separable."""
    images = np.random.default_rng(seed).integers(0, noise, (len(labels), side, side), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * int(label) : 2 * int(label) + 2] += 200
    return images


def separable(each: int = 12, tested: int = 8, classes: int = 3) -> Toy:
    train, test = np.repeat(np.arange(classes), each), np.repeat(np.arange(classes), tested)
    order = np.random.default_rng(5).permutation(len(train))
    return Toy.of((bars(train, seed=1)[order], train[order]), (bars(test, seed=2), test), tuple("abcd"[:classes]))
