"""The classes of one part in the numbers of another: by name, and by number only where there is no name."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.data.classes import Classes, numbers, titled, titled_by_folder
from zoo.errors import UserError


def named(names, shown=None, **how):
    return Classes(tuple(names), np.ones(len(names), bool) if shown is None else np.array(shown, bool), **how)


def numbered(count, shown=None):
    return named([str(k) for k in range(count)], shown, named=False)


def test_names_decide_whatever_their_order():
    found, notes = numbers(named("abcd"), named("dba"))
    assert found.tolist() == [3, 1, 0] and notes == [
        "1 of 4 classes has images in train and none in the part: 'c'; scores are over the others"
    ]


def test_a_name_without_images_counts_for_nothing():
    assert numbers(named("ab"), named("bxa", [1, 0, 1]))[0].tolist() == [1, -1, 0]
    assert numbers(named("ab", [1, 0]), named("ab", [1, 0]))[1] == []


@pytest.mark.parametrize(
    "train, part, told",
    [
        (named("ab"), named("abx"), "class 'x' of val has no images in train:"),
        (named("ab"), named("yx"), r"class 'y' of val .* \(2 such classes: 'y', 'x'\)"),
        (named(["Ant", "bee"]), named(["ant", "bee"]), "class 'ant' of val .*did you mean 'Ant'"),
        (named("ab", [1, 0]), named("ab"), "class 'b' of val has no images in train"),
        (numbered(3, [1, 0, 1]), numbered(3), "class '1' of val"),
        (numbered(2), numbered(3), "class '2' of val"),
        (numbered(2), named("ab"), "class 'a' of val"),
        (named("aba"), named("ab"), "train has several classes called 'a'"),
        (named("ab"), named(["a", "a"]), "val has several classes called 'a'"),
        (
            named(["0", "1", "10", "2"]),
            numbered(4, [1, 1, 1, 0]),
            "numbers only: is its 1 the class '1' or the second one",
        ),
    ],
)
def test_what_cannot_be_joined_is_an_error(train, part, told):
    with pytest.raises(UserError, match=told):
        numbers(train, part, ("train", "val"))


def test_numbers_without_names_are_the_training_parts_numbers():
    found, notes = numbers(named("abc"), numbered(3))
    assert found.tolist() == [0, 1, 2] and notes == [
        "the part gives its classes by number only; its numbers are taken as those of train"
    ]
    assert numbers(named(["0", "1", "2"]), numbered(3))[1] == []
    assert numbers(numbered(3), named(["0", "2"]))[0].tolist() == [0, 2]
    assert numbers(numbered(3), numbered(2))[0].tolist() == [0, 1]


def test_lists_that_agree_may_name_two_classes_alike():
    """ImageNet has two cranes."""
    assert numbers(named(["crane", "crane", "a"]), named(["crane", "crane", "a"]))[0].tolist() == [0, 1, 2]


def test_several_labels_per_image_need_no_positive_in_the_training_part():
    train, part = (named("ab", shown, single=False) for shown in ([1, 0], [1, 1]))
    assert numbers(train, part)[0].tolist() == [0, 1]


def test_unlabelled_parts_have_nothing_to_join():
    assert numbers(named(""), named("ab"))[1] == [] and len(numbers(named("ab"), named(""))[0]) == 0


def test_titles_are_names_only_where_each_class_has_its_own():
    assert titled([(0, "a"), (2, "c"), (0, "a")], 4) == (["a", "#1", "c", "#3"], True)
    for pairs in ([(0, "a"), (1, "a")], [(0, "a"), (0, "b")], [(0, ""), (1, "b")], []):
        assert titled(pairs, 2) == (["0", "1"], False)


@pytest.mark.parametrize(
    "names, labels, expected",
    [
        (["a/0.png", "b/1.png"], [1, 0], ["b", "a"]),
        (["x/a/0.png", "x/b/1.png"], [0, 1], ["a", "b"]),
        (["a/x/0.png", "b/x/1.png"], [0, 1], ["a", "b"]),
        (["x/a/0.png", "x/a/1.png"], [2, 2], ["#0", "#1", "a"]),
        (["0.png", "1.png"], [0, 1], ["0", "1"]),
        (["a/0.png", "1.png"], [0, 1], ["0", "1"]),
        (["a/0.png", "a/1.png", "b/2.png"], [0, 1, 1], ["0", "1"]),
    ],
)
def test_folders_inside_an_archive_name_the_classes(names, labels, expected):
    assert titled_by_folder(names, np.array(labels), max(labels) + 1)[0] == expected
