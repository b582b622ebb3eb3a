"""The list of deviations: every known one of the five families, one id each, settings that exist, every row on the page."""

import pytest
import yaml

import zoo
from evaluations import protocol
from reproduce import deviations, methods
from zoo import registry, settings

# What is known of each family's released code, collected by reading it: id -> subject. A row that is missing here or there fails.
KNOWN = {
    "DeeperCluster, DeepCluster, RotNet": """
        drc-eval-sobel           evaluation scripts always switch Sobel on
        drc-sobel-merge          the merger into the first convolution fills 9 of 25 taps
        weights-missing-file     a missing file means random weights
        drc-warm-restart         warm_restart, epoch and start_iter do nothing
        drc-resume               a resume looks for files that are never written
        drc-empty                empty clusters: one victim, a step near rounding, counts of all on labels of one
        drc-sizes                sizes that crash: data smaller than asked, k above n, whitening above n
        drc-zero-rows            a zero vector becomes NaN and loses its label
        drc-cache                a fixed number of rows in the feature cache
        drc-label-gaps           the sampler took labels for positions
        old-libraries            float labels, np.long, async, .data[0], view of a slice
        drc-voc-split            the script for conv13 on VOC trains on train
        drc-kfold                folds: contiguous, incomplete, folders only
        drc-probe-processes      processes do the same work, AP of one share
        drc-finetune-order       fine-tuning without set_epoch, top-1 only
        dc-resume-dict           resume deletes from a dictionary it walks through
        dc-caffe-indices         indices of linear layers differ between networks
        dc-sobel-variants        two Sobel paddings
        drc-conv-range           a layer beyond 13 runs everything
        drc-dataset-by-path      words in the path choose the data set; the output folder must exist
        dc-train-mode            features of a network in training mode
        dc-layer-order           the last ReLU goes and comes
        drc-rotations-alone      clustering for nothing when only rotations are predicted
        drc-epoch-quarter        a quarter of the data is an epoch, rotations or not
        drc-tails                images beyond the last batch have no cluster
        drc-groups               as many processes as super-classes
        drc-loader-names         names that the loader does not know
        drc-scripts              scripts that cannot run
        dc-faiss-seed            k-means from an unknown start
        dc-empty                 empty clusters are left to faiss
        dc-nmi                   agreement with the assignment before, not with labels
        dc-pic-precision         power iteration in float32
        dc-pic-singletons        clusters of one image
        dc-voc-batchnorm         FC6-8 with trained batch-norm scales (erratum)
        dc-probe-crops           crops from a central square
        eval-best-epoch          the best epoch on the test split is printed
        rotnet-nominal-lr        the nominal rate is never used
    """,
    "SeLa": """
        sela-dead-cluster        a dead cluster turns everything NaN
        sela-softmax             softmax without the maximum
        sela-scatter             labels scattered onto a permutation of themselves
        sela-knn-last-batch      kNN overwrites features of the last batch
        sela-tencrops            tencrops: undefined in one probe, inverted in the other
        sela-resume-files        resume overlooks checkpoints
        sela-ignored-options     options that do nothing
        sela-test-knn            the checkpoint is chosen on the test set
        sela-cifar-heads         one head per event on CIFAR
        sela-data-path           train appended twice
        sela-extra-epoch         one epoch more
        sela-last-labeling       the last event behind the end
        sela-train-mode          labels from a network in training mode
        sela-iterations          plain iterations
        sela-converter           the converter does not run and drops the head
        sela-labels-key          labels or L
        sela-resnet-size         ResNets with a fixed window and head
        sela-rotation-single     rotation retraining with one head
        sela-rotation-accuracy   rotation accuracy above 1
        sela-rotation-start      old initialisations
        sela-rotation-folder     retraining overwrites checkpoints
        probe-train-mode         probes with the trunk in training mode (also PIC)
    """,
    "SwAV, DeepCluster-v2, SeLa-v2": """
        swav-queue-state         the queue is not in the checkpoint
        swav-queue-zero          a short queue becomes none
        swav-sinkhorn-overflow   exp without the maximum
        swav-scores-half         scores in half precision
        swav-hard                hard assignments are missing
        swav-larc-zero-norm      LARC where a norm is zero
        swav-blur-library        OpenCV's blur against PIL's
        swav-blur-rng            shared and unseeded random states
        swav-std                 0.228
        swav-hub                 hub: random classifier, .cuda(), src
        weights-silent           files that fit in part are taken (also PIC)
        swav-checkpoint          checkpoints written in place, by all
        swav-schedule-length     the schedule follows the present loader
        swav-launch              variables of a launcher, the first digit of SLURM's
        swav-eval-ranks          every process scores everything
        swav-probe-w5            the probe stops at RN50w5
        swav-semisup-list        lists downloaded by every process
        dcv2-bank-state          the bank is bound to the number of processes
        dcv2-first-bank          the first bank is filled in training mode
        dcv2-start-rows          starts from the first process only
        dcv2-memory              all similarities at once
        selav2-no-trainer        no code
    """,
    "Un-Mix": """
        unmix-flip               only one assignment is read backwards
        unmix-lambda             boxes change the weight
        unmix-queue              NameError with a full queue
        unmix-batch-size         the option instead of the batch; options not read
        unmix-temperature        a temperature that is not used
        unmix-resnet18           bottlenecks and an extra border
        unmix-symmetric          one mixture in both directions
        unmix-partner            partners by reversal
        unmix-cifar-std          two deviations on CIFAR
    """,
    "PIC, InstDisc, MoCo, SimCLR": """
        pic-window-modulo        the window wraps around itself
        pic-crops-axis           colours taken for crops
        pic-val-drop-last        the last validation batch is dropped
        instdisc-memory-axis     memory normalised over the wrong axis
        instdisc-memory-local    a memory per process
        instdisc-partition       stale rows when images move between processes
        instdisc-nce             softmax instead of NCE
        pic-best-acc             best accuracy that is the latest
        pic-local-rank           --local_rank
        pic-config-json          config written too early
        pic-default-crop         defaults that are not the script's
        pic-nan                  NaN in long runs
        pic-window-epochs        windows instead of epochs
        pic-window-resume        the sampler's state is incomplete
        pic-negatives            negative sampling and correction unreleased
        pic-matrix-copies        every process holds all classes
        pic-milestones           steps of the rate are not rescaled
        pic-warmup-division      E/40 in whole numbers
        pic-zip-handles          handles opened before fork
        pic-small-cache          fewer than ten images
        pic-readme-map           the README's list of files
        moco-queue-multiple      queue lengths
        moco-one-process         nothing is shuffled within a process
        moco-view-order          orders of gray, jitter and flip
        simclr-detached-gather   no gradient through gathered features
        simclr-views-apart       batch statistics of each view
        simclr-mask              1e9 in float16
    """,
}
SUBJECTS = {
    line.split()[0]: " ".join(line.split()[1:]) for text in KNOWN.values() for line in text.strip().splitlines()
}
EVERY = [(name, row) for name, rows in deviations.collected().items() for row in rows]


