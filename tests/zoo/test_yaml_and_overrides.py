"""YAML says what a person reads in it, and command-line words change what they name and nothing else."""

from __future__ import annotations

import errno

import pytest
import yaml

from zoo import yamlfile
from zoo.errors import UserError, guard
from zoo.settings import apply, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("4.8", 4.8), ("-3", -3), ("+2", 2), ("1_000", 1000), (".5", 0.5), ("5.", 5.0), ("1E6", 1e6), ("-1.5e+3", -1500.0),
        ("on", "on"), ("no", "no"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("2024-01-31", "2024-01-31"), ("12:30", "12:30"), ("0", 0), ("0.1", 0.1), ("'010'", "010"), ("2x224", "2x224"),
        ("[1, 2.0, a]", [1, 2.0, "a"]), ("{on: 1}", {"on": 1}), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_scalars_are_what_a_person_reads(text, value):
    found = yamlfile.loads(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"f\.yaml:3:1: duplicate key 'a' \(first given in line 1\)"),
        ("x:\n  lr: 010\n", r"f\.yaml:2:7: 010 would be an octal number in YAML: write 10, or quote it"),
        ("a: &x 1\nb: *x\n", "anchors and aliases"),
        ("a: &x [*x]\n", "anchors and aliases"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ("a: [1, 2\nb: 3\n", r"f\.yaml:2:"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ("[" * 5000 + "]" * 5000, r"^f\.yaml"),  # whether PyYAML's own limit or ours comes first depends on its version
        ("a: \x07\n", r"f\.yaml"),
    ],
)
def test_traps_are_errors_with_a_place(text, message):
    with pytest.raises(UserError, match=message):
        yamlfile.loads(text, "f.yaml")


def test_missing_and_binary_files_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read: No such file"):
        yamlfile.load(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        yamlfile.load(tmp_path / "b.yaml")
    (tmp_path / "l.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping of fields, found"):
        yamlfile.load_mapping(tmp_path / "l.yaml")


def test_locate_finds_the_deepest_part_that_exists(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("a:\n  b:\n    - x: 1\n    - {y: 2}\n")
    assert yamlfile.locate(file, ("a", "b", 1, "y")) == (4, 8)
    assert yamlfile.locate(file, ("a", "b", 0, "nothing")) == (3, 7)
    assert yamlfile.locate(file, ("other",)) is None


def test_dumps_reads_back():
    value = {"lr": 1e-6, "text": "1e-4", "on": [True, None, "010", "off"], "ünicode": "±"}
    assert yamlfile.loads(yamlfile.dumps(value)) == value
    assert list(yaml.safe_load(yamlfile.dumps({"b": 1, "a": 2}))) == ["b", "a"]


TREE = {
    "optimizer": {"name": "sgd", "lr": 0.1},
    "views": {"crops": [{"size": 8}, {"size": 4}], "blur": None},
    "options": {"width": 1},
}


def test_a_word_sets_exactly_its_path():
    found = apply(TREE, parse(["optimizer.lr=1e-4", "views.crops.1.size=6", "views.blur={probability: 0.5}"]))
    assert found["optimizer"] == {"name": "sgd", "lr": 1e-4} and found["views"]["crops"] == [{"size": 8}, {"size": 6}]
    assert found["views"]["blur"] == {"probability": 0.5}
    assert TREE["optimizer"]["lr"] == 0.1 and TREE["views"]["crops"][1]["size"] == 4, (
        "the original tree must not change"
    )


def test_mappings_merge_and_lists_replace():
    assert apply(TREE, {"optimizer": {"lr": 3}})["optimizer"] == {"name": "sgd", "lr": 3}
    assert apply(TREE, {"views.crops": [{"size": 1}]})["views"]["crops"] == [{"size": 1}]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimzer.lr=1", "unknown setting 'optimzer.lr'; did you mean 'optimizer.lr'"),
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("optimizer={lrr: 1}", "did you mean 'optimizer.lr'"),
        ("views.crops.2.size=1", "unknown setting"),
        ("views.crops.-1.size=1", "unknown setting"),
        ("views.blur.probability=1", "views.blur is null here; set it as a whole"),
        ("optimizer.lr.x=1", "optimizer.lr is a single value"),
        ("zzz=1", "known: optimizer, views, options"),
        ("options.depth=2", "unknown setting 'options.depth'"),
    ],
)
def test_a_misspelled_path_names_the_right_one(word, message):
    with pytest.raises(UserError, match=message):
        apply(TREE, parse([word]))


def test_only_a_free_path_takes_new_names():
    assert apply(TREE, {"options.depth": 2}, free=["options"])["options"] == {"width": 1, "depth": 2}
    assert apply(TREE, {"options": {"depth": 2}}, free=["options"])["options"] == {"width": 1, "depth": 2}
    with pytest.raises(UserError):
        apply(TREE, {"optimizer.depth": 2}, free=["options"])


@pytest.mark.parametrize("word", ["optimizer.lr", "=1", "a..b=1", ".a=1", ""])
def test_words_that_are_no_settings_are_refused(word):
    with pytest.raises(UserError, match="path=value"):
        parse([word])


def test_a_path_given_twice_and_broken_values_are_refused():
    with pytest.raises(UserError, match="given twice"):
        parse(["a=1", "a=2"])
    with pytest.raises(UserError, match=r"a=\[1"):
        parse(["a=[1"])


def fail(error):
    raise error


def test_guard_prints_user_errors_and_lets_bugs_through(capsys):
    class Foreign(Exception):
        user_error = True

    assert guard(lambda: None) == 0 and guard(lambda: 3) == 3
    assert guard(lambda: fail(UserError("the value"))) == 2 and capsys.readouterr().err == "error: the value\n"
    assert guard(lambda: fail(Foreign("engine"))) == 2 and "engine" in capsys.readouterr().err
    assert guard(lambda: fail(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        guard(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "", "/data/x.pth"), "/data/x.pth: Permission denied; name another place"),
        (OSError(errno.ENOSPC, ""), "the folder written to: No space left on device"),
        (NotADirectoryError(errno.ENOTDIR, "", "README.md/x"), "README.md/x: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_error_whatever_the_command(capsys, error, said):
    assert guard(lambda: fail(error)) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_file_that_should_be_there_and_is_not_is_a_bug():
    with pytest.raises(FileNotFoundError):
        guard(lambda: fail(FileNotFoundError(errno.ENOENT, "", "zoo/weights.lock")))
