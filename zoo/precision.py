"""Which precision a machine computes at full speed. A recipe may ask for bfloat16; a device without its instructions takes
about ten times as long for it as for float32, so there the same recipe runs in float32, and says so.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .schema import Recipe


def has_bfloat16(device: str | None = None) -> bool:
    """Whether ``device`` ("auto", "cpu", "cuda", "cuda:1"; None: "auto") has instructions for bfloat16, as torch reports it."""
    import torch

    name = device or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return _cpu_has_bfloat16() if name == "cpu" else True


def fastest(device: str | None = None) -> str:
    """The precision in which ``device`` convolves in the least time: bfloat16 on a GPU that has it and on a CPU with matrix units
    (AMX), else float32. A CPU with vector instructions for bfloat16 alone takes longer in it than in float32."""
    import torch

    name = device or "auto"
    if not has_bfloat16(device) or name.startswith("cuda") or name == "auto" and torch.cuda.is_available():
        return "bfloat16" if has_bfloat16(device) else "float32"
    matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return "bfloat16" if matrix_units is not None and matrix_units() else "float32"


def of_features(device: str, half: bool = True) -> str:
    """The precision of passes that only read a frozen network: bfloat16, by autocast, on a GPU that has it unless ``half`` is False;
    float32 elsewhere."""
    return "bfloat16" if half and device.startswith("cuda") and has_bfloat16(device) else "float32"


def _cpu_has_bfloat16() -> bool:
    """oneDNN, which convolves, must use bfloat16 and the CPU must have it: oneDNN alone says yes to any AVX-512, which emulates."""
    import torch

    convolves = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if convolves is None or not torch.backends.mkldnn.is_available() or not convolves():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return instructions is not None and bool(instructions())


def as_run_here(recipe: Recipe, device: str | None = None) -> Recipe:
    """The recipe itself, or the same in float32 where it asks for bfloat16 and ``device`` has no instructions for it."""
    if recipe.precision != "bfloat16" or has_bfloat16(device):
        return recipe
    return recipe.model_copy(update={"precision": "float32"})
