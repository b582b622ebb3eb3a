"""Frozen features: one backbone pass for all requests, files on disk keyed by content, the test split sealed until selection ends.

A request names a split, a view of its images, a layer and a pooling. All requests of one split and view are answered by a
single pass, and each is kept as one memory-mapped file whose name is the hash of whatever could change a number in it:
weights, backbone code, compute path, transform, data, split, layer, pooling.

Features of a sealed split cannot be had before ``finish_selection``: the data reader itself refuses (zoo.data.seal).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import dist, fold, layout, mapped
from engine.options import RunOptions
from zoo.errors import UserError, suggest
from zoo.precision import of_features

from .. import checks
from ..protocol import Protocol, Transform, kind_of
from .models import Model
from .pooling import pooled
from .views import Views, stream

FINITE_BLOCK = 4096  # rows looked at together
SAY_EVERY = 10.0  # seconds between lines of progress
# Layers that are no map: what forward gives, that as a classifier takes it, and the embedding of it.
VECTORS = ("output", "classifier_input", "projection")


@dataclass(frozen=True)
class FeatureRequest:
    """Features of every image of a split, in one view of each (see views.py; "ten_crop" itself is ten views)."""

    split: str
    layer: str = "output"
    pool: str = "avg"
    view: str = "centre"


@dataclass
class Compute:
    """How a pass is computed; ``path`` is part of the cache key, since it moves the last digits.

    folded   batch norm is part of the convolution before it (engine/fold.py)
    decoded  the folder where pixels are kept (decoded.py), None for none
    options  how to run, for evaluations that train by the engine's loop
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    batch: int = 256
    workers: int = 0
    options: RunOptions = field(default_factory=RunOptions)
    folded: bool = False
    decoded: Path | None = None

    @property
    def passes(self) -> str:
        """The precision of passes through a frozen network: the one that was asked for, else what the device takes by itself."""
        own = of_features(str(self.device), self.options.half_features)
        return own if self.precision == "float32" else self.precision

    @property
    def path(self) -> str:
        norm = "folded" if self.folded else "by torch"
        return f"{self.device.type} {self.passes} channels_last batch norm {norm}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, a frozen network computes as ``passes`` says."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.passes == "bfloat16" else nullcontext()


