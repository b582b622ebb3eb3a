"""Settings of torch's GPU backends, made once per process from the options. A CPU has none of them."""

from __future__ import annotations

import os

import torch

from .options import RunOptions


def configure(options: RunOptions, device: torch.device) -> None:
    """cudnn_benchmark, tf32 and deterministic, as the options say; nothing on another device than a GPU.

    deterministic takes algorithms that give the same bits every time, and none that was chosen by a race: exact resume on a GPU is
    promised only with it. An operation that has no such algorithm is an error that names it.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = options.cudnn_benchmark and not options.deterministic
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    torch.use_deterministic_algorithms(options.deterministic)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts


def settings(options: RunOptions, device: torch.device, features: str) -> dict[str, bool | str]:
    """What a GPU is told, for the provenance of a number: what ``configure`` makes of the options, and the precision of ``features`` of
    frozen networks. Empty on another device, which is told nothing."""
    if device.type != "cuda":
        return {}
    return {
        "cudnn_benchmark": options.cudnn_benchmark and not options.deterministic,
        "tf32": options.tf32,
        "deterministic": options.deterministic,
        "features": features,
    }
