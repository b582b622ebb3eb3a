"""What every source promises, whatever its layout: one list of samples, one list of checks."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
from data_samples import SAMPLES, loosened, stream

from zoo import data
from zoo.data import specs
from zoo.errors import UserError

every_source = pytest.mark.parametrize("kind", SAMPLES)
every_source_on_disk = pytest.mark.parametrize("kind", [k for k, sample in SAMPLES.items() if sample.build])
every_detection_source = pytest.mark.parametrize(
    "kind", [k for k in SAMPLES if k.startswith(("voc", "coco", "scenes"))]
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """datasets.yaml without fixed sizes, torchvision without its MD5 sums."""
    import torchvision

    patch = pytest.MonkeyPatch()
    table = loosened()
    patch.setattr(specs, "load", lambda *_: table)
    for module in ("cifar", "svhn", "stl10"):
        patch.setattr(getattr(torchvision.datasets, module), "check_integrity", lambda *_: True)
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield tmp_path_factory.mktemp("sets")
    patch.undo()


@pytest.fixture(scope="module")
def sources(small):
    """kind -> an opened source; each set is written once."""
    opened = {}
    for kind, sample in SAMPLES.items():
        if sample.build:
            sample.build(small / kind)
        opened[kind] = sample.open(small / kind)
    return opened


@pytest.fixture
def source(sources, kind):
    return sources[kind]


@every_source
def test_labels_names_and_length_agree(source):
    assert len(source) == len(source.labels) > 1
    assert source.labels.dtype == np.int64 and source.labels.shape == (len(source),)
    names = [source.name(i) for i in range(len(source))]
    assert len(set(names)) == len(names)
    assert [source.label(i) for i in range(len(source))] == source.labels.tolist()
    assert type(source.label(0)) is int
    if source.labelled:
        assert source.labels.min() >= 0 and source.labels.max() < len(source.classes)
    else:
        assert (source.labels == -1).all()
    if source.targets is not None:
        assert source.targets.shape == (len(source), len(source.classes)) and set(np.unique(source.targets)) <= {
            0,
            1,
            255,
        }


@every_source
def test_images_are_uint8_in_the_stated_mode(source):
    spec = data.describe(source.dataset)
    for i in (0, len(source) - 1):
        image, pixels = source.image(i), source.pixels(i)
        assert image.mode == ("RGB" if source.channels == 3 else "L") and spec.channels == source.channels
        assert pixels.dtype == np.uint8 and pixels.shape[:2] == image.size[::-1]
        assert pixels.shape[2:] == ((3,) if source.channels == 3 else ())
        assert np.array_equal(pixels, np.asarray(image))
    if source.array is not None:
        assert source.array.shape[0] == len(source) and np.array_equal(source.array[1], source.pixels(1))


@every_source
@pytest.mark.parametrize("index", [-1, "end"])
def test_an_index_outside_is_an_error(source, index):
    at = len(source) if index == "end" else index
    for ask in (source.image, source.label, source.pixels):
        with pytest.raises(IndexError):
            ask(at)


@every_source
def test_a_second_opening_and_a_pickled_copy_are_the_same(source, small, kind):
    again = SAMPLES[kind].open(small / kind)
    copy = pickle.loads(pickle.dumps(source))
    assert source.fingerprint == again.fingerprint == copy.fingerprint
    assert len(source.fingerprint) == 32 and int(source.fingerprint, 16) >= 0
    assert stream(again) == stream(copy) == stream(source)


@every_source
def test_a_pickle_holds_no_open_file_and_is_small(source):
    source.image(0)
    assert len(pickle.dumps(source)) < 200_000 + (0 if source.array is None else source.array.nbytes)


@every_source_on_disk
def test_the_fingerprint_is_the_same_on_another_machine(source, small, kind, tmp_path):
    shutil.copytree(small / kind, tmp_path / "elsewhere" / kind)
    there = SAMPLES[kind].open(tmp_path / "elsewhere" / kind)
    assert there.fingerprint == source.fingerprint
    assert [there.name(i) for i in range(len(there))] == [source.name(i) for i in range(len(source))]


@every_source
def test_a_subset_holds_those_items_in_that_order(source):
    part = source.subset([1, 0, len(source) - 1])
    assert [part.name(i) for i in range(3)] == [source.name(i) for i in (1, 0, len(source) - 1)]
    assert part.labels.tolist() == source.labels[[1, 0, -1]].tolist()
    assert np.array_equal(part.pixels(0), source.pixels(1)) and np.array_equal(
        part.pixels(2), source.pixels(len(source) - 1)
    )
    assert part.fingerprint != source.fingerprint
    assert part.subset([1, 0]).fingerprint == source.subset([0, 1]).fingerprint
    assert source.subset(np.arange(len(source))).fingerprint == source.fingerprint
    assert (part.dataset, part.split, part.classes, part.channels) == (
        source.dataset,
        source.split,
        source.classes,
        source.channels,
    )
    if source.targets is not None:
        assert np.array_equal(part.targets[0], source.targets[1])


@every_source
@pytest.mark.parametrize("wrong", [[-1], [10**6], [0.5], [[0]], [True, False]])
def test_a_subset_refuses_what_is_not_a_list_of_positions(source, wrong):
    with pytest.raises(UserError, match="subset"):
        source.subset(wrong)


@every_detection_source
def test_detection_sources_keep_their_objects_in_subsets(source):
    part = source.subset([1, 0])
    for i in range(len(source)):
        found = source.objects(i)
        assert found.boxes.shape == (len(found), 4) and found.boxes.dtype == np.float64
        width, height = source.image(i).size
        assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, 2:] <= (width, height)).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and (found.area > 0).all()
        masks, picture = source.masks(i), source.segmentation(i)
        assert masks.shape == (len(found), height, width) and picture.shape == (height, width)
        shown = {source.classes[k] for k in found.classes[~found.difficult & ~found.crowd]}
        assert shown == {source.classes[k] for k in np.flatnonzero(source.targets[i] == 1)}
    assert np.array_equal(part.objects(0).boxes, source.objects(1).boxes)
    assert np.array_equal(part.segmentation(1), source.segmentation(0))
    assert list(part.image_ids) == [source.image_ids[1], source.image_ids[0]]


@every_source_on_disk
def test_a_missing_folder_is_named(small, kind, tmp_path):
    with pytest.raises(data.DataMissing, match="nowhere does not exist.*Next: "):
        SAMPLES[kind].open(tmp_path / "nowhere")


@every_source_on_disk
def test_an_empty_folder_is_an_error_that_names_it(small, kind, tmp_path):
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match="hollow"):
        SAMPLES[kind].open(tmp_path / "hollow")


class Everything:
    """All sources behind one another, for one pass of a DataLoader."""

    def __init__(self, sources):
        self.sources = list(sources.values())
        self.items = [(s, i) for s, source in enumerate(self.sources) for i in range(min(len(source), 9))]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        s, i = self.items[k]
        source = self.sources[s]
        return s, source.name(i), source.label(i), source.pixels(i).tobytes()


def test_no_workers_and_two_workers_give_the_same_stream(sources):
    from torch.utils.data import DataLoader

    for source in sources.values():
        source.image(0)  # files are open before the fork
    everything = Everything(sources)
    alone, shared = (list(DataLoader(everything, batch_size=None, num_workers=n)) for n in (0, 2))
    assert alone == shared


def test_spawned_processes_see_the_same_and_agree_on_fingerprints(sources):
    chosen = {kind: s.subset(range(min(len(s), 9))) for kind, s in sources.items()}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        streams = pool.map_async(stream, chosen.values())
        prints = pool.map_async(fingerprint, chosen.values())
        assert streams.get(60) == [stream(s) for s in chosen.values()]
        assert prints.get(60) == [s.fingerprint for s in chosen.values()]


def fingerprint(source):
    source.__dict__.pop("fingerprint", None)  # computed over there, not carried over
    return source.fingerprint


def test_layouts_of_the_same_files_share_a_fingerprint(sources):
    same = {sources[kind].fingerprint for kind in ("folder", "zip", "zip_part", "zip_full", "shards")}
    assert len(same) == 1
    others = {s.fingerprint for kind, s in sources.items() if kind not in ("zip", "zip_part", "zip_full", "shards")}
    assert len(others) == len(sources) - 4 - 1  # voc2007's two tasks list the same images here


def test_the_fingerprint_notices_names_sizes_labels_and_order(small, tmp_path):
    from data_samples import folders, picture

    root = folders(tmp_path / "set", parts=("train",))
    before = data.open_source("folder", "train", root).fingerprint
    seen = {before, data.open_source("folder", "train", root).subset(range(11, -1, -1)).fingerprint}
    (root / "train/ant/ant_0.jpg").rename(root / "train/ant/ant_9.jpg")
    seen.add(data.open_source("folder", "train", root).fingerprint)
    picture(root / "train/ant/ant_1.JPEG", 999, size=(30, 30))
    seen.add(data.open_source("folder", "train", root).fingerprint)
    (root / "train/bee/bee_3.JPEG").rename(root / "train/ant/bee_3.JPEG")
    seen.add(data.open_source("folder", "train", root).fingerprint)
    assert len(seen) == 5


def test_the_fingerprint_notices_a_label_alone(small, sources, tmp_path):
    shutil.copytree(small / "zip", tmp_path / "zip")
    lines = (tmp_path / "zip/train_map.txt").read_text().replace("ant/ant_0.jpg\t0", "ant/ant_0.jpg\t1")
    (tmp_path / "zip/train_map.txt").write_text(lines)
    relabelled = data.open_source("folder", "train", tmp_path / "zip")
    assert relabelled.label(0) == 1 and relabelled.fingerprint != sources["zip"].fingerprint
    digits = sources["digits"]
    assert data.ArraySource(digits.array, digits.labels[::-1], digits.classes, "x").fingerprint != digits.fingerprint


def test_folders_are_read_in_image_folders_order(tmp_path):
    from data_samples import picture
    from torchvision.datasets import ImageFolder

    names = [
        "b/x.jpg",
        "a b/y.png",
        "a/z/1.jpg",
        "a/z-/1.jpg",
        "a/z/0.jpg",
        "a/0.jpg",
        "é/ü.JPEG",
        "Z/k.bmp",
        "a/.hidden.jpg",
    ]
    for k, name in enumerate(names):
        picture(tmp_path / "train" / name, k)
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    theirs = ImageFolder(
        str(tmp_path / "train"),
        is_valid_file=lambda p: p.lower().endswith(("jpg", "png", "jpeg", "bmp")) and "/." not in p,
    )
    ours = data.open_source("folder", "train", tmp_path)
    assert [ours.where(i) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets and list(ours.classes) == theirs.classes
