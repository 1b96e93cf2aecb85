"""The comparison of rankings: every one is asked about the same faults, and counted alike."""

import numpy as np
import pytest

from benchmarks.label_doctor import EACH, FIRST, OURS, RANKINGS, by_segcore, hits, table
from benchmarks.planted_faults import ERASED, EXCHANGED, SORTS, Planted


def test_an_exchanged_pair_counts_once_and_only_among_the_first() -> None:
    faults = [Planted(EXCHANGED, (0, 1)), Planted(ERASED, (FIRST,)), Planted(ERASED, (2,))]
    found = hits(range(FIRST + 20), faults)
    assert (found[EXCHANGED], found[ERASED], sum(found.values())) == (1, 1, 2)


def test_a_contradicted_picture_comes_first() -> None:
    labels = np.zeros((3, 16, 16), np.int64)
    shares = np.full((3, 2, 16, 16), 0.1, np.float32)
    shares[:, 0] = 0.9
    shares[1, :, 4:12, 4:12] = [[[0.05]], [[0.95]]]
    assert by_segcore(shares, labels)[0] == 1


@pytest.mark.parametrize("name", [name for name in RANKINGS if name != OURS])
def test_the_peer_ranks_the_same_pictures(name: str) -> None:
    pytest.importorskip("cleanlab", reason="the peer is not installed")
    labels = np.zeros((3, 16, 16), np.int64)
    shares = np.full((3, 2, 16, 16), 0.1, np.float32)
    shares[:, 0] = 0.9
    shares[1, :, 4:12, 4:12] = [[[0.05]], [[0.95]]]
    assert RANKINGS[name](shares, labels)[0] == 1


def test_the_table_has_a_line_a_ranking() -> None:
    sorts = dict.fromkeys(SORTS, EACH)
    rows = [
        {"seed": 0, "ranking": name, "found": 40, **sorts, "CPU s": 1.0, "training CPU s": 60}
        for name in reversed(RANKINGS)
    ]
    lines = table(rows).splitlines()[-len(RANKINGS) :]
    assert [line.split(" | ")[1] for line in lines] == list(RANKINGS)
