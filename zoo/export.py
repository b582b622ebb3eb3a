"""Export (``python -m zoo export``): a model in another project's format, with a note of where it comes from and what it permits.

torchvision, timm   {"state_dict", "meta"}, for the ResNets that both know under the same names
detectron2          a pickle of arrays under detectron2's names, for its ResNets (stride on the 3x3, RGB)
safetensors         every network, this project's names, the note in the file's header
onnx                every network, batch size free, the note in metadata_props
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import backbones, loading
from .card import TORCHVISION
from .checkpoint_reader import sha256
from .errors import UserError
from .files import whole
from .heads import Classifier


def export(name: str | Path, form: str, out: str | Path | None = None, head: str | None = None) -> Path:
    """Write a model's backbone (with ``head``, its released classifier too) in ``form``; returns the file.

    name  an id, a run folder or a weight file.  Raises UserError when the target has no such network.
    """
    if form not in FORMATS:
        raise UserError(f"--to {form}: one of {', '.join(FORMATS)}")
    net = loading.load(name, head=head)
    source = loading.origin(name)
    file = Path(out) if out is not None else Path(f"{Path(source.name).name}-{form}{FORMATS[form].ending}")
    if file.is_dir():
        raise UserError(f"{file} is a folder; --out names the file to write")
    note = metadata(source, _backbone(net), head)
    with whole(file) as part:
        FORMATS[form].write(net, source, note, part)
    return file


def metadata(source: loading.Origin, backbone: Any, head: str | None = None) -> dict[str, str]:
    """What a stranger needs to know of the file: method, licence, source, hash, and how to feed it."""
    entry = source.entry
    spec = dict(zip(("name", "options"), backbones.parts(source.backbone), strict=True))
    note = {
        "made_by": "selfzoo",
        "model": source.name if entry is not None else Path(source.name).name,
        "backbone": json.dumps(spec, sort_keys=True),
        "features": str(backbone.dim),
        "input": json.dumps(source.input.model_dump(mode="json"), sort_keys=True),
        "weights_sha256": sha256(source.file()),
        "license": "not stated: trained by its owner",
    }
    if entry is not None:
        first = entry.weights.sources[0]
        note["method"] = entry.title
        note["license"] = entry.weights.license
        note["source"] = first.url or (Path(first.file).name if first.file else f"Google Drive {first.gdrive}")
        if entry.paper and entry.paper.arxiv:
            note["paper"] = f"arXiv {entry.paper.arxiv}"
        if head is not None:
            note["head"] = head
            note["head_license"] = entry.heads[head].license
    return note


def _backbone(net: nn.Module) -> backbones.Backbone:
    inner = net.backbone if isinstance(net, Classifier) else net
    assert isinstance(inner, backbones.Backbone)
    return inner


def _resnet(source: loading.Origin, target: str) -> None:
    name, options = backbones.parts(source.backbone)
    defaults = backbones.options(name)
    changed = {key: value for key, value in options.items() if defaults.get(key) != value and key != "zero_last_gamma"}
    if name not in TORCHVISION or changed:
        what = name + (f" with {', '.join(f'{k}={v}' for k, v in changed.items())}" if changed else "")
        raise UserError(
            f"{source.name}: {target} has no network of this form ({what}); safetensors and onnx take every network"
        )


def _state(net: nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors under their own names, and a classifier's as ``fc``."""
    state = net.state_dict()
    return {key.removeprefix("backbone."): value.detach().cpu().contiguous() for key, value in state.items()}


def _shared(net: nn.Module, source: loading.Origin, note: dict[str, str], file: Path) -> None:
    _resnet(source, "torchvision and timm")
    torch.save({"state_dict": _state(net), "meta": note}, file)


def _detectron2(net: nn.Module, source: loading.Origin, note: dict[str, str], file: Path) -> None:
    _resnet(source, "detectron2")
    state = {
        detectron2_name(key): value.numpy()
        for key, value in _state(net).items()
        if not key.endswith("num_batches_tracked")
    }
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    with file.open("wb") as stream:
        pickle.dump(
            {"model": state, "__author__": "selfzoo", "matching_heuristics": True, "meta": note}, stream, protocol=2
        )


def detectron2_name(key: str) -> str:
    """layer1.0.bn1.weight -> res2.0.conv1.norm.weight, as detectron2 names a ResNet's tensors."""
    key = re.sub(r"^layer(\d)", lambda found: f"res{int(found.group(1)) + 1}", key)
    if not key.startswith(("res", "fc.")):
        key = f"stem.{key}"
    key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
    return key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def _safetensors(net: nn.Module, source: loading.Origin, note: dict[str, str], file: Path) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise UserError("--to safetensors needs the package: pip install 'selfzoo[export]'") from None
    save_file(_state(net), file, metadata=note)


def _onnx(net: nn.Module, source: loading.Origin, note: dict[str, str], file: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise UserError("--to onnx needs onnx and onnxscript: pip install 'selfzoo[export]'") from None
    if sum(value.numel() * value.element_size() for value in net.state_dict().values()) > 1.9e9:
        raise UserError(f"{source.name}: larger than the 2 GB that one onnx file may have; safetensors has no limit")
    spec, backbone = source.input, _backbone(net)
    side = spec.crop or (224 if "fc7" in backbone.layers else 32)
    free = {0: torch.export.Dim("batch")}
    if not {"fc7", "pixels"} & set(backbone.layers):
        free |= {2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}  # type: ignore[dict-item]
    if "pixels" in backbone.layers:
        side = round((backbone.dim / spec.channels) ** 0.5)
    example = torch.zeros(2, spec.channels, side, side)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=(free,),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, note)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def run(options: argparse.Namespace) -> int:
    """``python -m zoo export``; its words are described in zoo/__main__.py, which answers --help without importing this."""
    file = export(options.model, options.form, options.out, options.head)
    print(file)
    print(FORMATS[options.form].use.format(file=file), file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Format:
    """ending of a file's name; write: (network, origin, note, file); use: what to do with the file, with {file} for its name."""

    ending: str
    write: Callable[[nn.Module, loading.Origin, dict[str, str], Path], None]
    use: str


FORMATS = {
    "torchvision": Format(
        ".pth",
        _shared,
        'next: model.load_state_dict(torch.load("{file}")["state_dict"]), after model.fc = nn.Identity() if it has no head',
    ),
    "timm": Format(
        ".pth",
        _shared,
        'next: timm.create_model("resnet50", num_classes=0, checkpoint_path="{file}"), with this network\'s name',
    ),
    "detectron2": Format(
        ".pkl",
        _detectron2,
        "next: MODEL.WEIGHTS {file}, MODEL.RESNETS.STRIDE_IN_1X1 False, INPUT.FORMAT RGB, pixels / 255 with the mean and std in meta",
    ),
    "safetensors": Format(
        ".safetensors",
        _safetensors,
        'next: safetensors.torch.load_file("{file}"), or zoo.load_weights(model, "{file}")',
    ),
    "onnx": Format(
        ".onnx",
        _onnx,
        'next: onnxruntime.InferenceSession("{file}"); the input is normalised as its metadata say',
    ),
}
