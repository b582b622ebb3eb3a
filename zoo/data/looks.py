"""Statistics of a part's images (sizes, formats, colour, depth), differences between parts, and what they mean for training."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from PIL import Image

from . import images

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF"}
# Extensions of images that are not read, and are worth a word: phones, browsers, cameras, medicine, arrays.
CONVERTIBLE = frozenset((
    "heic", "heif", "avif", "gif", "jp2", "jxl", "jfif", "dcm", "nii", "cr2", "cr3", "nef", "arw", "dng", "raw", "psd", "svg", "npy", "exr",
))  # fmt: skip
SMALL = 32  # pixels of the shorter side below which a crop of a photograph is mostly enlargement
WIDE = 4.0  # times: shorter sides that differ by more show things at different scales
APART = 1.5  # times: medians of two parts that differ by more are told
SHARE = 0.1  # of the images: shares of two parts that differ by more are told


@dataclass(frozen=True)
class Look:
    """One file: width and height in pixels, format, Pillow's mode, and of more than 8 bits the largest value and the largest
    that the file states (0, 0 for others, and where no range is stated)."""

    width: int
    height: int
    format: str
    mode: str
    brightest: int = 0
    stated: int = 0

    @property
    def side(self) -> int:
        return min(self.width, self.height)

    @property
    def gray(self) -> bool:
        return self.mode in ("L", "LA", "1") or self.mode.startswith(("I", "F"))


@dataclass
class Looks:
    """The files of one part."""

    part: str
    each: list[Look] = field(default_factory=list)

    def count(self, name: str) -> Counter[str]:
        return Counter(str(getattr(look, name)) for look in self.each)

    @property
    def middle(self) -> float:
        """Median of the shorter sides."""
        return float(median(look.side for look in self.each))

    def share(self, of: str) -> float:
        """Share of gray images ("gray"), or of those in a format."""
        return sum(look.gray if of == "gray" else look.format == of for look in self.each) / len(self.each)


def look(data: bytes) -> Look:
    """What a file that decodes says of itself."""
    with Image.open(io.BytesIO(data)) as image:
        width, height, form, mode = *image.size, str(image.format), image.mode
        brightest = stated = 0
        if mode in images.DEEP:
            values = np.asarray(image)
            if values.dtype.kind in "iu":
                brightest, stated = int(values.max()), int(images.stated_range(image, values.max())[1])
    return Look(width, height, form, mode, brightest, stated)


def facts(looks: Looks) -> list[str]:
    """Lines about the sizes and formats of a part; none for a part without files."""
    if not looks.each:
        return []
    sides = [look.side for look in looks.each]
    longest = max(max(look.width, look.height) / look.side for look in looks.each)
    formats = ", ".join(f"{name} {count:,}" for name, count in looks.count("format").most_common())
    return [
        f"  {looks.part}: shorter sides of {min(sides):,} to {max(sides):,} pixels (median {looks.middle:,.0f}), longer sides up to "
        f"{longest:.1f} times as long; {formats}; {looks.share('gray'):.0%} gray"
    ]


def notes(looks: Looks) -> list[str]:
    """What is odd about a part, and what it means."""
    if not looks.each:
        return []
    part, found = looks.part, []
    for mode, count in sorted(looks.count("mode").items()):
        if mode not in ("RGB", "L"):
            found.append(f"{part}: {count:,} images have mode {mode} (converted){meaning(mode)}")
    sides = [look.side for look in looks.each]
    tiny = sum(side < SMALL for side in sides)
    if tiny and looks.middle >= 2 * SMALL:
        found.append(
            f"{part}: {tiny:,} images have a shorter side below {SMALL} pixels: enlarged to the others' size they are blurs that a "
            "network tells apart by their blur; leave them out"
        )
    if max(sides) > WIDE * min(sides):
        found.append(
            f"{part}: shorter sides from {min(sides):,} to {max(sides):,} pixels: random crops of one share of an image show things at "
            "different scales; resize to one shorter side first if sizes say nothing about what is shown"
        )
    if dark := unused_bits(looks.each):
        found.append(f"{part}: {dark}")
    gray = looks.share("gray")
    if 0 < gray < 1:
        found.append(
            f"{part}: {sum(look.gray for look in looks.each):,} of its {len(looks.each):,} images are gray: read as three equal channels, which a network "
            "tells from colour; convert all of them if colour says nothing about what is shown"
        )
    return found


def unused_bits(looks: Iterable[Look]) -> str:
    """What it means that files of more than 8 bits use fewer of them than they state, such as 12 of 16; "" where they do not."""
    deep = [look for look in looks if look.stated]
    if not deep:
        return ""
    most, white = max(look.brightest for look in deep), min(look.stated for look in deep)
    unused = white.bit_length() - most.bit_length()
    if unused < 2:
        return ""
    return (
        f"{len(deep):,} images have {white.bit_length()} bits a pixel by their files and use {most.bit_length()} of them (brightest "
        f"{most:,} of {white:,}): they are read at 1/{2**unused} of their brightness, nearly black; multiply them by {2**unused}, or state "
        "their range (MaxSampleValue of a TIFF, the header of a PGM)"
    )


def meaning(mode: str) -> str:
    return {
        "RGBA": ": transparency is dropped, and what lies behind it is seen",
        "LA": ": transparency is dropped, and what lies behind it is seen",
        "PA": ": transparency is dropped, and what lies behind it is seen",
        "P": ": the colours of its palette",
        "1": ": black and white",
        "CMYK": ": without its colour profile",
    }.get(mode, ": scaled to 8 bits by the range that each file states" if mode.startswith(("I", "F")) else "")


def compare(here: Looks, train: Looks) -> list[str]:
    """How a part differs from the training part, and what it means."""
    if not here.each or not train.each:
        return []
    found, part = [], here.part
    ratio = here.middle / train.middle
    if max(ratio, 1 / ratio) > APART:
        found.append(
            f"{part}: its shorter sides have a median of {here.middle:,.0f} pixels, those of {train.part} {train.middle:,.0f}: both are resized to the "
            f"network's input, so that what is {'smaller' if ratio < 1 else 'larger'} in {part} is judged at another sharpness than it was learned at"
        )
    if abs(here.share("gray") - train.share("gray")) > SHARE:
        found.append(
            f"{part}: {here.share('gray'):.0%} of its images are gray, {train.share('gray'):.0%} of {train.part}: a network that learned from colour is "
            "judged without it, or the other way round"
        )
    formats = sorted({*here.count("format"), *train.count("format")})
    apart = [name for name in formats if abs(here.share(name) - train.share(name)) > SHARE]
    if apart:
        said = ", ".join(f"{name} {here.share(name):.0%} here and {train.share(name):.0%} there" for name in apart)
        found.append(
            f"{part}: other file formats than {train.part} ({said}): traces of compression that were learned are missing, or new"
        )
    return found


def unread(names: Iterable[str]) -> str:
    """'3 other files are not read: .heic 2, .txt 1; …' about files that lie among the images; '' for none."""
    kinds: Mapping[str, int] = Counter(
        f".{base.rpartition('.')[2].lower()}"
        if "." in (base := name.rpartition("/")[2]).strip(".") and not base.startswith(".")
        else base
        for name in names
    )
    if not kinds:
        return ""
    listed = ", ".join(
        f"{kind} {count:,}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:6]
    )
    images_of = [kind for kind in kinds if kind[1:] in CONVERTIBLE]
    more = f"; save {' and '.join(sorted(images_of))} as PNG or JPEG to have them read" if images_of else ""
    return f"{sum(kinds.values()):,} other files are not read: {listed}{more}"
