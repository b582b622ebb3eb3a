"""JPEG files to pixels: the multi-crop of pre-training in a worker, the evaluation view of 224 pixels, and its second reading.

python -m benchmarks.pictures [--rounds 7] [--seconds 40]
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

import zoo
from benchmarks import _frame
from benchmarks.input_path import pictures
from evaluations.inputs.views import Views, stream
from reproduce import views
from reproduce.stream import _Views
from reproduce.views import Augment
from zoo.data import open_source

BILINEAR = InterpolationMode.BILINEAR
CARD = {
    "channels": 3,
    "pad": 0,
    "resize": 256,
    "crop": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


def reference_view(image: Image.Image, p: views.Params, row: int, size: int, augment: Augment) -> Tensor:
    """torchvision's chain on a PIL image, as the authors run it in a worker, with the parameters of ``row``."""
    top, left, height, width = (round(float(v[row])) for v in (p.top, p.left, p.height, p.width))
    image = TF.resized_crop(image, top, left, height, width, [size, size], BILINEAR)
    image = TF.hflip(image) if p.flip[row] else image
    operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for number in p.order[row] if p.jitter[row] else ():
        image = operations[number](image, float(p.factors[row, number]))
    image = TF.to_grayscale(image, 3) if p.gray[row] else image
    image = image.filter(ImageFilter.GaussianBlur(float(p.sigma[row]))) if p.sigma[row] else image
    return TF.normalize(TF.to_tensor(image), list(augment.mean), list(augment.std))


def multicrop(files: list[Path], source: Any, options: _frame.Options) -> _frame.Row:
    recipe = zoo.resolve("swav_800ep", {}).dump()
    augment = Augment.of(recipe["views"], recipe["input"])
    index, (height, width) = np.arange(len(files)), source.pixels(0).shape[:2]
    drawn = [views.sample(augment, 0, 0, index, v, height, width) for v in range(len(augment.crops))]

    def reference() -> list[Tensor]:
        images = [opened(file) for file in files]
        return [
            torch.stack([reference_view(im, p, row, crop.size, augment) for row, im in enumerate(images)])
            for p, crop in zip(drawn, augment.crops, strict=True)
        ]

    reader = _Views(source, augment, 0)
    items = [(0, int(i), 0) for i in index]
    found = _frame.interleave(
        {
            "reference": reference,
            "here": lambda: reader.__getitems__(items),
            "limit": lambda: [source.pixels(i) for i in range(len(files))] and None,
        },
        options,
    )
    # Blur is Pillow's approximation by boxes on one side: left out where pixels are compared, as are its parameters.
    still = [views.Params(**{**vars(p), "sigma": np.zeros(len(index))}) for p in drawn]
    chain, geometry = [], []
    for (pixels, _), p, crop in zip(found["here"].result, still, augment.crops, strict=True):
        ours = views.finish(views.colour(pixels, p, augment), augment, 0, 0, index, 0)
        for row, file in enumerate(files):
            image = opened(file)
            scale = torch.tensor(augment.std)[:, None, None] * 255
            chain.append(((ours[row] - reference_view(image, p, row, crop.size, augment)) * scale).abs().mean())
            box = (round(float(v[row])) for v in (p.top, p.left, p.height, p.width))
            plain = TF.pil_to_tensor(TF.resized_crop(image, *box, [crop.size, crop.size], BILINEAR))
            plain = plain.flip(2) if p.flip[row] else plain
            geometry.append((pixels[row].float() - plain.float()).abs().mean())
    apart, moved = (float(torch.stack(values).mean()) for values in (chain, geometry))
    return _frame.row(
        found,
        work="Multi-crop 2x224 + 6x96 from JPEG, CPU of the worker",
        size=f"{len(files)} files of {width} x {height}",
        reference="torchvision on PIL, colour and normalisation included",
        here="reproduce.stream, geometry in uint8",
        equal=(
            apart <= 1.5 and moved <= 0.5,
            f"mean difference {apart:.2f}/255 over the chain, {moved:.3f}/255 of geometry",
        ),
        unit="image",
        per=len(files),
        goal=4,
        limit="decoding by simplejpeg",
        note="colour and normalisation are the training device's here (benchmarks/input_path.md); blur is left out of the "
        "comparison of pixels, since Pillow approximates it by boxes",
    )


def evaluation(files: list[Path], source: Any, options: _frame.Options, kept: Path | None) -> _frame.Row:
    """The view decoded from the files, or (``kept``) read again from where it is kept."""
    plain = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize(CARD["mean"], CARD["std"])])
    order, mine = [np.arange(len(files))], Views(CARD)
    if kept is not None:
        list(stream(source, mine, order, 0, kept))
    found = _frame.interleave(
        {
            "reference": lambda: torch.stack([plain(opened(file)) for file in files]),
            "here": lambda: next(iter(stream(source, mine, order, 0, kept)))[1][:, 0],
            **({} if kept else {"limit": lambda: [source.pixels(i) for i in range(len(files))] and None}),
        },
        options,
    )
    a, b = (found[name].result for name in ("reference", "here"))
    apart = float(((a - b) * torch.tensor(CARD["std"])[:, None, None] * 255).abs().mean())
    return _frame.row(
        found,
        work="Evaluation view 224 from JPEG" + (", second reading of kept pixels" if kept else ""),
        size=f"{len(files)} files of 500 x 375",
        reference="torchvision on PIL",
        here="evaluations.inputs.views" + (" with decoded=true" if kept else ""),
        equal=(apart <= 0.5, f"mean difference {apart:.4f}/255"),
        unit="image",
        per=len(files),
        goal=15 if kept else 1.5,
        limit=None if kept else "decoding by simplejpeg",
    )


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    with tempfile.TemporaryDirectory() as home:
        pictures(Path(home), 4 if options.small else 48)
        files = sorted(Path(home).rglob("*.jpg"))
        source: Any = open_source("folder", "train", Path(home))
        by_source = [Path(source.where(i)) for i in range(len(source))]
        assert sorted(by_source) == files
        yield multicrop(by_source, source, options.share(0.5))
        yield evaluation(by_source, source, options.share(0.25), None)
        yield evaluation(by_source, source, options.share(0.25), Path(home) / "kept")


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