class FeatureStore:
    """Feature files below one folder. A file is whole or absent."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.npy"

    def get(self, key: str) -> np.ndarray | None:
        try:
            return np.load(self.path(key), mmap_mode="c")
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError):
            self.path(key).unlink(missing_ok=True)  # not ours, or a broken disk: made again
            return None

    @contextmanager
    def create(self, key: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        """A float32 (N, D) map to fill; it appears under its key only when the block has ended without an error.

        Several processes fill different rows of the same file; the first of them makes it and gives it its name.
        Raises UserError on all of them when the disk has no room for it.
        """
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        owner = torch.tensor([os.getpid()])
        temporary = target.parent / f".{key}.{int(dist.broadcast_(owner))}.tmp"
        try:
            dist.together(lambda: mapped.create(temporary, shape).flush() if dist.is_main() else None)
            rows = np.lib.format.open_memmap(temporary, mode="r+")
            yield rows
            rows.flush()
            dist.barrier()
            if dist.is_main():
                os.replace(temporary, target)
            dist.barrier()
        finally:
            temporary.unlink(missing_ok=True)


class Features:
    """What an evaluation sees: features, labels and names of the splits of its protocol, the test split under seal."""

    def __init__(
        self,
        model: Model,
        protocol: Protocol,
        store: FeatureStore,
        *,
        compute: Compute | None = None,
        open_split: Callable[[str], Any],
        release: Callable[[], Any] = lambda: None,
        also: Iterable[FeatureRequest] = (),
    ) -> None:
        self.model, self.protocol, self.store, self.open = model, protocol, store, open_split
        self._compute = compute or Compute()
        self._finite: set[FeatureRequest] = set()
        self.passes = 0
        self.begin(release, also)

    def begin(
        self,
        release: Callable[[], Any],
        also: Iterable[FeatureRequest] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Nothing has been opened or chosen. release: opens what is sealed; also: requests that share a pass; say: progress."""
        self._release, self._planned, self.say = release, dict.fromkeys(also), say
        self._sources: dict[str, Any] = {}
        self.selection: Any = None
        self.test_reads = 0

    # ------------------------------------------------------------ what evaluations call

    def source(self, split: str) -> Any:
        """The images of a split, opened once. Raises SealedError for the test split before ``finish_selection``."""
        if split not in self._sources:
            self._sources[split] = self.open(split)
            self.test_reads += split == self.protocol.splits.test
        return self._sources[split]

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64 labels. Raises UserError when the split has none."""
        return checks.labels(self.protocol, split, self.source(split))

    def classes(self, split: str) -> int:
        return len(self.source(split).classes)

    def get(self, request: FeatureRequest) -> np.ndarray:
        """(N, D) float32, memory-mapped; computed together with every other planned request of its split and view."""
        self.source(request.split)
        found = self.store.get(self.key(request))
        if found is None:
            same = [r for r in self._planned if (r.split, r.view) == (request.split, request.view)]
            missing = [r for r in dict.fromkeys([request, *same]) if self.store.get(self.key(r)) is None]
            self._pass(missing)
            found = self.store.get(self.key(request))
            assert found is not None
        if request not in self._finite:
            for at in range(0, len(found), FINITE_BLOCK):
                self.refuse_nan(
                    request, np.arange(at, min(at + FINITE_BLOCK, len(found))), found[at : at + FINITE_BLOCK]
                )
            self._finite.add(request)
        return found

    def refuse_nan(self, request: FeatureRequest, rows: np.ndarray, values: Any) -> None:
        """Raise UserError, naming the first image, unless features (n, ...) of images ``rows`` (n,) are finite."""
        values = torch.as_tensor(values).flatten(1)
        # A sum is finite when every term is, short of overflow: one quick look before the precise one.
        if values.sum().isfinite() or (sick := ~values.isfinite().all(1)).sum() == 0:
            return
        first = int(rows[int(sick.nonzero()[0])])
        how = "precision=float32 may help" if self.compute.precision != "float32" else "its weights may be damaged"
        if self.compute.passes != self.compute.precision:
            how = "half_features=false may help"
        raise UserError(
            f"{self.model.name}: layer {request.layer} gives NaN or infinity for image {self.source(request.split).name(first)} "
            f"(number {first} of {self.protocol.dataset}/{request.split}, and {int(sick.sum()) - 1} more of the {len(rows)} around "
            f"it), so that {self.protocol.id} cannot be measured; {how}"
        )

    def views(self, view: str, seed: int = 0) -> Views:
        """How images become inputs here: the model's card, what the protocol changes, and a view's name (views.py)."""
        wanted = self.protocol.transform
        crops = {name: tuple(v) for name in ("scale", "ratio") if (v := getattr(wanted, name)) is not None}
        return Views(transform_of(self.model, wanted), view, seed, **crops)

    def finish_selection(self, selection: Any) -> None:
        """Every choice has been made and is ``selection`` (None: nothing to choose): the test split may be opened."""
        self.selection = selection
        self._release()

    @property
    def compute(self) -> Compute:
        return self._compute

    @property
    def workspace(self) -> Path:
        """A folder for what this measurement keeps while it runs: checkpoints of heads."""
        raise UserError(f"{self.protocol.id}: this measurement has no folder for its checkpoints")

    # ------------------------------------------------------------ keys and passes

    def key(self, request: FeatureRequest) -> str:
        source = self.source(request.split)
        parts = {
            "weights": self.model.weights_sha256,
            "backbone": self.model.description,
            "code": backbone_code(),
            "compute": self.compute.path,
            "transform": transform_of(self.model, self.protocol.transform),
            "view": request.view,
            "data": source.identity,
            "split": request.split,
            "layer": request.layer,
            "pool": request.pool,
            "dtype": "float32",
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _pass(self, requests: list[FeatureRequest]) -> None:
        split, view = requests[0].split, requests[0].view
        source = self.source(split)
        views = self.views(view)
        network = self.model.backbone.to(self.compute.device).eval()
        started = said = time.monotonic()
        n = len(source)
        mine = np.array_split(np.arange(n), dist.world_size())[dist.rank()]
        done = 0
        maps: dict[FeatureRequest, np.ndarray] = {}
        self.passes += 1
        with ExitStack() as stack:  # all files of a pass appear, or none
            order = np.array_split(mine, max(1, -(-len(mine) // self.compute.batch)))
            for rows, images in stream(source, views, order, self.compute.workers, self.compute.decoded):
                if self.compute.folded and done == 0:
                    network = fold.folded(network, images[:1, 0].to(self.compute.device))
                found = embedded(self.model, forward(network, images[:, 0], requests, self.compute))
                for request, value in found.items():
                    if request not in maps:
                        maps[request] = stack.enter_context(self.store.create(self.key(request), (n, value.shape[1])))
                    self.refuse_nan(request, rows, value)
                    maps[request][rows] = value.cpu().numpy()
                done += len(images)
                if time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    self.say(_progress(split, done, len(mine), said - started))


def plan_requests(
    protocol: Protocol, model: Model, splits: Iterable[str], view: str = "centre"
) -> list[FeatureRequest]:
    """Every layer of the protocol on each split, with its pooling."""
    return [
        FeatureRequest(split, layer, pool_of(protocol, layer), view)
        for split in splits
        for layer in layers_of(protocol, model)
    ]


def layers_of(protocol: Protocol, model: Model) -> list[str]:
    """The protocol's layers on this model: names, "last", "all", "output" (what forward gives), or "projection" (the
    embedding by the head in the weight file, where it has one).

    For a kind that trains classifiers, "output" is the network's classifier input: another layer where
    the network ends before its last ReLU, the same one elsewhere.
    """
    kind = kind_of(protocol)
    found: list[str] = []
    for name in protocol.layers:
        if name == "all":
            found += model.layers
        elif name == "last":
            found.append(model.layers[-1])
        elif name == "output" and kind.classifies:
            found.append(model.classifier_layer)
        elif name in VECTORS or name in model.layers:
            found.append(name)
        else:
            raise UserError(
                f"{protocol.id}: {model.name} has no layer {name!r}{suggest(name, model.layers)} "
                f"(layers: {', '.join((*model.layers, *VECTORS))})"
            )
    if kind.layers == "one" and len(set(found)) > 1:
        raise UserError(f"{protocol.id}: {protocol.kind} reads one layer, not {len(set(found))}: layers=[{found[-1]}]")
    return list(dict.fromkeys(found))


def pool_of(protocol: Protocol, layer: str) -> str:
    if layer in VECTORS:
        return "avg"
    if isinstance(protocol.pool, str):
        return protocol.pool
    if layer not in protocol.pool:
        raise UserError(f"{protocol.id}: pool names no pooling for layer {layer!r}")
    return protocol.pool[layer]


@torch.no_grad()
def forward(
    network: Any, images: Tensor, requests: list[FeatureRequest], compute: Compute
) -> dict[FeatureRequest, Tensor]:
    """Pooled features of one batch: the network runs once, stops at the deepest layer asked for, and is tapped on the way.

    A request for "projection" gets the output, which ``embedded`` takes further.
    """
    images = layout.arranged(images, network, compute.device)
    names = [r.layer for r in requests if r.layer not in VECTORS]
    with compute.autocast():
        if any(r.layer in VECTORS for r in requests):
            found = _tapped(network, images, names)
        else:
            found = network.forward_layers(images, names)
    if "output" in found:
        found["classifier_input"] = network.classifier_input(found["output"])
        found["projection"] = found["output"]
    return {
        r: found[r.layer].float() if r.layer in VECTORS else pooled(found[r.layer].float(), r.pool) for r in requests
    }


@torch.no_grad()
def embedded(model: Model, found: dict[FeatureRequest, Tensor]) -> dict[FeatureRequest, Tensor]:
    """The same with the projection head applied where its output was asked for, in float32."""
    return {
        r: model.projection.to(value.device)(value) if r.layer == "projection" else value for r, value in found.items()
    }


def _tapped(network: Any, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """``forward`` as "output" and, from the same run, the maps of the named layers that it passes through."""
    found: dict[str, Tensor] = {}
    stages = network.stages

    def listening(x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, value in stages(x):
            if name in names:
                found[name] = value
            yield name, value

    network.stages = listening
    try:
        found["output"] = network(images)
    finally:
        del network.stages
    rest = [name for name in names if name not in found]
    return {**found, **(network.forward_layers(images, rest) if rest else {})}


def transform_of(model: Model, wanted: Transform) -> dict[str, Any]:
    """The model's own preprocessing, with what the protocol changes."""
    changes = {k: v for k in ("pad", "resize", "crop") if (v := getattr(wanted, k)) is not None}
    return {**model.input, **changes}


@lru_cache(maxsize=1)
def backbone_code() -> str:
    """A hash of the backbones' source: a change there may change features."""
    import zoo

    digest = hashlib.sha256()
    for path in sorted((Path(zoo.__file__).parent / "backbones").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _progress(split: str, done: int, n: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    return f"features of {split}: {done:,}/{n:,} images, {rate:,.0f}/s, {(n - done) / rate:,.0f} s left"
