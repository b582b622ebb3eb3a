"""The host's cost of a step: counts of a known step, and the page of what was kept."""

from __future__ import annotations

import json

import torch

from benchmarks import input_path
from benchmarks._counting import Watched


def test_bytes_operations_and_waits_of_a_known_step_are_counted():
    with Watched() as counted:
        there = torch.ones(3, 5).to("meta", non_blocking=True)  # 60 bytes, no wait
        total = (there * 2).sum()  # two operations; a view is none
        there.view(5, 3)
    assert counted.bytes == 60 and counted.count == 2 and not counted.waits and total.device.type == "meta"
    with Watched() as counted:
        torch.ones(4).to("meta")
    assert counted.bytes == 16 and counted.waits == ["aten::_to_copy"], "a copy that blocks is a wait"


def test_a_step_of_a_recipe_is_counted():
    found = input_path.loop_of("rotnet_alexnet_imagenet")
    assert found["waits"] == 0 and 100 < found["sent"] < 400


def test_every_recipe_is_on_the_page_and_the_page_is_made_from_what_was_kept():
    kept = json.loads(input_path.KEPT.read_text(encoding="utf-8"))
    assert [row["model"] for row in kept["rows"]] == list(input_path.FEW), "run: python -m benchmarks.input_path"
    assert input_path.PAGE.read_text(encoding="utf-8") == input_path.page(kept)
