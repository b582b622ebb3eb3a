"""The list of deviations: one id each, every known difference of the instance methods, SwAV and Un-Mix, every row on the page."""
from reproduce import deviations, methods

# What is known to differ between paper and release, family by family.
KNOWN = {
    "swav": {"swav-queue-state", "swav-queue-zero", "swav-sinkhorn-overflow", "swav-scores-half", "swav-hard"},
    "simclr": {"simclr-detached-gather", "simclr-mask"},
    "pic": {"pic-window-modulo", "pic-window-epochs", "pic-window-resume", "pic-negatives", "pic-matrix-copies", "pic-crops-axis", "pic-nan"},
    "instdisc": {"instdisc-memory-axis", "instdisc-memory-local", "instdisc-nce"},
    "moco": {"moco-queue-multiple", "moco-one-process"},
    "unmix": {"unmix-flip", "unmix-lambda", "unmix-queue", "unmix-temperature", "unmix-partner"},
    "rotnet": {"rotnet-nominal-lr"},
}


def test_every_known_difference_is_listed_by_its_method():
    found = deviations.collected()
    for name, ids in KNOWN.items():
        assert ids == {d.id for d in found[name]}, name


def test_ids_are_unique_over_all_methods_and_the_page_has_a_row_for_each():
    listed = {id(cls): cls.deviations for cls in map(methods.find, methods.names())}
    every = [d.id for rows in listed.values() for d in rows]
    assert len(every) == len(set(every))
    page = deviations.page()
    assert all(f"| {one} |" in page for one in every)
