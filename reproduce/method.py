"""The contract between a pre-training method and the engine: what a method must say, and what it may.

A method is a module that owns its backbone, its heads and whatever it remembers. The engine's loop calls, in order:

    before_epoch(epoch, ctx) · before_step(step, ctx) · loss(batch, step) · backward · after_backward(step) · optimiser step

Only `loss` must be written. `loss` returns this process's mean; the mean over processes is the loss of the global batch,
and gradients are averaged over processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reproduce.limits import Limit, Run
from zoo.backbones.base import Backbone
from zoo.errors import UserError

Numbers = dict[str, float | Tensor]


@dataclass(frozen=True)
class Needs:
    """What a method asks of its surroundings.

    views              fewest views of an image that the loss can use
    labels             the batch carries labels (only reference rows and semi-supervised methods)
    instances          the constructor takes `instances=`, the number of training images
    classes            the constructor takes `classes=`, the number of labelled classes
    divisible          the loss is a mean over images, each by itself, so that a batch may be computed in parts (accumulate)
    unused_parameters  some trainable parameters may take no part in a step
    """

    views: int = 1
    labels: bool = False
    instances: bool = False
    classes: bool = False
    divisible: bool = False
    unused_parameters: bool = False


@dataclass(frozen=True)
class Deviation:
    """A place where the authors' released code differs from their paper, or from what works, and what we do about it."""

    id: str
    paper: str
    release: str
    ours: str
    option: str = ""  # settings that give the other behaviour, `path=value` words; "" when it is not offered
    where: str = ""  # the model or protocol whose settings they are; "": any recipe of the method


