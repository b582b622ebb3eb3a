"""Numbers produced by the authors' code, and a ledger of which of them were really compared.

``load("swav/sinkhorn.npz")`` opens ``tests/golden/swav/sinkhorn.npz``. A test takes its inputs with ``given`` and hands
its own results to ``agree`` (within the tolerance pinned below), ``exact`` or ``agree_fraction``. When the whole suite has
run, ``tests/conftest.py`` fails it if an array of a copied file was never touched, or a file was read and never compared.
A json file is the same with its entries in the place of arrays, and the numbers of ``meta`` are arrays named ``meta.KEY``
(``meta.0.KEY`` when there are several cases): inputs by ``g.meta[KEY]``, outputs by ``agree("meta.KEY", ...)``.

Tolerances stand here once, from the README that came with the numbers, and cannot be passed by a test.
``tests/golden/PINNED`` holds a digest of every file and of its tolerance: neither can be changed unnoticed.
``python tests/golden.py pin`` adds the lines of newly copied files; an existing line changes only with ``--correct`` and a reason.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent / "golden"
PINNED = ROOT / "PINNED"
CORRECTIONS = ROOT / "CORRECTIONS.md"

# file pattern -> {regular expression of whole array names: (rtol, atol)}; the first that matches wins. (0, 0) means equal.
# "scaled": atol is a fraction of the largest absolute value of the golden array.
TOLERANCES: dict[str, dict[str, Any]] = {
    "swav/sinkhorn*.npz": {".*": (0, 2e-5)},
    "swav/swav_loss.npz": {r"\w+\.queue_after_step": (0, 1e-6), ".*": (0, 2e-5)},
    "swav/lr_schedule.npz": {".*": (0, 1e-12)},
    "swav/larc.npz": {".*": (0, 1e-5)},
    "swav/deepclusterv2_kmeans*.npz": {r"assign_(it|rank)\d+|empty_assign": (0, 0), ".*": (0, 1e-5)},
    "swav/deepclusterv2_epoch.npz": {"loss": (0, 2e-5), ".*": (0, 1e-6)},
    "swav/unmix_bbox.npz": {".*": (0, 0)},
    "swav/unmix_swav.npz": {
        r"meta\.\d\.lam_loss": (0, 1e-9),
        r"\w+\.mixed": (0, 1e-6),
        r"\w+\.queue_(before|after)": (0, 1e-6),
        ".*": (0, 3e-5),
    },
    "swav/unmix_moco.npz": {r"meta\.\d\.lam_loss": (0, 1e-9), r"\w+\.mixed": (0, 1e-6), ".*": (0, 3e-5)},
    "swav/eval_linear.npz": {"linear_lr_per_epoch": (0, 1e-9), ".*": (0, 1e-4)},
    "swav/resnet_forward.npz": {
        r"rn50_trainmode_feat": ("scaled", 1e-3),
        r"\w+_emb": (0, 1e-5),
        r"\w+_scores_first\d+": (0, 2e-5),
        ".*": ("scaled", 2e-5),
    },
    "pic/pic_loss.npz": {".*": (1e-4, 1e-6)},
    "pic/instdisc_loss.npz": {".*": (1e-4, 1e-6)},
    "pic/moco_world*.npz": {r"ptr_before|t\d_r\d_ptr": (0, 0), ".*": (1e-4, 1e-6)},
    "pic/simclr_world*.npz": {".*": (1e-4, 1e-6)},
    "pic/lars.npz": {".*": (1e-5, 1e-8)},
    "pic/lr_schedules.npz": {".*": (1e-9, 0)},
    "pic/sliding_window.npz": {".*": (0, 0)},
    "pic/forwards.npz": {".*": ("scaled", 2e-4)},
    "quality/quality_golden_A.npz": {
        r"spt_rankme_f32": (1e-5, 0),
        r"spt_lidar_f32": (1e-4, 0),
        r"spt_lidar_\w*f64|spt_lidar_delta1e-3_f64|google_alpha_req": (1e-7, 0),
        r"google_(stable_rank)|def_stable_rank_centred|def_participation_ratio": (1e-10, 0),
        r"google_(ne_sum|coherence|self_clustering)|align_\w+|uniform_\w+": (1e-9, 0),
        ".*": (1e-8, 0),
    },
    "sela/sinkhorn_*.npz": {r"\w+_err": (1e-3, 0), ".*": (1e-6, 1e-12)},
    "sela/schedules.npz": {r"s\d_times_in_list_order": (1e-12, 0), r"lr_[\w.]+": (1e-9, 0), ".*": (0, 0)},
    "sela/cluster_scores.npz": {".*": (0, 1e-9)},
    "sela/forwards.npz": {r"lp_\w+": ("scaled", 1e-3), ".*": ("scaled", 2e-4)},
    "sela/knn.npz": {".*": (0, 0)},
    "deepercluster/sobel.npz": {".*": (0, 1e-5)},
    "deepercluster/sobel2rgb.npz": {".*": (0, 1e-4)},
    "deepercluster/vgg16_*.npz": {".*": (1e-3, 1e-3)},
    "deepercluster/alexnet_sobel.npz": {".*": (1e-3, 1e-3)},
    "deepercluster/deepcluster_vgg16_conv_sobel_pad1.npz": {".*": (1e-3, 1e-3)},
    "deepercluster/pca_whiten.npz": {".*": (0, 1e-4)},
    "deepercluster/kmeans.npz": {r"([ER]_)?labels_niter\w+": (0, 0), ".*": (0, 1e-5)},
    "deepercluster/hierarchical.npz": {r"sub_labels_\d|super_labels": (0, 0), ".*": (0, 1e-5)},
    "deepercluster/lr_schedules.npz": {".*": (0, 1e-12)},
    "deepercluster/kfold.npz": {".*": (0, 0)},
    "deepercluster/voc_map.npz": {".*": (0, 1e-6)},
    "deepercluster/voc_labels.npz": {".*": (0, 0)},
    "deepercluster/voc_train_steps.npz": {".*": (0, 1e-4)},
    "deepercluster/reglog_conv13.npz": {".*": (0, 1e-4)},
    "deepercluster/rotations.npz": {".*": (0, 0)},
    "deepercluster/uniform_samplers.npz": {".*": (0, 0)},
    "deepercluster/train_epoch.npz": {".*": (0, 1e-5)},
    "deepercluster/deepcluster_pic.npz": {".*": (0, 1e-5)},
    "deepercluster/deepcluster_kmeans_objective.npz": {".*": (0, 0)},
    "deepercluster/rotnet_*.npz": {".*": (1e-3, 1e-3)},
    "detection/coco_*.npz": {".*": (0, 1e-9)},
    "detection/boxes.npz": {".*": (0, 1e-12)},
    "detection/matcher.npz": {".*": (1e-5, 1e-5)},
    "detection/criterion.npz": {".*": (1e-5, 1e-5)},
    "detection/position.npz": {".*": (3e-6, 3e-6)},
    "detection/frozen_bn.npz": {".*": (1e-5, 1e-5)},
    "detection/postprocess.npz": {".*": (1e-5, 1e-5)},
    "detection/transformer.npz": {"(post|pre)/pos": (3e-6, 3e-6), ".*": (5e-6, 5e-6)},
    "detection/resize.npz": {".*": (0, 0)},
    "detection/detectron2_parts.npz": {
        r"lr_\w+_factor": (0, 1e-12),
        r"pool_\w+": (1e-5, 1e-5),
        r"c4_(cell|some)|fpn_cells": (0, 1e-4),
        ".*": (1e-4, 1e-4),
    },
    "detection/voc_ap.npz": {
        r"evaluator_\d+": (1e-6, 1e-6),
        r"curve\d_\w+": (0, 1e-12),
        r"grid_\w+": (0, 1e-12),
        r"(recall|precision)50_\d": (0, 1e-12),
        ".*": (0, 1e-9),
    },
    "*.json": {".*": (0, 0)},
}

given: dict[str, set[str]] = defaultdict(set)
compared: dict[str, set[str]] = defaultdict(set)


def tolerances(file: str) -> dict[str, Any]:
    for pattern, table in TOLERANCES.items():
        if fnmatch.fnmatch(file, pattern):
            return table
    raise KeyError(f"{file}: no tolerance in tests/golden.py; take it from the README of its family")


def tolerance(table: dict[str, Any], name: str) -> Any:
    """The (rtol, atol) of one array: the first expression that matches its whole name."""
    return next(tol for pattern, tol in table.items() if re.fullmatch(pattern, name))


def numpy_of(value: Any) -> np.ndarray:
    """A tensor (any device, any precision), array, list or number as a numpy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value
        return value.numpy()
    return np.asarray(value)


