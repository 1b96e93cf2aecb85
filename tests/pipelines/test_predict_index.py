"""The index of a prediction: names, what is known, and memory that does not grow."""

import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.prediction import manifest
from pipelines.prediction.index import Index
from pipelines.prediction.inputs import Input
from pipelines.prediction.manifest import Row


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with closing(Index(tmp_path)) as made:
        yield made


def row(path: str, status: str = "ok", mask: str = "") -> Row:
    return Row(path, status, "digest", "model", "data", mask_path=mask)


def names(index: Index) -> list[str]:
    return [item.name for item, _ in index.work()]


def test_names_that_two_share_keep_the_suffix(index: Index) -> None:
    index.add_inputs([Input("a.png", "a"), Input("b.png", "b"), Input("a.jpg", "a")])
    assert names(index) == ["a.jpg", "a.png", "b"]


def test_rows_of_shards_that_share_an_id_are_numbered(index: Index) -> None:
    index.add_inputs(Input(f"{shard}.parquet#x", "x", row=0) for shard in "ab")
    assert names(index) == ["x", "x-2"]


def test_an_input_given_twice_is_one(index: Index) -> None:
    index.add_inputs([Input("a.png", "a"), Input("a.png", "a")])
    assert index.to_do == 1


@settings(max_examples=50, deadline=None)
@given(st.sets(st.from_regex(r"[ab](-2)?(\.png)?\.(png|jpg)", fullmatch=True)))
def test_no_two_inputs_have_one_name(tmp_path_factory: pytest.TempPathFactory, paths) -> None:
    with closing(Index(tmp_path_factory.mktemp("index"))) as index:
        index.add_inputs(Input(path, path.rpartition(".")[0]) for path in paths)
        found = names(index)
    assert len(found) == len(set(found)) == len(paths)


def test_rows_of_this_job_stand_before_those_of_an_earlier_one(index: Index) -> None:
    index.add_inputs([Input("a.png", "a"), Input("b.png", "b"), Input("c.txt", "c", skip="text")])
    left = [row("b.png"), row("gone.png", mask="masks/gone.png"), row("lost.png")]
    index.add_known(left, lambda one: bool(one.mask_path))
    assert index.add_skipped(lambda item: row(item.path, "skipped")) == 1
    assert [(item.path, known) for item, known in index.work()] == [
        ("a.png", None),
        ("b.png", left[0]),
    ]
    assert not index.put(row("a.png", mask="masks/a.png"))
    assert index.put(row("b.png"))
    assert [one.path for one in index.rows()] == ["a.png", "b.png", "c.txt", "gone.png"]
    told = index.has_mask(["masks/a.png", "masks/b.png", "masks/gone.png"])
    assert list(told) == [True, False, True]


def test_rows_may_come_while_the_work_is_read(index: Index) -> None:
    index.add_inputs(Input(f"{number:04}.png", f"{number:04}") for number in range(1000))
    for item, _ in index.work():
        index.put(row(item.path))
    assert len(list(index.rows())) == 1000


def peak_mb(folder: Path, count: int) -> float:
    folder.mkdir()
    tracemalloc.start()
    with closing(Index(folder)) as index:
        index.add_inputs(Input(f"images/{n:07}.png", f"{n:07}") for n in range(count))
        for item, _ in index.work():
            index.put(row(item.path, mask=f"masks/{item.name}.png"))
        manifest.write(folder, index.rows(), [])
        index.add_known(manifest.stream(folder), lambda _: True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def test_memory_does_not_grow_with_the_inputs(tmp_path: Path) -> None:
    few, many = peak_mb(tmp_path / "few", 5_000), peak_mb(tmp_path / "many", 50_000)
    assert many - few < 45_000 * 100 / 2**20  # a row alone takes more than 500 bytes
