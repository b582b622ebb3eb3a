"""The data in git: every record, every published number and every generated table, as they are now."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from result_samples import sample

from results import __main__ as cli
from results import generate, published, tables
from results.pages import FOLDER, README
from results.record import COMMITTED, Metric, files, read, write
from results.store import REPOSITORY, RecordStore, load
from zoo.errors import UserError
from zoo.yamlfile import load_mapping

PROTOCOLS = REPOSITORY / "evaluations" / "protocols"
RECORDS = list(files(COMMITTED))
CATALOGUE = published.Catalogue()
SPECS = tables.load()


@cache
def build(name: str) -> tables.Built:
    return tables.build(tables.pick(SPECS, name)[0], RecordStore([COMMITTED]), CATALOGUE)


def problems(root: Path) -> list[str]:
    """What is wrong with the records below a root; each as one sentence."""
    try:
        stored = load(root)
    except Exception as error:
        if not getattr(type(error), "user_error", False):
            raise
        return [str(error)]
    found, models = [], set(CATALOGUE.models())
    for path, record in ((s.path, s.record) for s in stored):
        protocol = PROTOCOLS / f"{record.protocol}.yaml"
        if record.model not in models:
            found.append(f"{path}: no model {record.model!r} in the zoo")
        if not protocol.is_file():
            found.append(f"{path}: no protocol {record.protocol!r}")
        elif load_mapping(protocol)["version"] != record.version:
            found.append(
                f"{path}: measured with @{record.version}, the protocol is @{load_mapping(protocol)['version']}"
            )
        if record.pretrain_seed is not None and record.pretrain_command is None:
            found.append(f"{path}: a pre-training seed and no command that pre-trains")
        if record.selection is not None and record.test_reads != 1:
            found.append(f"{path}: the test split was read {record.test_reads} times, with hyper-parameters to choose")
        if record.provenance.git.dirty:
            found.append(f"{path}: made by uncommitted code")
        for command in (record.command, record.pretrain_command or ""):
            if re.search(r"(^|[\s=])(/|~|\.\.)", command) or "--record" in command:
                found.append(f"{path}: {command!r} names a place of one machine")
        for name, metric in record.metrics.items():
            if not 0 <= metric.value <= 100 and name != "ari":
                found.append(f"{path}: {name} is {metric.value}, not a percentage")
            if metric.n is None or metric.ci is None:
                found.append(f"{path}: {name} has no number of samples or no interval")
    return found


def test_every_committed_record_is_whole_in_place_and_replayable():
    assert problems(COMMITTED) == []


BREAK = {
    "unknown model": {"model": "swaw_digits"},
    "unknown protocol": {"protocol": "linear_dgits"},
    "old version": {"version": 99},
    "no command": {"pretrain_command": None},
    "a place": {"command": "python -m evaluations run linear_digits swav_digits data=/home/me"},
    "a fraction": {"value": -0.93},
    "no interval": {"metrics": {"top1": Metric(value=80.0, n=540)}},
}


@pytest.mark.parametrize("what", [*BREAK, "truncated", "misplaced", "twice"])
def test_a_broken_copy_is_noticed(tmp_path, what):
    version = load_mapping(PROTOCOLS / "linear_digits.yaml")["version"]
    good = {"version": version}
    path = write(sample(**good), tmp_path)
    assert problems(tmp_path) == []
    if what == "truncated":
        path.write_text(path.read_text()[:-20])
    elif what == "misplaced":
        path.rename(path.with_name("other.json"))
    elif what == "twice":
        other = write(sample(weights_sha256="b" * 64, **good), tmp_path / "x")
        shutil.move(other, path.parent)
        shutil.rmtree(tmp_path / "x")
    else:
        path.unlink()
        write(sample(**{**good, **BREAK[what]}), tmp_path)
    assert len(problems(tmp_path)) == 1


def test_tables_and_readme_are_what_the_records_say():
    assert cli.main(["tables", "--check"]) == 0


def test_figures_are_what_the_records_say():
    assert cli.main(["figures", "--check"]) == 0


def test_every_published_number_has_a_source_and_a_row_that_exists():
    facts = [fact for model in CATALOGUE.models() for fact in CATALOGUE.facts(model)] + CATALOGUE.outside
    assert len(facts) > 10
    for fact in facts:
        assert len(fact.published.source) > 8, fact
        assert fact.published.origin in ("authors", "quoted") or fact.published.by, fact
        assert "recalled" not in f"{fact.published.source} {fact.published.note}", fact


def test_mapped_and_external_facts_are_all_printed_somewhere():
    shown = {id(c.fact) for spec in SPECS for _, row in build(spec.id).rows for c in row if c.fact}
    unused = [f for f in [*CATALOGUE.mapped, *CATALOGUE.outside] if id(f) not in shown]
    assert not unused, "a number that no table prints does not belong in results/*.yaml"


@pytest.mark.parametrize("name", [spec.id for spec in SPECS])
def test_every_printed_number_leads_to_a_record_or_a_source(name):
    """Recomputed here from the files that the page names, not from what the renderer kept."""
    page = (FOLDER / f"{name}.md").read_text()
    built = build(name)
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page)  # without the addresses of links
    body = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(body) == len(built.rows)
    for (label, row), text in zip(built.rows, body, strict=True):
        for column, cell, shown in zip(built.table.columns, row, [t.strip() for t in text[1:]], strict=True):
            if column.kind == "published" and shown:
                clock = re.match(r"(\d+) min (\d+) s", shown)
                number = 60 * int(clock[1]) + int(clock[2]) if clock else float(re.match(r"[\d.]+", shown)[0])
                assert cell.fact.published.value == number and cell.fact.published.source in words
            elif column.kind == "measured" and shown:
                lines = [x.partition(": [") for x in page.splitlines() if x.startswith(f"- `{label}`, ")]
                entry = next("[" + x[2] for x in lines if column.head in x[0].partition(", ")[2].split("; "))
                linked = [(FOLDER / p).resolve() for p in re.findall(r"\]\((.*?)\)", entry)]
                metric = column.question[2]
                values = [json.loads(p.read_text())["metrics"][metric]["value"] for p in linked]
                number = re.match(r"[\d.]+", shown)[0]
                digits = len(number.partition(".")[2])
                assert float(number) == pytest.approx(sum(values) / len(values), abs=0.51 * 10**-digits)
                assert f"({len({read(p).pretrain_seed for p in linked})}" in shown


def test_published_columns_print_what_the_registry_holds():
    by_hand = {"swav_100ep": "72.1", "swav_800ep": "75.3", "swav_rn50w5_400ep": "78.5", "swav_400ep_2x224": "70.1"}
    readme = README.read_text().partition("<!-- table:swav_zoo -->")[2].partition("<!-- /table -->")[0]
    for model, value in by_hand.items():
        line = next(x for x in readme.splitlines() if x.startswith(f"| {model} "))
        assert f" {value} " in line


def test_every_marker_in_readme_has_its_source_in_the_same_block():
    for shown in re.findall(r"<!-- table:.*? -->\n(.*?)<!-- /table -->", README.read_text(), re.DOTALL):
        table, _, rest = shown.partition("\n\n")
        used, said = set(re.findall(r" \[(\d+)\]", table)), set(re.findall(r"(?:^|[ ;])\[(\d+)\] ", rest, re.MULTILINE))
        assert used == said, shown[:80]


def test_measured_columns_name_protocols_that_exist_in_that_version():
    for spec in SPECS:
        for column in spec.columns:
            for protocol, version, _ in column.questions if column.kind == "measured" else ():
                file = PROTOCOLS / f"{protocol}.yaml"
                assert not file.is_file() or version == load_mapping(file)["version"], (spec.id, column.head)


# ---------------------------------------------------------------- the command line, on what is committed


def test_the_commands_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "swav_800ep"]) == 0
    assert "75.3" in capsys.readouterr().out
    assert cli.main(["site", "--to", str(tmp_path / "x")]) == 0
    assert "swav_800ep" in (tmp_path / "x" / "index.html").read_text()
    assert cli.main(["tables", "--only", "swav_zoo", "--to", str(tmp_path / "pages")]) == 0
    assert [p.name for p in (tmp_path / "pages").iterdir()] == ["swav_zoo.md"]
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("x", "pages")] == []


def test_a_users_records_can_be_listed_and_shown(tmp_path, capsys):
    path = write(sample(model="my-net", seed=None), tmp_path)
    assert cli.main(["show", "my-*", "--root", str(tmp_path)]) == 0
    assert cli.main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "my-net" in out and '"weights_sha256"' in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tables", "--only", "swav_zo"], "did you mean 'swav_zoo'"),
        (["tables", "--root", "no-such-folder"], "no such folder of records"),
        (["compare", "swav_80ep"], "did you mean 'swav_800ep'"),
        (["show", "no-such-model"], "no record of"),
        (["replay", "none.json"], "no such record"),
        (["site", "--to", "README.md"], "cannot write README.md/[a-z/_.]*: .*; choose another place with --to"),
    ],
)
def test_mistakes_are_user_errors(words, said):
    with pytest.raises(Exception, match=said) as error:
        cli.main(words)
    assert getattr(type(error.value), "user_error", False)


def test_the_demo_can_render_one_table_from_records_alone(tmp_path):
    version = load_mapping(PROTOCOLS / "linear_digits.yaml")["version"]
    record = sample("random_digits", value=77.0, version=version)
    metrics = {
        "top1": record.metrics["top1"],
        "top1_best_on_test": type(record.metrics["top1"])(value=78.0, style="paper"),
    }
    write(sample("random_digits", metrics=metrics, version=version), tmp_path / "measured")
    page = generate.render_to("digits", roots=[tmp_path / "measured"], folder=tmp_path / "tables")
    assert page == tmp_path / "tables" / "digits.md" and "77.0 ± – / 3.0 (1)" in page.read_text()
    with pytest.raises(UserError, match="no table"):
        generate.render_to("digit", roots=[], folder=tmp_path)


def test_the_table_that_the_docs_show_is_one(tmp_path):
    text = (REPOSITORY / "docs" / "results.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "tables.yaml").write_text("tables:\n" + example)
    (table,) = tables.load(tmp_path / "tables.yaml")
    assert (
        tables.build(table, RecordStore([tmp_path / "none"]), CATALOGUE).rows == ()
    )  # nothing measured, such rows are hidden
    assert len(tables.row_names(table, CATALOGUE)) == 2