class Golden:
    """One golden file: inputs by ``given`` and ``meta``, outputs by ``agree``, ``exact``, ``agree_fraction`` or ``checked``."""

    def __init__(self, file: str):
        self.file = file
        self.table = tolerances(file)
        self.arrays, meta = content(file)
        self.meta = tracked(file, "meta", meta)

    @property
    def names(self) -> list[str]:
        return sorted(self.arrays)

    def given(self, name: str) -> np.ndarray:
        """An input of the computation (or a number that says how it was made)."""
        given[self.file].add(name)
        return self.arrays[name]

    def agree(self, name: str, actual: Any, part: Any = ()) -> None:
        """``actual`` equals the golden array (or its slice ``part``) within the pinned tolerance."""
        compared[self.file].add(name)
        expected, actual = np.asarray(self.arrays[name])[part], numpy_of(actual)
        assert expected.shape == actual.shape, f"{self.file}:{name}: shape {actual.shape}, expected {expected.shape}"
        rtol, atol = tolerance(self.table, name)
        if rtol == "scaled":
            rtol, atol = 0.0, atol * float(np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=f"{self.file}:{name}")

    def exact(self, name: str, actual: Any, part: Any = ()) -> None:
        """``actual`` equals the golden array to the last bit: labels, indices, counts; or the entry of a json file."""
        compared[self.file].add(name)
        if self.file.endswith(".json"):
            assert json.loads(json.dumps(actual)) == self.arrays[name], f"{self.file}:{name}"
            return
        expected, actual = np.asarray(self.arrays[name])[part], numpy_of(actual)
        assert expected.shape == actual.shape, f"{self.file}:{name}: shape {actual.shape}, expected {expected.shape}"
        np.testing.assert_array_equal(actual, expected, err_msg=f"{self.file}:{name}")

    def agree_fraction(self, name: str, actual: Any, fraction: float) -> None:
        """At least ``fraction`` of the entries are equal; only where the README allows near-ties."""
        compared[self.file].add(name)
        expected, actual = self.arrays[name], numpy_of(actual)
        assert expected.shape == actual.shape, f"{self.file}:{name}: shape {actual.shape}, expected {expected.shape}"
        share = float((expected == actual).mean())
        assert share >= fraction, f"{self.file}:{name}: only {share:.4f} equal, {fraction} wanted"

    def checked(self, name: str, reason: str) -> np.ndarray:
        """An array of which only a property can be tested (signs, ties, random draws); the caller asserts it."""
        assert reason
        compared[self.file].add(name)
        return self.arrays[name]