class Method(nn.Module):
    """Base class. Constructor: `backbone`, then keyword arguments named as the YAML's params, with the same defaults."""

    needs: ClassVar[Needs] = Needs()
    deviations: ClassVar[tuple[Deviation, ...]] = ()
    limits: ClassVar[tuple[Limit, ...]] = ()  # what must fit together; see reproduce.limits
    remedies: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # alarm -> settings to try; see reproduce.health
    rates: ClassVar[tuple[str, ...]] = ("optimizer.lr",)  # settings that are learning rates; see engine.loop
    settings: Mapping[str, Any] = MappingProxyType(
        {}
    )  # the recipe it was built from, for advice; {} when built by hand
    run: Run | None = None  # facts about the run that trains it, for advice; None when built by hand
    collapsed_loss: float | None = None  # the loss of a network that says the same of every image, where there is one
    backbone: Backbone
    generation: int = 0  # raise it when param_groups() returns other parameters: the engine rebuilds the optimiser

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def check(self, recipe: Mapping[str, Any]) -> None:
        """Raise UserError for what the method cannot run with and no line of `limits` can say; recipe: its dump. A plan asks too."""

    @classmethod
    def limits_of(cls, params: Mapping[str, Any]) -> tuple[Limit, ...]:
        """The limits that hold under these parameters."""
        return cls.limits

    def meet(self, source: Any) -> None:
        """Raise UserError for images that it cannot be trained on; called once they are open, for a plan too."""

    # -- what is trained ---------------------------------------------------------------------------------------------
    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        """This process's mean loss (a scalar with a graph) and numbers worth logging, tensors of the device among them: only a line of
        the log reads them. `batch`: engine.batch.Batch."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(batch, step)")

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; a group may carry lr_scale, no_adapt, weight_decay."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def held_apart(self) -> frozenset[str]:
        """Names of parameters that only some processes hold, over all processes and for any number of them. The method itself brings
        their gradients together, in after_backward; the engine keeps all of them in one checkpoint."""
        return frozenset()

    def groups(self) -> list[str]:
        """How processes share the method's own work, for a plan: a line for each kind of group."""
        return []

    def of_each_process(self, recipe: Mapping[str, Any]) -> list[str]:
        """What is computed from the images of one process (or of a few) alone, so that a run which goes on by another number of processes
        trains otherwise: said by such a run. Everything else must be the same for any number."""
        share = "batch statistics are those of"
        if not any(isinstance(module, _BatchNorm) for module in self.modules()):
            return []
        if not recipe["sync_bn"]:
            return [f"{share} each process's own images (sync_bn=false)"]
        group = recipe.get("sync_bn_group")
        return [] if group is None else [f"{share} {group} processes (sync_bn_group)"]

    @property
    def extracted(self) -> int:
        """Numbers of each image that ``ctx.extract`` keeps at a time; 0: it is not called."""
        return 0

    # -- hooks, in the order in which the engine calls them ----------------------------------------------------------
    def epoch_size(self, n: int) -> int:
        """How many images one epoch draws from `n`; the default is all of them."""
        return n

    def sampler(self, n: int, epoch: int, ctx: Any) -> np.ndarray | None:
        """Indices of the epoch, in order, int64 (epoch_size(n),); None: a fresh permutation. `ctx.seed` seeds it."""
        return None

    def before_epoch(self, epoch: int, ctx: Any) -> None:
        """Work between epochs: clustering, relabelling. `ctx.extract(view)` gives features of the whole set."""

    def before_step(self, step: int, ctx: Any) -> None:
        """Work before a step's forward pass: prototype normalisation, momentum update."""

    def after_backward(self, step: int) -> None:
        """Work between backward and the optimiser's step: `grad = None` on what is frozen."""

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        """What a resume needs beyond parameters and buffers (tensors, numbers, strings, lists, dicts), the same on every
        process and independent of how many there are. Called on every process: it may communicate."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what extra_state() gave, perhaps with another number of processes."""
        if state:
            raise UserError(
                f"{type(self).__name__} keeps no extra state, the checkpoint has {sorted(state)}; "
                "it was written by another version: start again with resume=false"
            )

    # -- looking at it -----------------------------------------------------------------------------------------------
    def features(self, images: Tensor) -> Tensor:
        """(B, D) what `ctx.extract` collects. images (B, C, H, W), normalised."""
        return self.backbone(images)

    def classifier_input(self, features: Tensor) -> Tensor:
        """(B, D) what a classifier takes of the backbone's output: the same, or after the ReLU that the backbone leaves out."""
        own = getattr(self.backbone, "classifier_input", None)
        return features if own is None else own(features)

    def health(self) -> dict[str, float]:
        """A few numbers that show collapse early; see reproduce.health for those that raise an alarm."""
        return {}

    def alarms(self, step: int, loss: float, logs: Mapping[str, float]) -> list[str]:
        """Messages about a run that goes wrong, each with a remedy that is a setting. Called once per log interval."""
        from reproduce.health import Watch

        if "_watch" not in self.__dict__:
            self.__dict__["_watch"] = Watch(self)
        return self.__dict__["_watch"](step, loss, logs)

    def export(self) -> dict[str, Tensor]:
        """The weights as the authors of this family released theirs; the entry's layouts map them back."""
        return {f"module.{name}": value for name, value in self.exported().items()}

    def exported(self) -> dict[str, Tensor]:
        """Names without the released prefix: the backbone's at the top level, then heads. Override to add heads."""
        return {name: value.detach().cpu() for name, value in self.backbone.state_dict().items()}


def full(x: Tensor) -> Tensor:
    """x in float32 at least: embeddings, logits and losses stay out of half precision."""
    return x if x.dtype == torch.float64 else x.float()


def mlp(inputs: int, hidden: int, outputs: int, *, norm: bool = False) -> nn.Sequential | nn.Linear:
    """Linear, [BatchNorm], ReLU, Linear; one Linear when hidden is 0."""
    if not hidden:
        return nn.Linear(inputs, outputs)
    middle: list[nn.Module] = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(inputs, hidden), *middle, nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


def by_size(views: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive views of equal size together, as multi-crop wants them: equal sizes apart from each other stay apart."""
    groups: list[list[Tensor]] = []
    for view in views:
        if groups and groups[-1][0].shape[-2:] == view.shape[-2:]:
            groups[-1].append(view)
        else:
            groups.append([view])
    return groups


def embed(backbone: nn.Module, views: list[Tensor]) -> Tensor:
    """(V*B, D) features, view-major. Views of one size share a pass, hence their batch-norm statistics."""
    return torch.cat([backbone(torch.cat(group)) for group in by_size(views)])


def pic_head(head: nn.Module) -> dict[str, Tensor]:
    """State of a projection head under the names of PIC's repository."""
    names = {"0.": "fc1.", "2.": "fc2."} if isinstance(head, nn.Sequential) else {"": "fc."}
    return {
        new + key.removeprefix(old): value.detach().cpu()
        for key, value in head.state_dict().items()
        for old, new in names.items()
        if key.startswith(old)
    }
