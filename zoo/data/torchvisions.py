"""Sets that torchvision downloads."""

from __future__ import annotations

from pathlib import Path

from .specs import DatasetSpec


def download(spec: DatasetSpec, folder: Path) -> None:
    """Fill ``folder`` through torchvision, every file checked against its MD5."""
    from torchvision import datasets

    if spec.name == "fashion_mnist":
        datasets.FashionMNIST(str(folder), download=True)
