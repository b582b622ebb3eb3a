"""Data sets: one contract (Source) over every layout that the methods and protocols read.

from zoo import data
source = data.open_source("fashion_mnist", "train")     # or "imagenet", root="/data/imagenet"; or a folder's path
source.image(0), source.label(0), source.name(0), source.fingerprint
"""

from .images import ImageError
from .locate import DataMissing
from .open import make_scenes, open_source
from .seal import Seal, SealedError, openings, permit, sealed
from .source import ArraySource, FileSource, Source
from .specs import DatasetSpec, describe, names

__all__ = [
    "ArraySource",
    "DataMissing",
    "DatasetSpec",
    "FileSource",
    "ImageError",
    "Seal",
    "SealedError",
    "Source",
    "describe",
    "make_scenes",
    "names",
    "open_source",
    "openings",
    "permit",
    "sealed",
]
