"""Random views: the parameters first, for many images at once; then two renderers of the same parameters.

The parameters of view v of image i in epoch e depend on (seed, e, i, visit, v) alone, never on the process or worker that draws
them, so workers, processes and resuming cannot change what a method sees. The visit counts an image's draws within an epoch:
a method that draws it again gets a fresh view.

    params = sample(augment, seed, epoch, index, view, height, width, visit)       numpy, vectorised
    crop_batch(images, params, ...)        small arrays in memory: uint8 (B, H, W[, C]) tensors, all at once
    crop_image(image, params, ...)         big files: one decoded image in a DataLoader's worker, which hands over uint8
    colour(x, params, ...), finish(...)    what is left, for both: a batch at once, on the training device

The order is torchvision's and the papers': pad, rotate, crop, resize (triangle filter, antialiased), flip; colour jitter (four
operations in a random order per image), grayscale, blur, solarise; then `finish` adds noise and normalises. A resize is linear
in rows and in columns, so a batch of crops is two batched matrix products, which gives PIL's antialiased result rather than
grid_sample's aliased one; a Gaussian blur is two more. Which rows an operation changes is decided from the parameters, which are
in main memory: nothing is read back from the device.

Boxes are real numbers, not whole pixels as in torchvision: at 500 pixels that is invisible, at 8 it is the difference
between nine crops and a continuum. In images of 128 pixels and more boxes are whole pixels, so that a box is a slice of the image
(resize.py), unless the image is rotated first; so is a crop of one fixed scale and ratio (pad and crop) in any image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from engine import rng
from engine.batch import on

from .resize import resized

ATTEMPTS = 10  # torchvision's, for a box that fits
WHOLE_BOXES = 128  # pixels of the shorter side from which on boxes are whole pixels
ORDERS = np.array(list(itertools.permutations(range(4))))  # of brightness, contrast, saturation, hue
_COLUMNS = 2 * ATTEMPTS + 15


@dataclass(frozen=True)
class Crop:
    """Views of one kind: side in pixels, range of the area as a share of the image, range of width / height."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Augment:
    """A recipe's views, with one Crop per view: `len(augment.crops)` views of every image."""

    crops: tuple[Crop, ...]
    flip: float = 0.5
    jitter: Mapping[str, float] | None = None  # brightness, contrast, saturation, hue, probability
    grayscale: float = 0.0
    blur: Mapping[str, Any] | None = None  # probability, sigma: [lo, hi]
    rotate: float = 0.0  # degrees, uniform in +-
    noise: float = 0.0  # standard deviation, pixels in 0..1
    pad: int = 0  # zeros on each side
    solarize: Mapping[str, float] | None = None  # probability, threshold in 0..1
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @classmethod
    def of(cls, views: Mapping[str, Any], input: Mapping[str, Any]) -> Augment:
        """From a recipe's `views` and `input` (plain dictionaries, as Recipe.dump() gives)."""
        crops = tuple(
            Crop(int(group["size"]), tuple(group["scale"]), tuple(group.get("ratio") or (3 / 4, 4 / 3)))
            for group in views["crops"]
            for _ in range(group["count"])
        )
        rest = {
            k: views[k]
            for k in ("flip", "jitter", "grayscale", "blur", "rotate", "noise", "pad", "solarize")
            if k in views
        }
        return cls(crops, **rest, channels=input["channels"], mean=tuple(input["mean"]), std=tuple(input["std"]))


@dataclass(frozen=True)
class Params:
    """What was drawn for B images; every field has B rows. Boxes are in pixels of the padded image."""

    left: np.ndarray
    top: np.ndarray
    width: np.ndarray
    height: np.ndarray
    flip: np.ndarray  # bool
    jitter: np.ndarray  # bool
    factors: np.ndarray  # (B, 4) brightness, contrast, saturation factors and the hue's shift in turns
    order: np.ndarray  # (B, 4) order of the four
    gray: np.ndarray  # bool
    sigma: np.ndarray  # of the blur, 0 for none
    angle: np.ndarray  # degrees, counter-clockwise
    solarize: np.ndarray  # bool


