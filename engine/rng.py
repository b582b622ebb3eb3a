"""Randomness as a function of counters: the same (seed, purpose, counters) give the same bits everywhere.

Nothing here has a state. A view of image i in epoch e depends on (seed, e, i, visit, view) alone, visit v being the image's v-th
draw in that epoch, never on the rank or the worker, so any number of processes sees the same data and a resumed run replays nothing.

The generator is SplitMix64 (Steele, Lea, Flood 2014) used as a hash. Only integer operations and correctly rounded
+ - * / sqrt appear, so that results do not depend on a mathematics library.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_VISIT = (
    0xD1B54A32D192ED03  # odd, hence visits of one row never meet; visit 0 leaves the bits as they are without visits
)
_MASK = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, element by element on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    """The same for one Python integer."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=1024)
def _purpose(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _key64(seed: int, purpose: str, *counters: int) -> int:
    state = _mix_int((int(seed) + _GOLDEN) & _MASK) ^ _purpose(purpose)
    for counter in counters:
        state = _mix_int((_mix_int(state) + _GOLDEN + int(counter)) & _MASK)
    return _mix_int((state + len(counters) * _GOLDEN) & _MASK)


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit number for (seed, purpose, counters); different arguments give unrelated numbers."""
    return _key64(seed, purpose, *counters) >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU torch.Generator seeded by `key` (its stream is torch's: exact for one torch version)."""
    return torch.Generator().manual_seed(key(seed, purpose, *counters))


def seed_torch(device: torch.device, seed: int, purpose: str, *counters: int) -> None:
    """Seed torch's own generators (dropout, new layers) on the CPU and on `device`.

    torch.manual_seed would reach every other device too, and costs about 1 ms in a process that has not used CUDA yet.
    """
    number = key(seed, purpose, *counters)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)


def _bits(seed: int, purpose: str, epoch: int, index: np.ndarray, view: int, n: int, visit: Any = 0) -> np.ndarray:
    """(B, n) uint64: column j of row i is a function of (seed, purpose, epoch, view, index[i], visit[i], j)."""
    base = np.uint64(_key64(seed, purpose, epoch, view))
    again = np.atleast_1d(np.asarray(visit, dtype=np.int64)).astype(np.uint64) * np.uint64(_VISIT)
    rows = _mix(_mix(np.asarray(index, dtype=np.int64).astype(np.uint64) + np.uint64(_GOLDEN)) + base + again)
    columns = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(rows[:, None] + columns[None, :])


def uniforms(
    seed: int, purpose: str, epoch: int, index: np.ndarray, view: int, n: int, visit: np.ndarray | int = 0
) -> np.ndarray:
    """(B, n) float64 in [0, 1), one row per entry of `index` (B,) int64. Multiples of 2^-53.

    visit   (B,) or one number: how often each entry was drawn before in this epoch.
    """
    return (_bits(seed, purpose, epoch, index, view, n, visit) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms_on(seed: int, purpose: str, epoch: int, index: Tensor, view: int, n: int) -> Tensor:
    """(B, n) float64: the bits of `uniforms`, computed on the device of `index` (B,) int64, for draws too many to copy there."""
    base = _signed(_key64(seed, purpose, epoch, view))
    rows = _mix_on(_mix_on(index + _signed(_GOLDEN)) + base)
    columns = torch.arange(1, n + 1, device=index.device) * _signed(_GOLDEN)
    return _shifted(_mix_on(rows[:, None] + columns), 11).double() * 2.0**-53


def _signed(x: int) -> int:
    """The int64 with the bits of a uint64: sums and products of both have the same bits."""
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: Tensor, places: int) -> Tensor:
    """x >> places of the uint64 that an int64 stands for."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _mix_on(x: Tensor) -> Tensor:
    """_mix of the uint64 that an int64 tensor stands for."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def normals(
    seed: int, purpose: str, epoch: int, index: np.ndarray, view: int, n: int, visit: np.ndarray | int = 0
) -> np.ndarray:
    """(B, n) float64 standard normal numbers, one row per entry of `index`; |x| < 8.3. visit: see uniforms."""
    bits = _bits(seed, purpose, epoch, index, view, n, visit) >> np.uint64(11)
    return _inverse_normal((bits.astype(np.float64) + 0.5) * 2.0**-53)


def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """(n,) int64: a permutation of 0..n-1, the order of sorted 64-bit random keys."""
    bits = _bits(seed, purpose, epoch, np.zeros(1, dtype=np.int64), 0, n)[0]
    return np.argsort(bits, kind="stable").astype(np.int64)


_ROUNDS = 8


def shuffled(seed: int, purpose: str, epoch: int, n: int, positions: np.ndarray) -> np.ndarray:
    """(m,) int64: what stands at `positions` (m,) of a permutation of 0..n-1, which is never held. Not `permutation`'s.

    A Feistel network of eight rounds over the next power of four; numbers beyond n go through it again (cycle walking, Black and
    Rogaway 2002), which happens three times on average at most.
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(_key64(seed, purpose, epoch, number)) for number in range(_ROUNDS)]
    out = np.asarray(positions, dtype=np.int64).astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        left, right = out[outside] >> half, out[outside] & low
        for key_of_round in keys:
            left, right = right, left ^ (_mix(right * np.uint64(_GOLDEN) + key_of_round) & low)
        out[outside] = (left << half) | right
        outside = outside[out[outside] >= n]
    return out.astype(np.int64)


def _log(x: np.ndarray) -> np.ndarray:
    """ln x for x in (0, 1) from + - * / only (relative error about 1e-15): 2 artanh((m-1)/(m+1)) + e ln 2."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = exponent - small
    t = (mantissa - 1.0) / (mantissa + 1.0)
    square = t * t
    series = np.zeros_like(x)
    for odd in range(23, 0, -2):
        series = series * square + 1.0 / odd
    return 2.0 * t * series + exponent * 0.6931471805599453


def _ratio(x: np.ndarray, numerator: tuple[float, ...], denominator: tuple[float, ...]) -> np.ndarray:
    top, bottom = np.zeros_like(x), np.zeros_like(x)
    for a, b in zip(reversed(numerator), reversed(denominator), strict=True):
        top, bottom = top * x + a, bottom * x + b
    return top / bottom


def _inverse_normal(p: np.ndarray) -> np.ndarray:
    """The normal quantile of p in (0, 1), relative error about 1e-15 (Wichura 1988, algorithm AS 241)."""
    q = p - 0.5
    centre = q * _ratio(
        0.180625 - q * q,
        (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
         45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
        (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
         21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
    )  # fmt: skip
    r = np.sqrt(-_log(np.minimum(p, 1.0 - p)))
    near = _ratio(
        r - 1.6,
        (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
         1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
        (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
         0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
    )  # fmt: skip
    far = _ratio(
        r - 5.0,
        (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
         0.0265321895265761230930, 0.00124266094738807843860, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
        (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
         7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
    )  # fmt: skip
    tail = np.where(r <= 5.0, near, far)
    return np.where(np.abs(q) <= 0.425, centre, np.where(q < 0, -tail, tail))