def test_every_known_difference_is_listed_and_nothing_is_listed_unknown():
    listed = {row.id for _, row in EVERY}
    assert not {id: SUBJECTS[id] for id in SUBJECTS.keys() - listed}
    assert not listed - SUBJECTS.keys()
    assert sum(len(text.strip().splitlines()) for text in KNOWN.values()) == len(SUBJECTS)


def test_ids_are_unique_over_all_methods_and_the_page_has_a_row_for_each():
    ids = [row.id for _, row in EVERY]
    assert len(ids) == len(set(ids))
    page = deviations.page()
    assert all(page.count(f"\n| {one} |") == 1 for one in ids)


def test_every_row_says_what_is_released_and_what_is_done_here():
    assert not [row.id for _, row in EVERY if not (row.paper and row.release and row.ours)]
    assert not [
        row.id for _, row in EVERY if "|" in row.paper + row.release + row.ours + row.option
    ]  # would break the table


@pytest.mark.parametrize(
    ("name", "row"), [pair for pair in EVERY if pair[1].option], ids=lambda value: getattr(value, "id", "")
)
def test_every_setting_named_can_be_set_and_is_not_the_default(name, row):
    words = settings.parse(row.option.split())
    if row.where in protocol.names():
        plain, changed = protocol.load(row.where), protocol.load(row.where, words)
        assert protocol.complete(plain) != protocol.complete(changed)
        return
    listing = [method for method in registry.methods() if row in methods.find(method).deviations]  # MoCo's are two
    models = (
        [row.where]
        if row.where
        else [m for m in zoo.models() if zoo.entry(m).method in listing and zoo.entry(m).recipe]
    )
    assert models
    assert any(zoo.resolve(model, words).hash() != zoo.resolve(model).hash() for model in models)


def test_a_row_with_an_unknown_field_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump({"data": [{"id": "a", "release": "b", "ours": "c", "setting": "d"}]}))
    monkeypatch.setattr(deviations, "ELSEWHERE", file)
    with pytest.raises(TypeError, match="setting"):
        deviations.collected()


def test_methods_without_their_own_file_of_deviations_inherit_none():
    own = {name: methods.find(name).deviations for name in methods.names()}
    assert own["random"] == own["pixels"] == own["supervised"] == ()