def load(file: str) -> Golden:
    return Golden(file)


class Entries(dict):
    """A dictionary of ``meta`` that notes which of its entries were read: inputs, or how the numbers were made."""

    def __init__(self, file: str, place: str, entries: dict[str, Any]):
        super().__init__(entries)
        self.file, self.place = file, place

    def __getitem__(self, key: str) -> Any:
        given[self.file].add(f"{self.place}.{key}")
        return super().__getitem__(key)


def tracked(file: str, place: str, meta: Any) -> Any:
    if isinstance(meta, list):
        return [tracked(file, f"{place}.{i}", case) for i, case in enumerate(meta)]
    return None if meta is None else Entries(file, place, meta)


def content(file: str) -> tuple[dict[str, Any], Any]:
    """What a golden file holds by name, the numbers of its ``meta`` included, and ``meta`` itself (words in it are no numbers)."""
    if file.endswith(".json"):
        tree = json.loads((ROOT / file).read_text())
        return (tree if isinstance(tree, dict) else {str(i): entry for i, entry in enumerate(tree)}), None
    with np.load(ROOT / file) as data:
        found = {name: data[name] for name in data.files}
    raw = found.pop("meta", None)
    meta = None if raw is None else json.loads(str(raw))
    cases = {f"meta.{i}": case for i, case in enumerate(meta)} if isinstance(meta, list) else {"meta": meta or {}}
    numbers = {
        f"{place}.{key}": value
        for place, case in cases.items()
        for key, value in case.items()
        if not isinstance(value, str)
    }
    return found | numbers, meta


