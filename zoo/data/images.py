"""Bytes to pixels, the same on every machine, and a named error for what cannot be read.

What happens to unusual images
- The content decides, never the file's extension (ImageNet has a PNG called .JPEG).
- CMYK, YCCK, palette and gray are converted as Pillow's ``convert`` does, which is what the papers' loaders did;
  transparency is dropped; EXIF orientation is not applied, as in those loaders.
- Gray of more than 8 bits is scaled to 8 by the range that the file states: the bits of a sample (16 in a PNG, 12 or 16 in a
  TIFF, what the header of a PGM says), or a TIFF's MaxSampleValue.  (``convert`` alone clips at 255, which turns most such
  images white.)  32-bit integers and floating point have a range only where a TIFF states it; otherwise they are refused.
- A zero-byte, truncated or otherwise unreadable file raises ImageError.

Two decoders, one result: simplejpeg (libjpeg-turbo, in three quarters of the time and straight into an array) decodes what it reads
without a complaint and without a choice of colours: JPEG in YCbCr, RGB or gray.
Everything else, and every JPEG on a machine without simplejpeg, is Pillow's, which alone decides whether a damaged
file can be read. Both use libjpeg-turbo's exact inverse transform and smooth upsampling, and their pixels are the same bits:
tests/data/test_image_decoders.py holds it for every kind of JPEG, and ``decoder`` names what is used, for provenance. torchvision's
decoder is as fast, but brings torch into every process.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import PIL
from PIL import Image, ImageFile

from ..errors import UserError

try:
    import simplejpeg
except ImportError:  # no wheel for this machine
    simplejpeg = None

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_SAME_COLOURS = ("YCbCr", "RGB", "Gray")  # of a JPEG: CMYK is converted in Pillow's own way
T = TypeVar("T")
_BITS, _PHOTOMETRIC, _MIN, _MAX, _SAMPLE, _SMIN, _SMAX = 258, 262, 280, 281, 339, 340, 341  # tags of TIFF


class ImageError(UserError):
    """An image that cannot be decoded; the message names the file and the reason."""


def is_image_name(name: str) -> bool:
    """True for a visible file whose extension is an image's (macOS leaves ``._x.jpg`` files that are none)."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and ("." + base.rpartition(".")[2].lower()) in EXTENSIONS


def decoder() -> str:
    """What decodes JPEG files here, with its version."""
    return f"Pillow {PIL.__version__}" if simplejpeg is None else f"simplejpeg {simplejpeg.__version__}"


def decode(data: bytes, channels: int, where: Callable[[], str], lenient: bool = False) -> Image.Image:
    """The image in ``data`` as mode RGB (``channels`` 3) or L (1).  ``where`` names the file, asked for only on failure.

    lenient  decode a truncated file as far as it goes. Raises ImageError.
    """
    return _tried(_as_image, data, channels, where, lenient)


def pixels(data: bytes, channels: int, where: Callable[[], str], lenient: bool = False) -> np.ndarray:
    """The same as a writable uint8 array, (H, W, 3) or (H, W)."""
    return _tried(_as_array, data, channels, where, lenient)


def _tried(read: Callable[[bytes, int], T], data: bytes, channels: int, where: Callable[[], str], lenient: bool) -> T:
    if not data:
        raise ImageError(f"{where()}: empty file (0 bytes)")
    try:
        return read(data, channels)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise nearly anything on broken files
        reason = _unknown(data) if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
    if lenient:
        with contextlib.suppress(Exception), _truncated_allowed():
            return read(data, channels)
    raise ImageError(f"{where()}: cannot be decoded: {reason}")


def _unknown(data: bytes) -> str:
    """Why Pillow knows no format for these bytes."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return "not an image"
    return "a TIFF with channels or numbers that Pillow does not read, such as five channels: write those to train on as RGB or gray"


def _as_image(data: bytes, channels: int) -> Image.Image:
    found = _simple(data, channels)
    return _pillow(data, channels) if found is None else Image.fromarray(found)


def _as_array(data: bytes, channels: int) -> np.ndarray:
    found = _simple(data, channels)
    return np.array(_pillow(data, channels)) if found is None else found


def _pillow(data: bytes, channels: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return to_mode(image, "RGB" if channels == 3 else "L")


def _simple(data: bytes, channels: int) -> np.ndarray | None:
    """uint8 (H, W, 3) or (H, W) of a sound JPEG; None for whatever Pillow has to decide."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in (_SAME_COLOURS if channels == 3 else _SAME_COLOURS[2:]):
            return None
        if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
            return None  # Pillow warns of it, or refuses it
        found: np.ndarray = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    except ValueError:  # also for what libjpeg only warns of
        return None
    return found if channels == 3 else found[..., 0]


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """A copy of an opened image in ``mode`` (RGB or L).  Raises ValueError for values whose range is not stated."""
    if image.mode in DEEP:
        image = _eight_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)  # a copy even when the mode fits: the file is closed after this


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits as mode L, rounded to the nearest of 0..255."""
    values = np.asarray(image)
    low, high = stated_range(image, values.max())
    if not np.isfinite(values).all() or values.min() < low or values.max() > high:
        raise ValueError(
            f"values {values.min()}..{values.max()} lie outside the range {low:g}..{high:g} that the file states"
        )
    if image.mode == "F":
        scaled = np.floor((values.astype(np.float64) - low) * 255 / (high - low) + 0.5)
    else:
        span = int(high) - int(low)
        scaled = ((values.astype(np.int64) - int(low)) * 255 + (span - 1) // 2) // span
    found = scaled.astype(np.uint8)
    return Image.fromarray(255 - found if _tag(image, _PHOTOMETRIC) == 0 else found)


def stated_range(image: Image.Image, brightest: float) -> tuple[float, float]:
    """(black, white) as the file states them; a stated maximum below the ``brightest`` pixel is none."""
    low, high = (_tag(image, signed, _tag(image, plain)) for signed, plain in ((_SMIN, _MIN), (_SMAX, _MAX)))
    bits = int(_tag(image, _BITS, 16 if image.format in ("PNG", "PPM") or image.mode != "I" else 32))
    if image.mode != "F" and bits <= 16:
        signed = _tag(image, _SAMPLE) == 2
        return 0, high if high is not None and high >= max(brightest, 1) else 2 ** (bits - signed) - 1
    if high is None or high <= (low or 0):
        what = "floating-point" if image.mode == "F" else "32-bit integer"
        raise ValueError(f"a {what} image, and the file does not state its range; save it with 8 or 16 bits a pixel")
    return low or 0, high


def _tag(image: Image.Image, tag: int, default: Any = None) -> Any:
    """The (first) value of a TIFF's tag; ``default`` for other files and where it is missing."""
    found = getattr(image, "tag_v2", {}).get(tag, default)
    return found[0] if isinstance(found, tuple) else found


_lenience = threading.Lock()


@contextlib.contextmanager
def _truncated_allowed() -> Iterator[None]:
    """Pillow's switch is global, so it is held only while one broken image of a lenient source is decoded again."""
    with _lenience:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
