"""Quality of features without labels: how much of their space they fill, how they spread, how views of one image agree.

Features Z are (n, d), a row an image; all sums are float64. Ranks compare models of one width on the same number of images: they
grow with n until n is far above d, and "uncentred" ones are dominated by a large mean. Definitions and sources stand with
each function; conventions that differ between papers and programs are arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import Degenerate

BLOCK = 2048  # rows compared with rows at once
NOISE = 1e-12  # variances below this share of the largest are rounding


def _wide(z: Any) -> Tensor:
    z = torch.as_tensor(z)
    if z.ndim < 2 or len(z) < 2:
        raise ValueError(f"quality: {tuple(z.shape)}: at least two rows of features")
    z = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
    if not z.isfinite().all():
        raise Degenerate("quality: features are not finite")
    return z


def singular_values(z: Any, centre: bool = False) -> Tensor:
    """(min(n, d),) float64, falling, of (n, d) features; ``centre`` subtracts their mean first.

    From the smaller Gram matrix: entropies of them agree with a decomposition of Z to 1e-10, values below 1e-7 of the
    largest are rounding.
    """
    z = _wide(z)
    z = z - z.mean(0) if centre else z
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def variances(z: Any) -> Tensor:
    """(min(n, d),) float64, falling: eigenvalues of the centred covariance, divided by n - 1. Degenerate: rows all equal."""
    z = _wide(z)
    found = singular_values(z, centre=True).square() / (len(z) - 1)
    if found[0] <= NOISE * NOISE * z.square().mean():
        raise Degenerate("quality: all rows are equal: the features have collapsed to a point")
    return found


def entropy_rank(s: Tensor, eps: float = 0.0) -> float:
    """exp of the entropy of p = s / sum(s) + eps: between 1 and the number of values (Roy and Vetterli 2007)."""
    p = s / s.sum() + eps
    return float(torch.special.entr(p).sum().exp())


def rankme(z: Any, eps: float = 1e-7, centre: bool = False) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): the effective rank of (n, d) embeddings, 1 .. min(n, d); higher: more
    directions are used. Neither centred nor scaled in the paper. Raises Degenerate when all features are zero.
    """
    s = singular_values(z, centre)
    if s[0] <= 0:
        raise Degenerate("quality: all features are zero")
    return entropy_rank(s, eps)


def effective_rank(z: Any) -> float:
    """Roy and Vetterli's effective rank (EUSIPCO 2007) of the centred features (n, d): a large mean does not hide the rest."""
    return entropy_rank(variances(z).sqrt())


def participation_ratio(z: Any) -> float:
    """(sum of variances)^2 / sum of squared variances of (n, d): how many equal directions would spread alike."""
    values = variances(z)
    return float(values.sum().square() / values.square().sum())


def stable_rank(z: Any, centre: bool = True) -> float:
    """|Z|_F^2 / s_1^2 of (n, d). Centred, this is NESum (He and Ozay, ICML 2022, definition 4.1)."""
    squares = singular_values(z, centre).square()
    return float(squares.sum() / squares[0])


def alpha_req(z: Any, first: int = 3, last: int = 100) -> tuple[float, float, int]:
    """(alpha, R2, last rank used) of (n, d): variance falls as rank^-alpha (alpha-ReQ, Agrawal et al., NeurIPS 2022).

    Weighted least squares of log variance on log rank with weight 1 / rank, over zero-based positions first .. last - 1 as
    the authors' program counts them (it writes rank = position + 1). The window ends at the last variance above
    rounding. Near 1 is what the paper finds good; above: few directions; below: noise. Degenerate: fewer than three ranks.
    """
    values = variances(z)
    end = min(last, int((values > NOISE * values[0]).sum()))
    if end - first < 3:
        raise Degenerate(
            f"quality: {end} variances above rounding, and the power law is fitted from rank {first + 1} on"
        )
    rank = torch.arange(first, end, dtype=values.dtype, device=values.device) + 1
    x, y, w = rank.log(), values[first:end].log(), 1 / rank
    w = w / w.sum()
    dx, dy = x - (w * x).sum(), y - (w * y).sum()
    slope = (w * dx * dy).sum() / (w * dx * dx).sum()
    rest = (w * (dy - slope * dx).square()).sum() / (w * dy * dy).sum()
    return -float(slope), 1 - float(rest), end


def lidar(views: Any, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (Thilak et al. 2023, arXiv 2312.04000) of (n, q, d), q views of each of n images: the effective rank of what
    tells images apart, relative to what tells views of one image apart; 1 .. min(n - 1, d), higher is better.

    The eigenvalues are those of (between, within + delta I): delta is absolute, so the score depends on the features'
    scale. Between is divided by n - 1, within by n (q - 1).
    """
    from scipy.linalg import eigh

    z = _wide(views)
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f"lidar: {tuple(z.shape)}: (images, at least two views, features)")
    n, q, d = z.shape
    means = z.mean(1)
    apart, inside = means - means.mean(0), (z - means[:, None]).reshape(n * q, d)
    between = apart.T @ apart / (n - 1)
    within = inside.T @ inside / (n * (q - 1)) + delta * torch.eye(d, dtype=z.dtype, device=z.device)
    values = torch.as_tensor(eigh(between.cpu().numpy(), within.cpu().numpy(), eigvals_only=True)).clamp(min=0)
    if not values.any():
        raise Degenerate("lidar: all images have the same mean features: they have collapsed to a point")
    return entropy_rank(values + eps)


def alignment(x: Any, y: Any, power: float = 2.0) -> float:
    """Mean |x - y|^power of two views (n, d) of each image, on the unit sphere (Wang and Isola, arXiv 2005.10242); 0 .. 4
    for power 2, lower is better."""
    return float((_unit(x) - _unit(y)).norm(dim=1).pow(power).mean())


def uniformity(z: Any, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x_i - x_j|^2) over pairs i < j of (n, d) on the unit sphere (arXiv 2005.10242); 0 where all
    are one point, lower is better."""
    unit = _unit(z)
    n, total = len(unit), 0.0
    for at in range(0, n, BLOCK):
        cosine = (unit[at : at + BLOCK] @ unit[at:].T).clamp(max=1.0)
        total += float(torch.triu(torch.exp(2 * t * (cosine - 1)), diagonal=1).sum())
    return float(torch.tensor(total * 2 / (n * (n - 1)), dtype=torch.float64).log())


def self_clustering(z: Any) -> float:
    """0 for directions spread over the sphere as at random, 1 for one point: squared cosines of all pairs of (n, d) against
    their expectation (Tsitsulin et al. 2023, arXiv 2305.16562); lower is better."""
    unit = _unit(z)
    n, d = unit.shape
    gram = unit.T @ unit if d < n else unit @ unit.T
    expected = n + n * (n - 1) / d
    return float((gram.square().sum() - expected) / (n * n - expected))


def coherence(z: Any) -> float:
    """(n / r) max_i |U_i|^2 with U the left singular vectors of (n, d), r = min(n, d) (arXiv 2305.16562): 1 .. n / r, lower:
    no image has a direction of its own. Always 1 where n <= d."""
    u = torch.linalg.svd(_wide(z), full_matrices=False).U
    return float(len(u) / u.shape[1] * u.square().sum(1).max())


def _unit(z: Any) -> Tensor:
    return torch.nn.functional.normalize(_wide(z), dim=1, eps=1e-300)
