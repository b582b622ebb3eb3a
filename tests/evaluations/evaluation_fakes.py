"""Small stand-ins: features held in memory behind a real seal, and a finished run of an untrained network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import zoo
from evaluations.inputs.features import Compute
from evaluations.protocol import complete, load
from zoo import backbones, data, yamlfile


class FakeFeatures:
    """Features of splits given as {split: (x, labels)}; the test split raises until selection has finished."""

    def __init__(self, splits, classes, protocol=None, layers=("output",)):
        self.splits, self._classes, self.protocol = splits, classes, protocol
        self.model = SimpleNamespace(name="fake", layers=layers, classifier_layer="output")
        self.compute = Compute()
        self.selection, self.finished = None, False

    def _open(self, split):
        if split == "test" and not self.finished:
            raise data.SealedError("the test split is sealed")
        return self.splits[split]

    def get(self, request):
        x = self._open(request.split)[0]
        return x[request.layer] if isinstance(x, dict) else x

    def labels(self, split):
        return self._open(split)[1]

    def classes(self, split):
        return self._classes

    def finish_selection(self, selection):
        self.selection, self.finished = selection, True


def protocol(name, **overrides):
    return complete(load(name, {k.replace("__", "."): v for k, v in overrides.items()}))


def blobs(n, classes, dim=16, distance=8.0, seed=0):
    """(x, labels): well separated Gaussian classes around fixed centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, dim)) * distance
    labels = np.arange(n) % classes
    return (centres[labels] + rng.standard_normal((n, dim))).astype(np.float32), labels.astype(np.int64)


def finished_run(model, out, seed=0):
    """The run folder of an untrained network, as pre-training would have left it."""
    recipe = zoo.resolve(model, {"seed": seed})
    folder = Path(out) / model / f"{recipe.hash()}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe.dump()))
    torch.manual_seed(seed)
    torch.save(backbones.build(recipe.backbone).state_dict(), folder / "weights.pth")
    return folder
