"""SeLa-v2: predict balanced labels of an image from all its views; optimal transport over last epoch's embeddings makes them.

Paper     https://arxiv.org/abs/2006.09882, appendix D (the comparison that SwAV's authors made); no trainer was ever released
Known     SwAV's hyper-parameters; three sets of 3000 prototypes, trained by gradient as in SwAV; labels by Sinkhorn-Knopp on a bank
          of the previous epoch's embeddings, as in DeepCluster-v2
Ours      epsilon as in SwAV (its inverse is SeLa's lambda), iterations to SeLa's tolerance, labels hard as in SeLa (soft is a setting)
Recipe    zoo/methods/selav2.yaml: the two released models as far as they are known; selav2_digits and _fashion_mnist for a laptop
Expect    loss from about ln K downwards, with a small jump at each new assignment
          digits, seed 0: loss 4.3 (step 10) -> 2.0, agreement 0.32 -> 0.56; scores in results/tables/digits.md
When      labels change before every epoch, without an extra pass. The transport plan is balanced; hard labels, its largest entries,
          are only nearly so at this epsilon: on digits (seed 0) about 1 of a set's 60 clusters was empty at times
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.batch import on
from engine.maths.rows import Rows
from engine.maths.sela import SelfLabels, sela_labels
from reproduce.clustering import UNSEEN, Bank, by_image, describe, device_of, mean_over_known, rows_by_image
from reproduce.health import effective_rank
from reproduce.limits import Limit
from reproduce.method import Deviation
from reproduce.methods.deepclusterv2 import DeepClusterV2
from zoo.backbones.base import Backbone

DEVIATIONS = (
    Deviation(
        "selav2-no-trainer",
        "appendix D: SwAV's hyper-parameters, three sets of 3000 prototypes",
        "weights only, no code",
        "written from the description; what is not published is named in the docstring and is a setting",
    ),
)


def soft_prediction(scores: Sequence[Tensor], targets: Sequence[Tensor], known: Tensor, temperature: float) -> Tensor:
    """Cross entropy of every view with its image's soft label, mean over heads.

    scores  per head (V, B, K_h) cosines;  targets  per head (B, K_h), rows sum to 1;  known (B,): images that have a label.
    """
    losses = [
        mean_over_known(-(q * F.log_softmax(s / temperature, dim=-1)).sum(-1).mean(0), known)
        for s, q in zip(scores, targets, strict=True)
    ]
    return torch.stack(losses).mean()


class SeLaV2(DeepClusterV2):
    """DeepCluster-v2's trainer with trained prototypes and balanced labels.

    prototypes, dim, hidden, head_batchnorm, temperature, assign_crops   as DeepClusterV2
    epsilon          of the assignment: labels maximise the sum of scores / epsilon, all of them equally often
    max_iterations, tolerance, relaxation   of the solver; see engine.maths.sela
    assignment       hard: one label per image.  soft: its row of the transport plan (each process then holds the whole bank)
    freeze_prototypes_steps   steps at the start in which prototypes do not move
    """

    deviations = DEVIATIONS
    limits = (
        *DeepClusterV2.limits,
        Limit("params.freeze_prototypes_steps", "<", "steps", share=0.1, otherwise="the prototypes never move"),
    )
    remedies: ClassVar = {
        "collapse": (
            "params.temperature=0.2",
            "params.epsilon=0.03",
            "optimizer.lr=0.1",
            "params.freeze_prototypes_steps=5000",
        ),
        "usage": ("params.epsilon=0.03", "params.max_iterations=1000"),
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        prototypes: Sequence[int] = (3000, 3000, 3000),
        dim: int = 128,
        hidden: int = 2048,
        head_batchnorm: bool = True,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        max_iterations: int = 200,
        tolerance: float = 0.1,
        relaxation: float = 1.6,
        assignment: str = "hard",
        assign_crops: Sequence[int] = (0, 1),
        freeze_prototypes_steps: int = 313,
    ) -> None:
        super().__init__(
            backbone,
            prototypes=prototypes,
            dim=dim,
            hidden=hidden,
            head_batchnorm=head_batchnorm,
            temperature=temperature,
            assign_crops=assign_crops,
            freeze_prototypes_steps=freeze_prototypes_steps,
        )
        self.epsilon, self.soft = epsilon, assignment == "soft"
        self.max_iterations, self.tolerance, self.relaxation = max_iterations, tolerance, relaxation
        self.plan: dict[str, Tensor] = {}  # soft labels: what each image's row is computed from

    # -- once per epoch ----------------------------------------------------------------------------------------------
    def before_epoch(self, epoch: int, ctx: Any) -> None:
        self.normalize()
        if not len(self.bank):
            views = [ctx.extract(crop) for crop in self.assign_crops]
            self.bank.add(views[0][0], torch.stack([z for _, z in views]).to(device_of(self)))
        index, z = self.bank.rows()
        previous, self.labels = self.labels, self.label(index, z, ctx.n)
        self.numbers = {
            **self.numbers,
            **describe(self.labels, self.clusters, previous),
            "effective_rank": effective_rank(z[0]),
        }
        self.bank = Bank()

    @torch.no_grad()
    def label(self, index: Tensor, z: Tensor, n: int) -> Tensor:
        """Labels (H, n) of all images from this process's embeddings z (A, n_r, D)."""
        weights = [weight.detach().to(z.device) for weight in self.prototypes.parameters()]

        def solve(view: Tensor, weight: Tensor) -> SelfLabels:
            return sela_labels(
                Rows(view, transform=lambda rows: rows @ weight.T),
                1 / self.epsilon,
                keep=False,
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
                relaxation=self.relaxation,
            )

        found = [solve(z[self.view_of(h)], w) for h, w in enumerate(weights)]
        self.numbers = {
            "labelling_iterations": float(max(f.iterations for f in found)),
            "labelling_error": max(f.error for f in found),
        }
        if self.soft:
            bank = torch.stack([rows_by_image(index, view, n) for view in z])
            self.plan = {
                "z": bank,
                **{f"w{h}": w.clone().cpu() for h, w in enumerate(weights)},
                **{f"r{h}": f.log_r.cpu() for h, f in enumerate(found)},
            }
        return by_image(index, torch.stack([f.labels for f in found]), n)

    # -- one step ----------------------------------------------------------------------------------------------------
    def before_step(self, step: int, ctx: Any = None) -> None:
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        for weight in self.prototypes.parameters():
            weight.copy_(F.normalize(weight, dim=1))

    def prediction(self, scores: Sequence[Tensor], labels: Tensor, index: Tensor) -> Tensor:
        if not self.soft:
            return super().prediction(scores, labels, index)
        targets = [on(self.soft_labels(h, index), s.device) for h, s in enumerate(scores)]
        return soft_prediction(scores, targets, labels[0] != UNSEEN, self.temperature)

    def soft_labels(self, head: int, index: Tensor) -> Tensor:
        """(B, K) rows of the head's transport plan, each summing to 1."""
        z = self.plan["z"][self.view_of(head), index]
        return (z @ self.plan[f"w{head}"].T / self.epsilon + self.plan[f"r{head}"]).softmax(1).float()

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        state = super().extra_state()
        return {**state, "plan": dict(self.plan)} if state else {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        self.plan = dict(state.get("plan", {}))
