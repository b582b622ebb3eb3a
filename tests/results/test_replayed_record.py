"""One committed digits record, made again: pre-training, evaluation, comparison, as `python -m results replay` does it."""

from pathlib import Path

from results.record import COMMITTED, files, read
from results.replay import replay, report

WHICH = Path(__file__).with_name("replayed.txt")  # model, pre-training seed, protocol


def test_a_committed_digits_record_is_made_again_from_pretraining_on():
    committed = [path for path in files(COMMITTED) if "_digits--" in path.name]
    assert committed, "no digits record below results/measured/: make demo ARGS=--record"
    model, seed, protocol = WHICH.read_text().split()
    chosen = [p for p in committed if p.parent.name == model and p.name.startswith(f"{protocol}--")]
    (path,) = [p for p in chosen if read(p).pretrain_seed == int(seed)]
    assert read(path).pretrain_command, "a record that replays from pre-training on"
    outcome = replay(path)
    assert outcome.replayed.metrics and outcome.agrees, report(outcome)
