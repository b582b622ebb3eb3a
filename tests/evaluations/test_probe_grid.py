"""The probe grid benchmark runs, counts what goes through the network, and its three forms agree."""

from __future__ import annotations

from benchmarks import probe_grid


def test_the_forms_agree_and_the_ratio_of_passes_is_cells_times_epochs(tmp_path, capsys):
    file = tmp_path / "report.md"
    command = ["--dataset", "digits", "--images", "150", "--epochs", "2", "--rounds", "1", "--report", str(file)]
    assert probe_grid.main(command) == 0
    text = file.read_text()
    assert capsys.readouterr().out == text and "same score in 60 of 60 cells" in text and "same score in 5 of 5" in text
    row = {line.split("|")[1].strip(): line.split("|")[2:] for line in text.splitlines() if line.startswith("| ")}
    images = {form: cells[0].strip() for form, cells in row.items()}
    assert images["fast"] == "150" and images["shared"] == "450"  # one pass; two epochs and one scoring
    assert images["per cell"] == f"{60 * 2 * 150:,}" and row["per cell"][3].strip() == "120"
    assert images["per cell, scored once"] == f"{60 * (2 * 100 + 50):,}"


def test_forms_that_disagree_end_in_an_error(monkeypatch):
    bench = probe_grid.setting("digits", 90, 1)
    cell = bench.grid[0]
    kept = dict.fromkeys(bench.grid, 50.0)
    wrong = probe_grid.Round({}, {"fast": kept, "shared": {cell: 40.0}})
    try:
        probe_grid.agreement(bench, [wrong], "shared")
    except SystemExit as error:
        assert "differ by 3 images" in str(error)
    else:
        raise AssertionError("a wrong score was taken for the same")
    same = probe_grid.Round({}, {"fast": kept, "shared": {cell: 50.0}})
    assert "the same score in 1 of 1 cells (30 held-out images)" in probe_grid.agreement(bench, [same], "shared")