def sample(
    augment: Augment,
    seed: int,
    epoch: int,
    index: np.ndarray,
    view: int,
    height: int | np.ndarray,
    width: int | np.ndarray,
    visit: int | np.ndarray = 0,
) -> Params:
    """Parameters of one view of images `index` (B,).

    height, width   pixels, one number or one per image
    visit           earlier draws of the image in this epoch, one number or one per image; see stream.visits
    """
    u = rng.uniforms(seed, "views", epoch, np.asarray(index, dtype=np.int64), view, _COLUMNS, visit)
    left, top, w, h = _boxes(augment, augment.crops[view], u, height, width)
    v = u[:, 2 * ATTEMPTS + 2 :]
    jitter, blur = augment.jitter or {}, augment.blur or {"sigma": (0.0, 0.0)}
    factors = np.stack(
        [_around_one(jitter.get(name, 0), v[:, i]) for i, name in enumerate(("brightness", "contrast", "saturation"))]
        + [jitter.get("hue", 0) * (2 * v[:, 3] - 1)],
        axis=1,
    )
    lo, hi = blur["sigma"]
    return Params(
        left,
        top,
        w,
        h,
        flip=v[:, 4] < augment.flip,
        jitter=v[:, 5] < (jitter.get("probability", 1.0) if augment.jitter else 0.0),
        factors=factors,
        order=ORDERS[(v[:, 6] * len(ORDERS)).astype(np.int64)],
        gray=v[:, 7] < augment.grayscale,
        sigma=np.where(v[:, 8] < blur.get("probability", 0.0), lo + (hi - lo) * v[:, 9], 0.0),
        angle=augment.rotate * (2 * v[:, 10] - 1),
        solarize=v[:, 11] < (augment.solarize["probability"] if augment.solarize else 0.0),
    )


def _around_one(strength: float, u: np.ndarray) -> np.ndarray:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * u


