"""A tiny registry in a folder, to be broken in one place by each test."""

from __future__ import annotations

from pathlib import Path

from zoo.registry import Registry

PROFILES = """\
small:
  title: small
  backbone: {name: tiny_resnet, width: 8, blocks: [1]}
  input: {channels: 1, mean: [0.5], std: [0.5]}
  network: {parameters: 1272, dim: 8}
  recipe:
    dataset: digits
    views: {crops: [{count: 2, size: 8}]}
    batch: 16
    optimizer: {name: sgd, lr: 0.1}
    schedule: {name: constant, images: 64}
    precision: float32
    sync_bn: false
"""

METHOD = """\
method: thing
title: Thing
summary: What it does.
code: {repository: someone/thing, license: MIT}
backbone: resnet50
input: {resize: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
network: {parameters: 23508032, dim: 2048}
layouts:
  - {path: null, rules: [["^module\\\\.", ""]], ignore: ["head.*"]}
recipe:
  dataset: imagenet
  views:
    crops: [{count: 2, size: 224, scale: [0.2, 1.0]}]
    flip: 0.5
  batch: 4096
  optimizer: {name: larc, lr: 4.8, weight_decay: 1e-6, trust: 0.001}
  schedule: {name: warmup_cosine, epochs: 800, warmup_epochs: 10}
  params: {temperature: 0.1, mode: soft, clusters: 3000, queue: {length: 0}, crops: [0, 1]}
  sync_bn: true
params_spec:
  temperature: {gt: 0}
  mode: {choices: [soft, hard]}
  queue.length: {ge: 0}
models:
  thing_800ep:
    aliases: [resnet50]
    weights: {sources: [{url: "https://example.org/thing_800ep.pth"}]}
    published:
      - {protocol: linear, metric: top1, value: 70.1, source: "someone/thing:README.md"}
  thing_400ep:
    recipe: {schedule: {epochs: 400}}
  thing_200ep_bs256:
    recipe: {schedule: {epochs: 200}, batch: 256}
  thing_digits:
    profile: small
    recipe: {params: {temperature: 0.2}}
"""

DATASETS = "digits: {}\nimagenet: {}\n"


def registry(
    folder: Path,
    *changes: tuple[str, str],
    method: str = METHOD,
    profiles: str = PROFILES,
    more: dict[str, str] | None = None,
) -> Registry:
    """The registry of ``folder``/zoo with each (old, new) replaced once in the method's file; ``more``: further files."""
    for old, new in changes:
        assert method.count(old) >= 1, f"the fake has no {old!r}"
        method = method.replace(old, new, 1)
    root = folder / "zoo"
    (root / "methods").mkdir(parents=True)
    for name, text in {
        "methods/thing.yaml": method,
        "profiles.yaml": profiles,
        "datasets.yaml": DATASETS,
        **(more or {}),
    }.items():
        (root / name).write_text(text)
    return Registry(root)


def add(text: str, line: str) -> tuple[str, str]:
    """A change that puts ``line`` behind the line that ends with ``text``."""
    return text, f"{text}\n{line}"
