"""TIFF files with more channels than a colour image: refused with what to do, not as \"not an image\"."""

from __future__ import annotations

import struct

import pytest

from zoo.data.images import ImageError, decode


def tiff(channels: int, side: int = 4) -> bytes:
    """A baseline TIFF (little-endian, one strip) of zeros, (side, side, channels) of 8 bits."""
    data, bits = bytes(side * side * channels), struct.pack(f"<{channels}H", *[8] * channels)
    at = 8 + 2 + 12 * 9 + 4
    entries = [(256, 3, 1, side), (257, 3, 1, side), (258, 3, channels, at), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, at + len(bits)), (277, 3, 1, channels), (278, 3, 1, side), (279, 4, 1, len(data))]
    return (
        b"II*\0"
        + struct.pack("<IH", 8, 9)
        + b"".join(struct.pack("<HHII", *e) for e in entries)
        + bytes(4)
        + bits
        + data
    )


def test_five_channels_are_told_what_to_do():
    with pytest.raises(
        ImageError, match=r"mine.tif: cannot be decoded: a TIFF .* five channels: write those .* RGB or gray"
    ):
        decode(tiff(5), 3, lambda: "mine.tif")


def test_other_bytes_are_no_image():
    with pytest.raises(ImageError, match="cannot be decoded: not an image"):
        decode(b"hello", 3, lambda: "mine.txt")
