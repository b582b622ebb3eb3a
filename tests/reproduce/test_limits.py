"""What cannot fit is refused before any work, by the plan and by the run in the same words, with a remedy that works."""

import numpy as np
import pytest
from PIL import Image

from reproduce import limits
from reproduce.__main__ import main
from reproduce.limits import Limit, Run
from zoo.errors import guard

SMALL = ("backbone.options.width=16", "tensorboard=false", "device=cpu")


def told(capsys, *words: str) -> tuple[int, str, str]:
    status = guard(lambda: main(list(words)))
    out, err = capsys.readouterr()
    return status, out, err


def instead(given: list[str], remedy: str) -> list[str]:
    """The words with the remedy in the place of what it sets."""
    return [word for word in given if word.split("=")[0] != remedy.split("=")[0]] + [remedy]


# digits: 1,258 images, batch 128, hence 9 steps and 1,152 images an epoch; 64 features; two views
REFUSED = [
    ("swav_digits", "params.queue.length=100", "must be at least the batch of 128", "params.queue.length=128"),
    (
        "swav_digits",
        "params.assign_crops=[0, 2]",
        "must be less than the 2 views of an image",
        "params.assign_crops=[0, 1]",
    ),
    (
        "unmix_digits params.base=swav",
        "params.swav.queue.length=127",
        "must be at least the batch of 128",
        "params.swav.queue.length=128",
    ),
    (
        "unmix_digits params.base=mocov2",
        "params.mocov2.queue=127",
        "must be at least the batch of 128",
        "params.mocov2.queue=128",
    ),
    ("unmix_digits", "batch=1", "must be at least 2", "batch=2"),
    ("mocov1_digits", "params.queue=127", "must be at least the batch of 128", "params.queue=128"),
    (
        "mocov2_digits params.symmetric=true",
        "params.queue=200",
        "must be at least 2 times the batch of 128",
        "params.queue=256",
    ),
    (
        "mocov2_digits",
        "params.splits=129",
        "must be at most the 128 images that a process has of a batch",
        "params.splits=128",
    ),
    (
        "deepclusterv2_digits",
        "params.prototypes=[60, 1153]",
        "must be at most the 1,152 images that the batches of an epoch hold",
        "params.prototypes=[60, 1152]",
    ),
    (
        "deepclusterv2_digits",
        "params.assign_crops=[2]",
        "must be less than the 2 views of an image",
        "params.assign_crops=[1]",
    ),
    (
        "selav2_digits",
        "params.prototypes=[3000]",
        "must be at most the 1,152 images that the batches of an epoch hold",
        "params.prototypes=[1152]",
    ),
    ("sela_digits", "params.clusters=1259", "must be at most the 1,258 images of the data set", "params.clusters=1258"),
    (
        "deepcluster_digits",
        "params.clusters=1259",
        "must be at most the 1,258 images of the data set",
        "params.clusters=1258",
    ),
    ("deepcluster_digits", "params.pca=65", "must be at most the 64 features of the backbone", "params.pca=64"),
    (
        "deepcluster_digits params.clustering=pic",
        "params.graph.neighbours=1258",
        "must be less than the 1,258 images",
        "params.graph.neighbours=1257",
    ),
    ("deepercluster_digits", "params.pca=65", "must be at most the 64 features of the backbone", "params.pca=64"),
    (
        "deepercluster_digits",
        "params.clusters=1259",
        "must be at most the 1,258 images of the data set",
        "params.clusters=1258",
    ),
    (
        "deepercluster_digits",
        "params.super_classes=6",
        "must be a multiple of 4: four turns of an image belong together",
        "params.super_classes=8",
    ),
    ("deepercluster_digits", "batch=130", "must be a multiple of params.super_classes=4", "batch=128"),
    (
        "pic_digits",
        "params.window.size=1259",
        "must be at most the 1,258 images of the data set",
        "params.window.size=1258",
    ),
    ("pic_digits", "params.class_sgd.lr=0", "optimizer.name=adamw must be sgd", "optimizer.name=sgd"),
    (
        "pic_digits params.class_sgd.lr=0 optimizer.name=sgd",
        "optimizer.nesterov=true",
        "must be false",
        "optimizer.nesterov=false",
    ),
    ("pic_digits", "optimizer.lr=0", "must be more than 0: the rate of the class rows moves with it", ""),
    ("simclr_digits", "batch=1", "must be at least 2", "batch=2"),
    ("simsiam_digits", "batch=1", "must be at least 2 times the number of processes, 1: batch norm", "batch=2"),
    (
        "pseudolabel_digits",
        "params.labels=kmeans:1259",
        "must be at most the 1,258 images of the data set",
        "params.labels=kmeans:1258",
    ),
    (
        "rotnet_digits",
        "backbone.options.in_channels=3",
        "input.channels=1: tiny_resnet takes 3",
        "backbone.options.in_channels=1",
    ),
    (
        "rotnet_digits input.mean=[0.5,0.5,0.5] input.std=[1,1,1]",
        "input.channels=3",
        "tiny_resnet takes 1",
        "backbone.options.in_channels=3",
    ),
    ("pixels_digits", "schedule.images=128", "must be 0: a reference row is not trained", "schedule.images=0"),
    ("random_digits", "schedule.epochs=1", "must be 0: a reference row is not trained", "schedule.epochs=0"),
    ("simclr_digits", "batch=1259", "larger than the 1258 images", "batch=1258"),
    ("simclr_digits", "views.crops.0.count=1", "at least 2 views", "views.crops.0.count=2"),
    ("simclr_digits", "init=no_such_model", "no model 'no_such_model'", ""),
]


