"""Every method that clusters or labels does so where it is trained, whatever memory its features are in.

Methods are on torch's `meta` device and their features in main memory; the functions of engine.maths are replaced by one that says where
the rows given to it would be delivered.
"""

import sys
from types import SimpleNamespace

import contract_tools as tools
import numpy as np
import pytest
import torch

from engine.maths.rows import Rows

# method -> what it calls
CASES = {
    "deepcluster": ["pca", "kmeans"],
    "deepercluster": ["pca", "hierarchy"],
    "deepclusterv2": ["kmeans"],
    "selav2": ["sela_labels"],
    "sela": ["sela_labels"],
    "pseudolabel": ["kmeans"],
}


class Seen(Exception):
    """The last function was called."""


@pytest.mark.parametrize("name", CASES)
def test_clusters_are_found_where_the_method_is_trained(name, monkeypatch):
    method = tools.build(tools.recipe(name)).to("meta")
    module, delivered = sys.modules[type(method).__module__], {}

    def record(function):
        def call(data, *args, **kwargs):
            delivered[function] = Rows(data).device.type
            if function == CASES[name][-1]:
                raise Seen
            return SimpleNamespace(unit=lambda block: block)

        return call

    for function in CASES[name]:
        monkeypatch.setattr(module, function, record(function))
    if hasattr(module, "rows_of_images"):
        monkeypatch.setattr(module, "rows_of_images", lambda index, rows, k, *rest: rows[:k])
    found = torch.randn(
        100, method.prototypes.prototypes0.in_features if hasattr(method, "prototypes") else method.backbone.dim
    )
    ctx = SimpleNamespace(extract=lambda view: (np.arange(100), found), n=100, seed=0, batch=16, total_steps=9)
    with pytest.raises(Seen):
        method.before_epoch(0, ctx)
        method.before_step(0, ctx)
    assert delivered == dict.fromkeys(CASES[name], "meta")


def test_every_method_that_keeps_labels_is_here():
    with_labels = {name for name in tools.trained() if hasattr(tools.build(tools.recipe(name)), "labels")}
    assert with_labels == set(CASES)
