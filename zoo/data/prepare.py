"""ImageNet's validation images, which come in one heap, into one folder per class."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import whole
from .archive_sets import read_map
from .folders import subfolders
from .paths import component

TAR = "ILSVRC2012_img_val.tar"
LARGEST = 2**26  # bytes of one image, or of a list of classes
LISTS = ("val_map.txt", "LOC_val_solution.csv", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12")


def imagenet_val(root: Path, labels: Path | None = None) -> tuple[int, int]:
    """Sort <root>/val/*.JPEG, or the images in <root>/ILSVRC2012_img_val.tar, into <root>/val/<class>/.

    labels  which image is of which class: PIC's val_map.txt (numbers of the sorted folders in train/), Kaggle's
            LOC_val_solution.csv, or the devkit, packed or not; looked for in ``root`` when it is not given
    Returns (images sorted now, images in place already).  Run it again after an interruption.  Raises UserError before
    anything is moved when an image has no class.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the one that holds {TAR} or val/")
    path = labels or next((root / name for name in LISTS if (root / name).exists()), None)
    if path is None:
        raise UserError(
            f"{root}: no list of the validation classes; put one of {', '.join(LISTS)} there or name it with --labels"
        )
    where = read_labels(path, root)
    for folder in sorted(set(where.values())):
        component(folder, f"{path}: class")
    target = root / "val"
    heap = sorted(p for p in target.glob("*.JPEG") if p.is_file()) if target.is_dir() else []
    archive = root / TAR
    if not heap and not archive.is_file():
        done = sum((target / folder / name).is_file() for name, folder in where.items())
        if done:
            return 0, done
        raise UserError(f"{root}: neither val/*.JPEG nor {TAR} in it")
    unknown = [p.name for p in heap if p.name not in where]
    if unknown:
        raise UserError(f"{path}: does not list {unknown[0]} ({len(unknown)} such images)")
    for folder in sorted(set(where.values())):
        (target / folder).mkdir(parents=True, exist_ok=True)
    if heap:
        for image in _progress(heap, len(heap)):
            os.replace(image, target / where[image.name] / image.name)
        return len(heap), len(where) - len(heap)
    return _unpack(archive, target, where, path)


def _unpack(archive: Path, target: Path, where: dict[str, str], path: Path) -> tuple[int, int]:
    new = old = 0
    try:
        with tarfile.open(archive) as tar:
            for member in _progress(tar, len(where)):
                name = member.name.rpartition("/")[2]
                if not member.isfile() or not name.endswith(".JPEG"):
                    continue
                if name not in where:
                    raise UserError(f"{path}: does not list {name} of {archive.name}")
                final = target / where[name] / name
                if final.is_file() and final.stat().st_size == member.size:
                    old += 1
                    continue
                if member.size > LARGEST:
                    raise UserError(f"{archive}@/{member.name}: {member.size:,} bytes, more than an image has")
                with whole(final) as part, part.open("wb") as file:
                    shutil.copyfileobj(tar.extractfile(member) or io.BytesIO(), file)
                new += 1
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: cannot be read: {error}") from None
    return new, old


def read_labels(path: Path, root: Path) -> dict[str, str]:
    """Image name -> class folder, from any of the lists above."""
    if not path.exists():
        raise UserError(f"{path}: does not exist")
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _devkit(path)
    if path.suffix == ".csv":
        found = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], 2):
            name, comma, answer = line.partition(",")
            if not comma or not answer.split():
                raise UserError(f"{path}:{number}: expected `image,class box …`, found {line[:80]!r}")
            found[f"{name}.JPEG"] = answer.split()[0]
        return found
    classes = subfolders(root / "train")
    names, labels = read_map(path, len(classes))
    return {name.rpartition("/")[2]: classes[label] for name, label in zip(names, labels.tolist(), strict=True)}


def _devkit(path: Path) -> dict[str, str]:
    """The development kit: data/meta.mat numbers the classes, data/…ground_truth.txt has one number a line."""
    from scipy.io import loadmat

    truth, meta = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
    content: dict[str, bytes] = {}
    if path.is_dir():
        content = {n: (path / "data" / n).read_bytes() for n in (truth, meta) if (path / "data" / n).is_file()}
    else:
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    if name in (truth, meta) and member.size <= LARGEST and (file := tar.extractfile(member)):
                        content[name] = file.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if set(content) != {truth, meta}:
        raise UserError(f"{path}: needs data/{truth} and data/{meta}")
    synsets: Any = loadmat(io.BytesIO(content[meta]), squeeze_me=True)["synsets"]
    folder = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    found = {}
    for number, line in enumerate(content[truth].decode().split(), 1):
        if not line.isdigit() or int(line) not in folder:
            raise UserError(f"{path}: {truth}:{number}: {line!r} is not a class of {meta}")
        found[f"ILSVRC2012_val_{number:08d}.JPEG"] = folder[int(line)]
    return found


def _progress(items: Any, total: int) -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc="sorting validation images", unit="img", disable=None, leave=False)
