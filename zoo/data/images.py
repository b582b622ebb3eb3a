"""Bytes to pixels, the same on every machine, and a named error for what cannot be read.

What happens to unusual images
- The content decides, never the file's extension (ImageNet has a PNG called .JPEG).
- CMYK, YCCK, palette and gray are converted as Pillow's ``convert`` does, which is what the papers' loaders did;
  transparency is dropped; EXIF orientation is not applied, as in those loaders.
- 16-bit gray is scaled to 8 bits.  (``convert`` alone clips at 255, which turns most such images white.)
- A zero-byte, truncated or otherwise unreadable file raises ImageError.

Pillow decodes: torchvision's decoder would bring torch into every process that reads images.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile

from ..errors import UserError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class ImageError(UserError):
    """An image that cannot be decoded; the message names the file and the reason."""


def is_image_name(name: str) -> bool:
    """True for a visible file whose extension is an image's (macOS leaves ``._x.jpg`` files that are none)."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and ("." + base.rpartition(".")[2].lower()) in EXTENSIONS


def decode(data: bytes, channels: int, where: Callable[[], str], lenient: bool = False) -> Image.Image:
    """The image in ``data`` as mode RGB (``channels`` 3) or L (1).  ``where`` names the file, asked for only on failure."""
    if not data:
        raise ImageError(f"{where()}: empty file (0 bytes)")
    try:
        return _decode(data, channels)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise nearly anything on broken files
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
    if lenient:
        with contextlib.suppress(Exception), _truncated_allowed():
            return _decode(data, channels)
    raise ImageError(f"{where()}: cannot be decoded: {reason}")


def _decode(data: bytes, channels: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return _to_mode(image, "RGB" if channels == 3 else "L")


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"values {deep.min()}..{deep.max()} do not fit 16 bits")
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point images have no range that could be mapped to 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)  # a copy even when the mode fits: the file is closed after this


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
