"""What every backbone answers: its named layers, their widths, pooled features, and maps of the layers asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ..errors import UserError, suggest


class Backbone(nn.Module):
    """An image network without its task head.

    layers  names as in the papers, input to output;  dims  channels of each;  dim  width D of ``forward``.
    A subclass sets these three and writes ``stages``; networks that end in a pooled map need nothing else.
    last_relu  False: ``forward`` ends before the ReLU of its last layer, the form that DeepCluster clusters
    """

    layers: tuple[str, ...]
    dims: dict[str, int]
    dim: int
    in_channels: int = 3
    last_relu: bool = True

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each layer's name and its map (B, C, H, W) after the ReLU, in order, computing only as far as asked."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the last map, averaged over positions."""
        [(_, last)] = deque(self.stages(x), maxlen=1)
        return last.mean((2, 3))

    def classifier_input(self, features: Tensor) -> Tensor:
        """What ``forward`` gives, (B, D) -> what a classifier on this network takes, (B, D): after the last ReLU.

        The one place where that ReLU is put back. DeepCluster, DeeperCluster and their RotNet cluster fc7 before its ReLU
        and classify after it (DeeperCluster: eval_voc_classif.py, eval_pretrain.py); SeLa's and RotNet's AlexNet end in it.
        """
        return features if self.last_relu else features.relu()

    def forward_layers(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """The maps (B, C, H, W) of the named layers in one pass that stops at the deepest of them."""
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in self.layers:
                raise UserError(
                    f"this {type(self).__name__} has no layer {name!r}{suggest(name, self.layers)} "
                    f"(layers: {', '.join(self.layers)})"
                )
        found: dict[str, Tensor] = {}
        for name, value in self.stages(x):
            if name in wanted:
                found[name] = value
            if len(found) == len(wanted):
                break
        return {name: found[name] for name in wanted}
