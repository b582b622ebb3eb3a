"""Images with their objects in groups, and the order of training.

A *group* is what goes through the network at once. The authors' runs have one group per device (DETR: 16 of 4 images); here
the groups of a step are computed one after the other, or shared by several processes, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from engine import dist, rng, signals
from zoo.errors import UserError

from .views import Sample, Views, plain_view, train_view

IGNORED = 255  # pixels of a map that do not count


@dataclass
class Group:
    """Images that go through the network together, padded at the right and the bottom.

    index    (B,) positions in the split;  number: which group of the step this is;  epoch
    pixels   (B, C, H, W) uint8
    sizes    (B, 2) height and width of each image within it;  files (B, 2): of its file
    targets  by image: boxes (n, 4) xyxy in pixels of this input, labels (n,) 0-based, masks (n, H, W) or map (H, W)
    objects  objects per group (of maps: pixels that count), averaged over the groups of the step, at least 1
    """

    index: list[int]
    pixels: Tensor
    sizes: list[tuple[int, int]]
    files: list[tuple[int, int]]
    targets: list[dict[str, Tensor]] = field(default_factory=list)
    number: int = 0
    epoch: int = 0
    objects: float = 1.0

    def to(self, device: torch.device | str, channels_last: bool = False) -> Group:
        moved = [{name: t.to(device, non_blocking=True) for name, t in target.items()} for target in self.targets]
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), targets=moved)

    @property
    def mask(self) -> Tensor:
        """(B, H, W) bool, True on the images."""
        height, width = self.pixels.shape[2:]
        device = self.pixels.device
        tall, wide = (torch.tensor([s[k] for s in self.sizes], device=device)[:, None, None] for k in (0, 1))
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        return (rows[None, :, None] < tall) & (columns[None, None] < wide)

    def images(self, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """(B, C, H, W) float32, normalised; the padding is zero."""
        shift, scale = (torch.tensor(v, device=self.pixels.device)[:, None, None] for v in (mean, std))
        return self.pixels.float().div_(255).sub_(shift).div_(scale).mul_(self.mask[:, None])


@dataclass
class Step:
    """This process's groups of one step."""

    parts: list[Group]
    epoch: int


