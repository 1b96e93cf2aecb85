"""cluster.num_workers as a range, and the room that a group of workers finds."""

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster import head
from pipelines.cluster.train import fewest_workers
from pipelines.params import Params, Workers
from segcore.errors import OptionError

ROOT = Path(__file__).parents[2]


def params(**values: object) -> Params:
    return Params.load(ROOT / "params.yaml").override(values)


def test_a_range_of_workers_is_read_and_its_faults_are_named() -> None:
    assert params(**{"cluster.num_workers": {"min": 1, "max": 4}}).cluster.num_workers == Workers(
        min=1, max=4
    )
    for wrong, words in (
        ({"min": 3, "max": 2}, "min 3 is above max 2"),
        ({"min": 0, "max": 2}, "greater than or equal to 1"),
        ({"min": 1, "most": 2}, "most"),
    ):
        with pytest.raises(OptionError, match=words):
            params(**{"cluster.num_workers": wrong})


@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 64))
def test_sizes_share_the_batch_evenly_within_the_range(least: int, more: int, batch: int) -> None:
    workers = Workers(min=least, max=least + more)
    try:
        sizes = workers.sizes(batch)
    except OptionError:
        assert all(batch % n for n in range(least, least + more + 1))
        return
    assert sizes == tuple(sorted(sizes))
    assert all(least <= n <= least + more and batch % n == 0 for n in sizes)


def test_training_is_checked_for_the_smallest_group() -> None:
    values = {"train.batch_size": 6}
    assert fewest_workers(params(**values)) == 1
    assert fewest_workers(params(**values, **{"cluster.num_workers": 3})) == 3
    assert fewest_workers(params(**values, **{"cluster.num_workers": {"min": 2, "max": 5}})) == 2
    with pytest.raises(OptionError, match=r"6 cannot .* among any of cluster.num_workers 4 to 5"):
        fewest_workers(params(**values, **{"cluster.num_workers": {"min": 4, "max": 5}}))


@pytest.mark.parametrize(
    ("worker", "nodes", "held", "room"),
    [
        ({"CPU": 1, "GPU": 0}, {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}, {}, 3),
        ({"CPU": 2}, {"a": {"CPU": 3.0}, "b": {"CPU": 1.0}}, {}, 1),  # not one half on each
        ({"CPU": 1, "GPU": 1}, {"a": {"CPU": 8.0, "GPU": 2.0}, "b": {"CPU": 8.0}}, {}, 2),
        ({"CPU": 1}, {"a": {}, "b": {"CPU": 1.0}}, {"a": 1}, 2),
        ({"CPU": 1}, {"a": {}}, {"a": 1, "lost": 3}, 1),
        ({"CPU": 1}, {}, {}, 0),
    ],
)
def test_room_is_counted_node_by_node(worker, nodes, held, room: int) -> None:
    from pipelines.cluster.scaling import room_for  # imports Ray

    assert room_for(worker, nodes, held) == room


def test_a_head_that_listens_is_told_from_one_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert head.listens(address)
    assert not head.listens(address)


def test_the_interface_of_an_address_is_found() -> None:
    from pipelines.cluster.backend import interface_of  # imports Ray

    assert interface_of("127.0.0.1").startswith("lo")
    assert interface_of("192.0.2.1") == ""
