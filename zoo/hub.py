"""torch.hub entry points, made from the registry: one function per model and per alias."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .card import input_words
from .registry import registry

if TYPE_CHECKING:
    from .schema import Entry


def functions() -> dict[str, Callable[..., Any]]:
    """Name -> function, for every id and alias; hubconf.py makes them its only public names."""
    known = registry()
    made = {model: _function(model, known.entry(model)) for model in known.models()}
    made.update({alias: _function(alias, known.entry(model)) for alias, model in known.aliases().items()})
    return made


def _function(name: str, entry: Entry) -> Callable[..., Any]:
    def load(pretrained: bool = True, progress: bool = True, num_classes: int = 0, **options: Any) -> Any:
        from .loading import load as load_model

        return load_model(entry.id, pretrained=pretrained, progress=progress, num_classes=num_classes, **options)

    load.__name__ = load.__qualname__ = name
    load.__doc__ = describe(entry, name)
    return load


def describe(entry: Entry, name: str) -> str:
    """What `torch.hub.help` prints: what it is, the published number, the licence, the input, the arguments."""
    width = f"(B, {entry.network.dim})" if entry.network else "(B, D)"
    lines = [f"{entry.title}." + (f" Another name of {entry.id}." if name != entry.id else ""), entry.summary, ""]
    if entry.published:
        first = entry.published[0]
        whose = "" if first.origin == "authors" else f", {first.by or first.origin}"
        lines.append(f"Published  {first.value:g} {first.metric} ({first.protocol}; {first.source}{whose})")
    licence = (
        entry.weights.license if entry.weights else "no weights were released; pretrained=False builds the network"
    )
    lines += [
        f"{'Licence' if entry.weights else 'Weights'}    {licence}",
        f"Input      (B, {entry.input.channels}, H, W): {input_words(entry.input)}",
        f"Output     {width} features, or (B, num_classes) from a fresh linear layer",
        "",
        "pretrained   load the released weights; every tensor is accounted for, or an error says which is not",
        "progress     show the download's progress",
        "num_classes  0: features; else a new, untrained classifier of so many classes on top",
        "             model.fc = torch.nn.Linear(model.fc.in_features, classes) does the same, as in torchvision",
    ]
    if entry.backbone.name.startswith(("resnet", "tiny_resnet")) and entry.backbone.name != "resnet50v2":
        lines += [
            "features_only, out_indices                 maps at several scales as a list, and which of them",
            "norm_layer, replace_stride_with_dilation   as torchvision's ResNets take them",
        ]
    if entry.heads:
        lines.append(f"head         {', '.join(entry.heads)}: the released classifier")
    return "\n".join(lines)