def grouped(
    samples: Sequence[Sample], index: list[int], files: list[tuple[int, int]], channels: int, divisor: int
) -> Group:
    """Samples as one group, padded to a multiple of ``divisor``."""
    arrays = [np.array(s.image.convert("RGB" if channels == 3 else "L")) for s in samples]
    sizes = [(a.shape[0], a.shape[1]) for a in arrays]
    height, width = (-(-max(s[k] for s in sizes) // divisor) * divisor for k in (0, 1))
    pixels = torch.zeros(len(arrays), channels, height, width, dtype=torch.uint8)
    targets = []
    for row, (array, (h, w)) in enumerate(zip(arrays, sizes, strict=True)):
        pixels[row, :, :h, :w] = torch.from_numpy(array.reshape(h, w, channels)).permute(2, 0, 1)
        plain = {name: value.as_subclass(Tensor) for name, value in samples[row].targets.items()}
        for name in ("masks", "map"):
            if name in plain:
                given = plain[name]
                padded = given.new_full((*given.shape[:-2], height, width), IGNORED if name == "map" else 0)
                padded[..., :h, :w] = given
                plain[name] = padded
        targets.append(plain)
    return Group(index, pixels, sizes, files, targets)


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Groups by (epoch, number, positions); epoch None: as they are tested, without targets.

    want       what the targets hold: boxes, masks (with boxes), or map
    proposals  regions that come with the images; they go through the same view, in training and in testing
    """

    def __init__(
        self,
        source: Any,
        views: Views,
        channels: int,
        *,
        seed: int = 0,
        want: str = "boxes",
        difficult: bool = True,
        divisor: int = 1,
        proposals: Any = None,
    ) -> None:
        self.source, self.views, self.channels, self.seed = source, views, channels, seed
        self.want, self.difficult, self.divisor, self.proposals = want, difficult, divisor, proposals

    def __getitem__(self, key: tuple[int | None, int, list[int]]) -> Group:
        epoch, number, index = key
        samples, files = [], []
        for i in index:
            image = self.source.image(i)
            files.append((image.size[1], image.size[0]))
            given = self.regions(i, image.size)
            if epoch is None:
                samples.append(plain_view(Sample(image, given), self.views))
                continue
            draws = rng.uniforms(self.seed, "detection view", epoch, np.array([i]), 0, 8)[0]
            samples.append(train_view(Sample(image, self.targets(i, image.size) | given), self.views, draws))
        made = grouped(samples, index, files, self.channels, self.divisor)
        return replace(made, number=number, epoch=epoch or 0)

    def targets(self, i: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """What is learned of image ``i``; crowd regions never are, difficult objects if ``difficult``."""
        if self.want == "map":
            return {"map": tv_tensors.Mask(torch.from_numpy(self.source.segmentation(i).copy()))}
        objects = self.source.objects(i)
        kept = ~objects.crowd & (self.difficult | ~objects.difficult)
        found: dict[str, Tensor] = {
            "boxes": placed(objects.boxes[kept], size),
            "labels": torch.as_tensor(objects.classes[kept]),
        }
        if self.want == "masks":
            found["masks"] = tv_tensors.Mask(torch.from_numpy(self.source.masks(i)[kept].astype(np.uint8)))
        return found

    def regions(self, i: int, size: tuple[int, int]) -> dict[str, Tensor]:
        return {} if self.proposals is None else {"proposals": placed(self.proposals.boxes(i), size)}


def placed(boxes: np.ndarray, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Corners (n, 4) in an image of (width, height)."""
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(size[1], size[0]))  # type: ignore[call-overload]


class Stream:
    """The training steps of this process, as the engine's loop asks for them.

    batch    images of a step, on all processes together; group: images of a group
    total    steps; None: ``epochs`` times those of an epoch (whose incomplete last one is dropped)
    """

    workspace: Any = None

    def __init__(
        self,
        items: Items,
        kept: np.ndarray,
        batch: int,
        group: int,
        *,
        epochs: int | None = None,
        total: int | None = None,
        workers: int = 0,
    ) -> None:
        self.items, self.kept, self.batch, self.group, self.workers = items, kept, batch, group, workers
        if batch % group:
            raise UserError(f"head.batch={batch} is no multiple of head.group={group}")
        if batch // group % dist.world_size():
            raise UserError(
                f"{batch // group} groups of {group} images cannot be shared by {dist.world_size()} processes: "
                "start a number of processes that divides it, or set head.group"
            )
        self.steps_per_epoch = len(kept) // batch
        if not self.steps_per_epoch:
            raise UserError(f"{len(kept)} images to train on, fewer than head.batch={batch}: lower head.batch")
        self.total_steps = total if total is not None else int(epochs or 1) * self.steps_per_epoch

    def context(self, method: Any, epoch: int) -> None:
        return None

    def order(self, epoch: int) -> np.ndarray:
        """(steps, groups, images) positions in the split."""
        drawn = self.kept[rng.permutation(self.items.seed, "detection order", epoch, len(self.kept))]
        steps = self.steps_per_epoch
        return drawn[: steps * self.batch].reshape(steps, self.batch // self.group, self.group)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        order = self.order(epoch)[start:]
        mine = np.array_split(np.arange(order.shape[1]), dist.world_size())[dist.rank()].tolist()
        keys = [(epoch, number, step[number].tolist()) for step in order for number in mine]
        loader = iter(loaded(self.items, keys, self.workers))
        for _ in range(len(order)):
            parts = [next(loader) for _ in mine]
            counts = torch.tensor(float(sum(counted(t) for part in parts for t in part.targets)))
            objects = max(float(dist.all_reduce_(counts)) / order.shape[1], 1.0)
            yield Step([replace(part, objects=objects) for part in parts], epoch)


def counted(target: dict[str, Tensor]) -> int:
    """Objects of an image, or pixels of its map that count."""
    return int((target["map"] != IGNORED).sum()) if "map" in target else len(target["boxes"])


def shown_groups(items: Items, group: int, workers: int = 0) -> Iterator[Group]:
    """This process's share of a split, in the test view."""
    mine = np.array_split(np.arange(len(items.source)), dist.world_size())[dist.rank()]
    keys = [(None, n, mine[a : a + group].tolist()) for n, a in enumerate(range(0, len(mine), group))]
    yield from loaded(items, keys, workers)


def loaded(items: Items, keys: list[Any], workers: int) -> torch.utils.data.DataLoader[Group]:
    """``items[key]`` for each key, made by ``workers`` processes."""
    return torch.utils.data.DataLoader(  # type: ignore[var-annotated]
        items,
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=signals.left_to_main,  # type: ignore[arg-type]
    )


def with_objects(source: Any, difficult: bool = True) -> np.ndarray:
    """Positions of the images that have an object to learn (detectron2 leaves the others out)."""
    found = []
    for i in range(len(source)):
        objects = source.objects(i)
        if (~objects.crowd & (difficult | ~objects.difficult)).any():
            found.append(i)
    return np.array(found, dtype=np.int64)