def files() -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.suffix in (".npz", ".json"))


def ledger() -> dict[str, dict[str, list[str]]]:
    """What this process has read so far, in a form that crosses process borders."""
    return {"given": {f: sorted(n) for f, n in given.items()}, "compared": {f: sorted(n) for f, n in compared.items()}}


def merge(other: dict[str, dict[str, list[str]]]) -> None:
    for mine, theirs in ((given, other["given"]), (compared, other["compared"])):
        for file, names in theirs.items():
            mine[file].update(names)


def complaints() -> list[str]:
    """Golden numbers that a run of the whole suite left untouched."""
    found = []
    for file in files():
        if not compared[file]:
            found.append(f"tests/golden/{file}: copied, and no test compares it")
        else:
            names = set(content(file)[0]) - given[file] - compared[file]
            found += [f"tests/golden/{file}: {name} is neither read nor compared" for name in sorted(names)]
    return found


def arrays(file: str) -> list[str]:
    """Names of the arrays of a golden file and of the numbers of its ``meta``; ``*`` stands for the content of a json file."""
    return ["*"] if file.endswith(".json") else sorted(content(file)[0])


def pins() -> dict[str, str]:
    """Digest of each golden file together with the tolerance of each of its arrays."""
    out = {}
    for file in files():
        digest = hashlib.sha256((ROOT / file).read_bytes())
        table = tolerances(file)
        digest.update(json.dumps({name: tolerance(table, name) for name in arrays(file)}, sort_keys=True).encode())
        out[file] = digest.hexdigest()
    return out


def pinned() -> dict[str, str]:
    if not PINNED.exists():
        return {}
    return {file: digest for digest, file in (line.split() for line in PINNED.read_text().splitlines())}


def pin(correct: str | None = None, reason: str = "") -> None:
    """Write PINNED for newly copied files. A line that stands changes only for the file ``correct``, with its reason kept
    in CORRECTIONS.md beside the new digest: a reviewer sees both in one change."""
    old, new = pinned(), pins()
    changed = [file for file in old if new.get(file) != old[file]]
    if correct is not None and (correct not in changed or not reason.strip()):
        sys.exit(f"error: {correct}: nothing changed in this file or its tolerances, or no reason is given")
    if other := [file for file in changed if file != correct]:
        sys.exit(
            f"error: {', '.join(other)}: the file or a tolerance differs from tests/golden/PINNED; restore it, or, when the pinned "
            'one was wrong, say why: python tests/golden.py pin --correct FILE "what the README of the file says"'
        )
    if correct is not None:
        with CORRECTIONS.open("a", encoding="utf-8") as log:
            log.write(f"- `{correct}` ({new[correct][:12]}): {reason.strip()}\n")
    PINNED.write_text("".join(f"{new[file]}  {file}\n" for file in sorted(new)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pin"]:
            pin()
        case ["pin", "--correct", file, reason]:
            pin(file, reason)
        case _:
            sys.exit('usage: python tests/golden.py pin [--correct FILE "reason"]')