def _boxes(
    augment: Augment, crop: Crop, u: np.ndarray, height: int | np.ndarray, width: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """left, top, width, height (B,): torchvision's rule, the first of ten draws that fits, else the centre."""
    n = len(u)
    H = np.broadcast_to(np.asarray(height, dtype=np.float64) + 2 * augment.pad, (n,))[:, None]
    W = np.broadcast_to(np.asarray(width, dtype=np.float64) + 2 * augment.pad, (n,))[:, None]
    (s0, s1), (r0, r1) = crop.scale, crop.ratio
    area = H * W * (s0 + (s1 - s0) * u[:, :ATTEMPTS])
    ratio = np.exp(math.log(r0) + math.log(r1 / r0) * u[:, ATTEMPTS : 2 * ATTEMPTS])
    w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (w <= W * (1 + 1e-9)) & (h <= H * (1 + 1e-9))
    first, rows = fits.argmax(1), np.arange(n)
    some = fits[rows, first]
    H, W = H[:, 0], W[:, 0]
    centre_w, centre_h = np.minimum(W, H * r1), np.minimum(H, W / r0)  # the largest box with an allowed ratio
    w = np.minimum(np.where(some, w[rows, first], centre_w), W)
    h = np.minimum(np.where(some, h[rows, first], centre_h), H)
    left = np.where(some, u[:, 2 * ATTEMPTS], 0.5) * (W - w)
    top = np.where(some, u[:, 2 * ATTEMPTS + 1], 0.5) * (H - h)
    # whole pixels: a plain random crop, and boxes that resize.py takes from a slice
    plain = s0 == s1 and r0 == r1
    whole = plain | ((np.minimum(H, W) >= WHOLE_BOXES) & (not augment.rotate))
    w, h = np.where(whole, np.rint(w), w), np.where(whole, np.rint(h), h)
    left = np.where(whole, _whole_corner(left, u[:, 2 * ATTEMPTS], W - w, some | plain), left)
    top = np.where(whole, _whole_corner(top, u[:, 2 * ATTEMPTS + 1], H - h, some | plain), top)
    return left, top, w, h


def _whole_corner(corner: np.ndarray, u: np.ndarray, room: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Each of the `room` + 1 places equally often where the place is drawn, else the pixel in which the corner is."""
    return np.minimum(np.floor(np.where(drawn, u * (room + 1), corner)), room)


def finish(
    view: Tensor, augment: Augment, seed: int, epoch: int, index: np.ndarray, number: int, visit: int | np.ndarray = 0
) -> Tensor:
    """(B, C, S, S) float32, noisy and normalised, of a rendered view: uint8 0..255 or float 0..1. index, visit: see sample."""
    x = _unit(view)
    if augment.noise:
        drawn = rng.normals(seed, "noise", epoch, np.asarray(index, dtype=np.int64), number, x[0].numel(), visit)
        x = x + augment.noise * on(torch.from_numpy(np.ascontiguousarray(drawn, dtype=np.float32)).view_as(x), x.device)
    mean, std = (on(torch.tensor(t), x.device).view(1, -1, 1, 1) for t in (augment.mean, augment.std))
    return (x - mean) / std


# -- the batched renderer: every image at once, as matrix products -------------------------------------------------------
def render_batch(images: Tensor, params: Params, crop: Crop, augment: Augment) -> Tensor:
    """(B, channels, size, size) float32 in 0..1. images uint8 (B, H, W) or (B, H, W, 3), all of one size."""
    return colour(crop_batch(images, params, crop, augment), params, augment)


def crop_batch(images: Tensor, params: Params, crop: Crop, augment: Augment) -> Tensor:
    """(B, channels, size, size) float32 in 0..1: the geometry of render_batch, on the device of `images`."""
    x = _planes(images, augment.channels)
    p = {
        k: on(torch.as_tensor(np.ascontiguousarray(getattr(params, k))), x.device)
        for k in ("left", "top", "width", "height", "flip", "angle")
    }
    if augment.rotate:
        x = _rotate(F.pad(x, [augment.pad] * 4), p)
    pad = 0 if augment.rotate else augment.pad  # zeros contribute nothing: leave their weights out instead
    rows = _resize_weights(p["top"], p["height"], x.shape[-2], crop.size, pad)
    columns = _resize_weights(p["left"], p["width"], x.shape[-1], crop.size, pad, p["flip"])
    return (rows[:, None] @ x @ columns[:, None].transpose(-1, -2)).clamp_(0, 1)


def colour(view: Tensor, params: Params, augment: Augment) -> Tensor:
    """Jitter, grayscale, blur and solarisation of cropped views (B, C, S, S): float32 in 0..1. view: uint8 0..255 or float 0..1.

    uint8 comes back as it is where the recipe changes no colour.
    """
    if not (augment.jitter or augment.grayscale or augment.blur or augment.solarize):
        return view
    x = _unit(view)
    if augment.jitter:
        x = _jitter(x, params)
    if augment.grayscale and x.shape[1] == 3:
        x = torch.where(_mask(params.gray, x), _luma(x), x)
    if augment.blur:
        x = _blur(x, params.sigma, augment.blur["sigma"][1])
    if augment.solarize:
        inverted = torch.where(x >= augment.solarize["threshold"], 1 - x, x)
        x = torch.where(_mask(params.solarize, x), inverted, x)
    return x


def _unit(view: Tensor) -> Tensor:
    return view.float().div_(255) if view.dtype == torch.uint8 else view


def _mask(chosen: np.ndarray, x: Tensor) -> Tensor:
    return on(torch.from_numpy(np.ascontiguousarray(chosen)), x.device)[:, None, None, None]


def _planes(images: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) float32 in 0..1."""
    x = images[..., None] if images.ndim == 3 else images
    x = x.permute(0, 3, 1, 2).float().div_(255)
    if x.shape[1] == channels:
        return x
    return x.expand(-1, 3, -1, -1) if channels == 3 else _luma(x)


def _luma(x: Tensor) -> Tensor:
    """(B, 1, H, W): ITU-R 601 weights, PIL's and torchvision's."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _resize_weights(
    start: Tensor, extent: Tensor, side: int, size: int, pad: int, flip: Tensor | None = None
) -> Tensor:
    """(B, size, side): output pixel o = sum_i weights[o, i] * input pixel i, PIL's triangle filter over the box.

    flip (B,) reads the output backwards. Weights are normalised over the padded line; the columns of the padding itself, which hold zeros, are then dropped.
    """
    scale = (extent / size)[:, None]
    support = scale.clamp(min=1.0).float()
    middle = start[:, None] + (torch.arange(size, device=start.device, dtype=start.dtype) + 0.5) * scale
    if flip is not None:
        middle = torch.where(flip[:, None], middle.flip(1), middle)
    pixel = torch.arange(side + 2 * pad, device=start.device, dtype=torch.float32) + 0.5
    weights = (pixel - middle.float()[..., None]).abs_().div_(-support[..., None]).add_(1).clamp_(min=0)
    return weights.div_(weights.sum(-1, keepdim=True))[..., pad : pad + side]


def _rotate(x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Turn each image counter-clockwise about the centre of its box; zeros come in from outside."""
    height, width = x.shape[-2:]
    turn = torch.deg2rad(p["angle"])
    cos, sin = turn.cos(), turn.sin()
    cx, cy = p["left"] + p["width"] / 2, p["top"] + p["height"] / 2
    # output pixel (x, y) reads input (cos dx - sin dy + cx, sin dx + cos dy + cy); grid_sample's units are halves of a side
    ax, ay = 2 * cx / width - 1, 2 * cy / height - 1
    theta = torch.stack(
        [
            torch.stack([cos, -sin * height / width, ax - cos * ax + sin * height / width * ay], -1),
            torch.stack([sin * width / height, cos, ay - sin * width / height * ax - cos * ay], -1),
        ],
        1,
    ).float()
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jitter(x: Tensor, p: Params) -> Tensor:
    """Four colour operations in each image's own order, clamped to 0..1 after each as torchvision does."""
    x = x.clone()
    moved = p.factors != np.array([1.0, 1.0, 1.0, 0.0])
    moved[:, 2:] &= x.shape[1] == 3  # a gray image has no colour to change
    for position in range(4):
        for number, operation in enumerate(_COLOUR):
            chosen = np.flatnonzero(p.jitter & (p.order[:, position] == number)) if moved[:, number].any() else ()
            if len(chosen):
                rows = on(torch.from_numpy(chosen), x.device)
                factors = on(torch.from_numpy(p.factors[chosen, number]).float(), x.device)
                x[rows] = operation(x[rows], factors.view(-1, 1, 1, 1)).clamp_(0, 1)
    return x


def _brightness(x: Tensor, f: Tensor) -> Tensor:
    return x * f


def _contrast(x: Tensor, f: Tensor) -> Tensor:
    mean = (_luma(x) if x.shape[1] == 3 else x).mean((1, 2, 3), keepdim=True)
    return f * x + (1 - f) * mean


def _saturation(x: Tensor, f: Tensor) -> Tensor:
    return f * x + (1 - f) * _luma(x) if x.shape[1] == 3 else x


def _hue(x: Tensor, f: Tensor) -> Tensor:
    """Turn the hue of RGB images by f of a full circle, keeping HSV's saturation and value."""
    if x.shape[1] != 3:
        return x
    value, which = x.max(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x.unbind(1)
    sectors = torch.stack([g - b, b - r, r - g], 1).gather(1, which) / chroma.clamp(min=1e-12) + 2 * which
    turned = (sectors / 6 + f) * 6  # in sixths of the circle
    k = (torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1) + turned) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


_COLOUR = (_brightness, _contrast, _saturation, _hue)


def _blur(x: Tensor, sigma: np.ndarray, largest: float) -> Tensor:
    """Gaussian of each image's own sigma (B,), at most `largest`, cut at four of them, edges repeated; sigma 0 leaves the image."""
    chosen = np.flatnonzero(sigma > 0)
    if not len(chosen):
        return x
    size, reach = x.shape[-1], max(1, math.ceil(4 * largest))  # of the recipe: an image is blurred alike in any company
    rows, s = on(torch.from_numpy(chosen), x.device), on(torch.from_numpy(sigma[chosen]).float(), x.device)[:, None]
    away = torch.arange(reach + 1, device=x.device) / s
    bell = torch.exp(-(away**2) / 2) * (away < 4 + 1 / s)
    bell = F.pad(bell / (2 * bell.sum(1, keepdim=True) - bell[:, :1]), (0, 1))  # one zero for all that is further
    pixel, source = torch.arange(size, device=x.device), torch.arange(-reach, size + reach, device=x.device)
    weights = bell[:, (pixel[:, None] - source).abs().clamp(max=reach + 1)]
    inside = weights[..., reach : reach + size].contiguous()
    inside[..., 0] += weights[..., :reach].sum(-1)  # what falls over the edge belongs to the edge
    inside[..., -1] += weights[..., reach + size :].sum(-1)
    x = x.clone()
    x[rows] = inside[:, None] @ x[rows] @ inside[:, None].transpose(-1, -2)
    return x


# -- one image at a time, for files of any size ----------------------------------------------------------------------------
def crop_image(image: Image.Image | np.ndarray, params: Params, crop: Crop, augment: Augment, row: int = 0) -> Tensor:
    """(channels, size, size) uint8: the geometry of one image, with row `row` of the parameters.

    image   a PIL image, or uint8 (H, W, 3) or (H, W), which is resized in less time where the box permits it
    """
    p = params
    left, top, w, h = (float(v[row]) for v in (p.left, p.top, p.width, p.height))
    if (
        not isinstance(image, np.ndarray)
        or (image.ndim == 2) != (augment.channels == 1)
        or augment.pad
        or augment.rotate
    ):
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image = image.convert("L" if augment.channels == 1 else "RGB")
        if augment.pad:
            image = ImageOps.expand(image, augment.pad, fill=0)
        if augment.rotate:
            image = image.rotate(float(p.angle[row]), Image.Resampling.BILINEAR, center=(left + w / 2, top + h / 2))
    return resized(image, left, top, w, h, crop.size, bool(p.flip[row]))


def joined(rows: Sequence[Params]) -> Params:
    """The parameters of several images, one after the other."""
    return Params(**{name: np.concatenate([vars(row)[name] for row in rows]) for name in vars(rows[0])})


def plain(augment: Augment, size: int) -> tuple[Augment, Crop]:
    """The view without chance: the whole (padded) image at `size`, nothing else; for extracting features."""
    crop = Crop(size, (1.0, 1.0), (1.0, 1.0))
    return Augment(
        (crop,), flip=0.0, pad=augment.pad, channels=augment.channels, mean=augment.mean, std=augment.std
    ), crop


def whole(height: Sequence[float] | np.ndarray, width: Sequence[float] | np.ndarray, pad: int) -> Params:
    """Parameters of the central square of each image, for `plain`."""
    H, W = np.asarray(height, dtype=np.float64) + 2 * pad, np.asarray(width, dtype=np.float64) + 2 * pad
    side, n = np.minimum(H, W), len(H)
    off = np.zeros(n, dtype=bool)
    return Params(
        (W - side) / 2,
        (H - side) / 2,
        side,
        side,
        off,
        off,
        np.ones((n, 4)),
        np.tile(ORDERS[0], (n, 1)),
        off,
        np.zeros(n),
        np.zeros(n),
        off,
    )
