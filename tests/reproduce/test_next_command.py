"""The command that a finished run prints is run as printed, for every way in which own images can be named."""

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations.__main__ import main as evaluate
from reproduce import launch
from reproduce.__main__ import main as reproduce
from zoo.errors import guard

SMALL = (
    "backbone.options.width=16",
    "batch=8",
    "schedule.images=16",
    "tensorboard=false",
    "device=cpu",
    "schedule.warmup_epochs=0",
)


def picture(draw, tone):
    return Image.fromarray((draw.integers(0, 90, (14, 12, 3)) + tone).astype(np.uint8))


def filled(folder: Path, names: list[str]) -> Path:
    """Coloured pictures under these names, brighter from class to class."""
    draw = np.random.default_rng(0)
    tones = {part: 50 * i for i, part in enumerate(sorted({str(Path(name).parent) for name in names}))}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(draw, tones[str(Path(name).parent)]).save(folder / name)
    return folder


CLASSES = [f"{c}/{i}.png" for c in "abc" for i in range(8)]
LAYOUTS = {
    "a folder per class": CLASSES,
    "parts with a folder per class": [
        f"{part}/{name}" for part, share in (("train", CLASSES), ("val", CLASSES[::2])) for name in share
    ],
    "pictures in one folder": [f"{i}.png" for i in range(20)],
    "pictures in folders that are no classes": [f"2024/{m:02d}/{i}.png" for m in (1, 2) for i in range(8)],
}


def packed(folder: Path) -> Path:
    """train.zip, train_map.txt and the same of val: ImageNet's layout of PIC's authors, and their text lists."""
    plain = filled(folder / "plain", CLASSES)
    (folder / "zips").mkdir()
    for part, names in (("train", CLASSES), ("val", CLASSES[::2])):
        with zipfile.ZipFile(folder / "zips" / f"{part}.zip", "w") as archive:
            for name in names:
                archive.write(plain / name, name)
        (folder / "zips" / f"{part}_map.txt").write_text("".join(f"{name}\t{'abc'.index(name[0])}\n" for name in names))
    return folder / "zips"


def finished(capsys, tmp_path, *words: str) -> str:
    """The printed next command of a small run."""
    status = guard(lambda: reproduce(["simclr_digits", *words, *SMALL, f"out={tmp_path / 'my runs'}"]))
    out, err = capsys.readouterr()
    assert status == 0, err
    line = out.strip().splitlines()[-1]
    assert line.startswith("next: python -m evaluations ")
    return line.removeprefix("next: ")


def obeyed(capsys, monkeypatch, tmp_path, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    status = guard(lambda: evaluate(shlex.split(command)[3:]))
    out, err = capsys.readouterr()
    assert status == 0, (command, err)
    assert all(Path(line).exists() for line in out.splitlines() if line.endswith((".json", ".csv", ".jpg"))), out


NAMES = {
    "data=": lambda kind, place: [f"dataset={kind}", f"data={place}"],
    "dataset= a path": lambda kind, place: [f"dataset={place}"],
    "SELFZOO_DATA": lambda kind, place: [f"dataset={kind}"],
    "a list of names": lambda kind, place: [
        f"dataset={kind}",
        f"data={place}",
        f"split=train@{place.parent / 'list.txt'}",
    ],
}


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_next_command_works_as_printed_after_training_on_own_images(capsys, monkeypatch, tmp_path, way, layout):
    labelled = "class" in layout and "no classes" not in layout
    kind = "folder" if labelled else "images"
    if way == "dataset= a path" and not labelled:
        kind = "folder"  # a path is read as a folder per class where it has some
    place = filled(tmp_path / kind, LAYOUTS[layout])  # SELFZOO_DATA/folder, SELFZOO_DATA/images
    names = [name.removeprefix("train/") for name in LAYOUTS[layout] if not name.startswith("val/")]
    (tmp_path / "list.txt").write_text("\n".join(names[:16]) + "\n")
    monkeypatch.setenv("SELFZOO_DATA", str(tmp_path))
    command = finished(capsys, tmp_path, *NAMES[way](kind, place))
    assert ("run knn_folder" in command) == labelled or way == "dataset= a path", command
    obeyed(capsys, monkeypatch, tmp_path, command)


@pytest.mark.parametrize("way", ["data=", "dataset= a path", "SELFZOO_DATA"])
def test_the_same_from_zips_with_their_lists(capsys, monkeypatch, tmp_path, way):
    packed(tmp_path).rename(tmp_path / "folder")
    monkeypatch.setenv("SELFZOO_DATA", str(tmp_path))
    command = finished(capsys, tmp_path, *NAMES[way]("folder", tmp_path / "folder"))
    assert "run knn_folder" in command
    obeyed(capsys, monkeypatch, tmp_path, command)


def test_a_shell_takes_the_command_as_it_stands(capsys, tmp_path):
    """Places with a blank and an apostrophe in their names, in a shell of its own."""
    place = filled(tmp_path / "grandma's photos", LAYOUTS["pictures in one folder"])
    command = finished(capsys, tmp_path, "dataset=images", f"data={place}")
    root = Path(launch.__file__).parents[1]
    done = subprocess.run(
        command.replace("python", shlex.quote(sys.executable), 1),
        check=False,
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0 and "montage.jpg" in done.stdout, done.stderr


def test_a_named_data_set_that_was_found_by_data_is_named_so_again():
    work = launch.job("swav_800ep", {"data": "/data/my imagenet"})
    assert (
        launch.next_command(work)
        == f"python -m evaluations suite {work.folder} 'only=*_imagenet*' 'data=/data/my imagenet'"
    )
    work = launch.job("swav_fashion_mnist", {"data": "/data/fm", "seed": 1})
    assert (
        launch.next_command(work)
        == "python -m evaluations run linear_fashion_mnist swav_fashion_mnist data=/data/fm pretrain_seed=1"
    )