@pytest.mark.parametrize("words, wrong, said, remedy", REFUSED, ids=[f"{w} {x}" for w, x, _, _ in REFUSED])
def test_plan_and_run_refuse_the_same_in_the_same_words_and_the_remedy_works(
    capsys, tmp_path, words, wrong, said, remedy
):
    model, *more = words.split()
    given = [model, *more, wrong, f"out={tmp_path}", *(SMALL if not model.startswith("pixels") else SMALL[1:])]
    planned = told(capsys, *given, "--plan")
    assert planned[0] == 2 and planned[2].startswith("error: ") and planned[2].count("\n") == 1, planned
    assert said in planned[2] and remedy in planned[2], planned[2]
    assert told(capsys, *given) == planned
    assert not list(tmp_path.rglob("*.*")), "nothing is written for a run that cannot be"
    if remedy:
        assert told(capsys, *instead(given, remedy), "--plan")[0] == 0


@pytest.fixture
def pictures(tmp_path):
    """Twenty colour pictures in one folder."""
    folder = tmp_path / "mine" / "train"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(draw.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder.parent


@pytest.mark.parametrize(
    "words, said",
    [
        (
            "deepcluster_digits params.pca=32 params.clusters=5",
            "params.pca=32 must be at most the 20 images of the data set; set params.pca=20, or params.pca=0",
        ),
        (
            "deepercluster_digits params.pca=32 params.clusters=5",
            "params.pca=32 must be at most the 20 images of the data set; set params.pca=20",
        ),
        ("sela_digits", "params.clusters=60 must be at most the 20 images"),
        ("deepcluster_digits params.pca=0", "params.clusters=20"),
        (
            "pic_digits params.window.size=30",
            "params.window.size=30 must be at most the 20 images of the data set; set params.window.size=20, or params.window.size=0",
        ),
        ("supervised_digits", "method supervised learns from labels, and its images have none"),
        (
            "deepcluster_digits backbone=alexnet input.channels=3 input.mean=[0,0,0] input.std=[1,1,1] params.clusters=5 params.pca=0",
            "views.crops.0.size=10: alexnet cannot take images of 3x10x10",
        ),
    ],
)
def test_a_handful_of_own_pictures_is_refused_before_anything_is_read(capsys, tmp_path, pictures, words, said):
    given = [
        *words.split(),
        f"data={pictures}",
        "dataset=images",
        "batch=8",
        "schedule.images=16",
        f"out={tmp_path / 'runs'}",
    ]
    if "params.clusters=20" in said:  # as many clusters as pictures: allowed
        assert told(capsys, *given, "--plan")[0] == 0
        return
    planned = told(capsys, *given, "--plan")
    assert planned[0] == 2 and said in planned[2] and planned[2].count("\n") == 1, planned
    assert told(capsys, *given) == planned and not (tmp_path / "runs").exists()


def test_labels_of_another_number_of_images_are_refused_by_the_plan(capsys, tmp_path):
    (tmp_path / "labels.csv").write_text("5,1\n1,0\n2,2\n")
    given = ["pseudolabel_digits", f"params.labels={tmp_path / 'labels.csv'}", f"out={tmp_path / 'runs'}"]
    planned = told(capsys, *given, "--plan")
    assert planned[0] == 2 and "labels of 3 images" in planned[2] and "1,258" in planned[2]
    assert told(capsys, *given) == planned


WARNED = [
    (
        "swav_digits params.queue.length=1280",
        "params.queue.start_epoch=45",
        "is not less than the 44.4 epochs of the run: the queue never takes part",
    ),
    ("swav_digits", "params.queue.length=3840", "is not at most the 1,258 images of the data set: earlier embeddings"),
    (
        "swav_digits",
        "params.queue.length=200",
        "is not a multiple of the batch of 128: it is rounded down to whole batches; set params.queue.length=256",
    ),
    (
        "swav_digits",
        "params.freeze_prototypes_steps=400",
        "is not less than the 400 steps of the run: the prototypes never move; set params.freeze_prototypes_steps=40",
    ),
    ("selav2_digits", "params.freeze_prototypes_steps=500", "the prototypes never move"),
    (
        "unmix_digits params.base=swav",
        "params.swav.freeze_prototypes_steps=5005",
        "is not less than the 400 steps of the run",
    ),
    ("swav_digits", "params.prototypes=1300", "some prototypes can have no image"),
    ("mocov2_digits", "params.queue=4096", "is not at most the 1,258 images of the data set"),
    ("instdisc_digits", "params.negatives=4096", "is not at most the 1,258 images of the data set"),
    ("pic_digits", "params.negatives=4096", "is not at most the 1,258 images of the data set: all classes take part"),
    ("sela_digits", "params.labelings=401", "is not at most the 400 steps of the run"),
    (
        "simclr_digits",
        "schedule.warmup_epochs=50",
        "is not less than the 44.4 epochs of the run: the learning rate never reaches optimizer.lr",
    ),
    (
        "simclr_digits schedule.name=step schedule.warmup_epochs=0",
        "schedule.milestones=[60, 80]",
        "the learning rate never falls",
    ),
]


@pytest.mark.parametrize("words, doubtful, said", WARNED, ids=[f"{w} {x}" for w, x, _ in WARNED])
def test_a_plan_that_cannot_work_as_meant_says_so(capsys, tmp_path, words, doubtful, said):
    given = [*words.split(), doubtful, f"out={tmp_path}", "schedule.images=51200"]
    status, out, err = told(capsys, *given, "--plan")
    lines = [line for line in out.splitlines() if line.startswith("warning ")]
    assert status == 0 and not err and any(doubtful.split("=")[0] in line and said in line for line in lines), out
    for line in lines:
        for remedy in line.partition("; set ")[2].split(", or "):
            status, out, _ = told(capsys, *instead(given, remedy), "--plan")
            assert status == 0 and line not in out, remedy


def test_a_run_says_its_doubts_once_at_the_start(capsys, tmp_path):
    words = ["swav_digits", "schedule.images=384", f"out={tmp_path}", *SMALL]
    planned = told(capsys, *words, "--plan")[1]
    doubts = [line.removeprefix("warning").strip() for line in planned.splitlines() if line.startswith("warning ")]
    assert (
        len(doubts) == 2
        and any("prototypes never move" in line for line in doubts)
        and any("warmup" in line for line in doubts)
    )
    status, _, err = told(capsys, *words)
    assert status == 0, err
    assert all(err.count(f"warning: {line}\n") == 1 for line in doubts)


@pytest.mark.parametrize(
    "model",
    [
        "swav_800ep",
        "swav_400ep_bs256",
        "deepclusterv2_400ep",
        "sela_alexnet_10k",
        "pic_400ep",
        "instdisc_pic_200ep",
        "mocov1_200ep",
        "unmix_swav_200ep_bs256",
        "deepercluster_vgg16_yfcc",
        "swav_digits",
        "sela_digits",
        "unmix_digits",
        "mocov2_digits",
    ],
)
def test_the_registrys_own_recipes_raise_no_doubt(capsys, model):
    status, out, _ = told(capsys, model, "--plan")
    assert status == 0 and "warning" not in out


def test_a_limit_speaks_of_value_bound_and_ways_out():
    run = Run(
        {"batch": 8, "params": {"k": [2, 9], "q": 0, "on": True, "m": 3}},
        images=7,
        features=4,
        views=2,
        processes=2,
        steps=10,
        steps_per_epoch=2,
    )
    assert (
        limits.beyond(Limit("params.k", "<=", "images"), run)
        == "params.k=[2, 9] must be at most the 7 images of the data set; set params.k=[2, 7]"
    )
    assert limits.beyond(Limit("params.q", ">=", "batch", off=0), run) == ""
    assert (
        limits.beyond(Limit("params.q", ">=", "part", times=2), run)
        == "params.q=0 must be at least 2 times the 4 images that a process has of a batch; set params.q=8"
    )
    assert limits.beyond(Limit("params.m", ">", "batch", when=lambda s: not s["params"]["on"]), run) == ""
    assert (
        limits.beyond(Limit("batch", "multiple of", "params.m", because="so"), run)
        == "batch=8 must be a multiple of params.m=3: so; set batch=9"
    )
    assert limits.beyond(Limit("params.no_such", "<", "epochs"), run) == ""
    moved = Limit("params.m", "<", "params.q", when=lambda s: s["params"]["on"]).within("group")
    inner = Run({"batch": 8, "params": {"group": {"m": 3, "q": 1, "on": True}}}, 7, 4, 2, 1, 10, 2)
    assert limits.beyond(moved, inner) == "params.group.m=3 must be less than params.group.q=1; set params.group.m=0"
