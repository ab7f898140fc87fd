"""Seeds that are derived from others."""

from processes.seeds import derive_seed


def test_derived_seeds_are_apart():
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
