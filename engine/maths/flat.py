"""faiss's exact index, where the rows are: on their GPU if this faiss has been built for it, else on the CPU.

Each process asks for its own device, so that many processes of a machine share nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def flat_index(dim: int, device: torch.device, *, products: bool) -> Any:
    """An empty index of rows (n, dim): largest dot products, or else smallest squared distances."""
    import faiss

    if not on_gpu(faiss, device):
        return (faiss.IndexFlatIP if products else faiss.IndexFlatL2)(dim)
    import faiss.contrib.torch_utils

    settings = faiss.GpuIndexFlatConfig()
    settings.device = device.index or 0
    return (faiss.GpuIndexFlatIP if products else faiss.GpuIndexFlatL2)(faiss.StandardGpuResources(), dim, settings)


def on_gpu(faiss: Any, device: torch.device) -> bool:
    return (
        device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and (device.index or 0) < faiss.get_num_gpus()
    )


def exchanged(rows: Tensor) -> Any:
    """(n, dim) rows in the form in which an index of ``flat_index`` takes them."""
    import faiss

    rows = rows.float().contiguous()
    return rows if on_gpu(faiss, rows.device) else rows.cpu().numpy()
