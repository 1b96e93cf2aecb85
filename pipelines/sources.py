"""The dataset that params name, its folders, and how far work on it is."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.params import Params
from pipelines.progress import Advance, progress
from pipelines.storage import absolute
from segcore import datasets
from segcore.data.address import is_remote
from segcore.datasets import Dataset, DataSource
from segcore.datasets.base import Progress

if TYPE_CHECKING:
    from segcore.data.place import Place

RAW = Path("data/raw")
SHARDS = Path("data/shards")
MIRROR = "SEGCORE_MIRROR"
DEFAULT_MIRROR = "../shared/data"
NO_DATA = "segcore/datasets"  # data.path where no folder is named: DVC depends on some path


def raw_folder(params: Params) -> Path:
    """Where `download` puts the dataset."""
    return RAW / params.data.name


def shards_folder(params: Params) -> Path:
    """Where `prepare` puts its shards."""
    return SHARDS / params.data.name


def shards_place(params: Params) -> "Place | None":
    """Where shards lie if not in `shards_folder`: below `data.root`, for every node to read."""
    from segcore.data.place import Place

    if not is_remote(params.data.root) and absolute(params.data.root) == absolute(SHARDS.parent):
        return None
    root = params.data.root if is_remote(params.data.root) else str(absolute(params.data.root))
    return Place(root) / f"shards/{params.data.name}"


def own_path(params: Params) -> Path | None:
    """The folder that `data.path` names; None where it names none."""
    unnamed = params.data.path == NO_DATA and params.data.name != "folder"
    return None if unnamed else Path(params.data.path)


def create_source(params: Params) -> DataSource:
    """What `segcore.create_dataset` needs to know of the params and this machine."""
    data = params.data
    return DataSource(
        raw=raw_folder(params),
        path=own_path(params),
        classes=data.classes,
        ignore_index=data.ignore_index,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.seed,
        options=data.options,
        mirror=Path(os.environ.get(MIRROR) or DEFAULT_MIRROR),
    )


def create_dataset(params: Params) -> Dataset:
    """The adapter of the dataset that params name.

    Raises:
        UnknownNameError: no dataset has this name.
        OptionError: it has no such option.
    """
    return datasets.create_dataset(params.data.name, create_source(params))


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A `Progress` of segcore, shown as a bar or as lines for each thing that is done in turn."""
    with ExitStack() as stack:
        current = ""
        shown = 0
        advance: Advance | None = None

        def follow(what: str, done: int, total: int) -> None:
            nonlocal current, shown, advance
            if total == 0:
                return
            if what != current or advance is None:
                stack.close()
                title, _, unit = what.partition(" [")
                bar = progress(title, total, unit=unit.rstrip("]") or "files")
                advance, current, shown = stack.enter_context(bar), what, 0
            advance(done - shown)
            shown = done

        yield follow
