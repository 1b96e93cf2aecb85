"""What a job has to do and has done, in a file: memory does not grow with the number of inputs."""

import pickle
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.prediction.inputs import Input
from pipelines.prediction.manifest import Row

# `before`: what earlier jobs left, `kept` where its files are there; `now`: of this job.
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE item (path TEXT PRIMARY KEY, name TEXT, row INT, skip TEXT) WITHOUT ROWID;
CREATE TABLE before (path TEXT PRIMARY KEY, made BLOB, kept INT) WITHOUT ROWID;
CREATE TABLE now (path TEXT PRIMARY KEY, made BLOB, ok INT) WITHOUT ROWID;
"""
_WORK = """
SELECT item.path, item.name, item.row, before.made FROM item LEFT JOIN before USING (path)
WHERE item.skip = '' ORDER BY item.path
"""
_ROWS = """
SELECT path, made FROM now
UNION ALL SELECT path, made FROM before WHERE kept AND path NOT IN (SELECT path FROM now)
ORDER BY path
"""


class Index:
    """Inputs and rows of one job; the file is gone with its folder, nobody else reads it.

    Args:
        folder: on a disk of this node.
    """

    def __init__(self, folder: Path) -> None:
        self._base = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
        self._base.executescript(_TABLES)

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def add_inputs(self, found: Iterable[Input]) -> None:
        """Take in the inputs; one that comes again is left out, names are made unique.

        Names that two inputs share keep the suffix: a.jpg and a.png become a.jpg and a.png.
        """
        values = ((item.path, item.name, item.row, item.skip) for item in found)
        self._many("INSERT OR IGNORE INTO item VALUES (?, ?, ?, ?)", values)
        self._base.execute("CREATE INDEX item_name ON item (name) WHERE skip = ''")
        groups = "SELECT name FROM item WHERE skip = '' GROUP BY name HAVING count(*)"
        shared = f"SELECT path, name, row FROM item WHERE skip = '' AND name IN ({groups} > 1)"
        self._base.execute(f"CREATE TABLE twin AS {shared} ORDER BY path")
        self._base.execute("CREATE TABLE taken (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._base.execute(f"INSERT INTO taken {groups} = 1")
        names = ((self._take(*twin), twin[0]) for twin in self._read("SELECT * FROM twin"))
        self._many("UPDATE item SET name = ? WHERE path = ?", names)

    def _take(self, path: str, name: str, row: int) -> str:
        wanted = name if row >= 0 else name + PurePosixPath(path).suffix
        number, free = 1, wanted
        while not self._base.execute("INSERT OR IGNORE INTO taken VALUES (?)", (free,)).rowcount:
            number += 1
            free = f"{wanted}-{number}" if row < 0 else f"{name}-{number}"
        return free

    def add_known(self, rows: Iterable[Row], kept: Callable[[Row], bool]) -> None:
        """Take in what earlier jobs left; a later row of an input replaces an earlier one.

        Args:
            kept: whether a row whose input is not given stays in the manifest.
        """
        values = ((row.path, pickle.dumps(row), kept(row)) for row in rows)
        self._many("INSERT OR REPLACE INTO before VALUES (?, ?, ?)", values)

    def add_skipped(self, row_of: Callable[[Input], Row]) -> int:
        """Take in the rows of inputs that are no images; returns how many."""
        rows = (
            (path, pickle.dumps(row_of(Input(path, name, number, skip))), 0)
            for path, name, number, skip in self._read("SELECT * FROM item WHERE skip != ''")
        )
        return self._many("INSERT OR REPLACE INTO now VALUES (?, ?, ?)", rows)

    def _many(self, statement: str, values: Iterable[tuple[object, ...]]) -> int:
        self._base.execute("BEGIN")
        count = self._base.executemany(statement, values).rowcount
        self._base.execute("COMMIT")
        return max(count, 0)

    def put(self, row: Row) -> bool:
        """Take in what became of an input; returns whether it is as an earlier job left it."""
        made, ok = pickle.dumps(row), row.status == "ok"
        self._base.execute("INSERT OR REPLACE INTO now VALUES (?, ?, ?)", (row.path, made, ok))
        before = self._base.execute("SELECT made FROM before WHERE path = ?", (row.path,))
        found = before.fetchone()
        return found is not None and pickle.loads(found[0]) == row

    @property
    def to_do(self) -> int:
        """Number of inputs that are to be tried."""
        query = "SELECT count(*) FROM item WHERE skip = ''"
        return int(self._base.execute(query).fetchone()[0])

    def work(self) -> Iterator[tuple[Input, Row | None]]:
        """The inputs to be tried, by path, each with the row that an earlier job left."""
        for path, name, row, made in self._read(_WORK):
            yield Input(path, name, row), None if made is None else pickle.loads(made)

    def rows(self) -> Iterator[Row]:
        """The manifest as it is now, by path."""
        return (pickle.loads(made) for _, made in self._read(_ROWS))

    def has_mask(self, names: Iterable[str]) -> Iterator[bool]:
        """Whether a row of the manifest tells of each of some files of predictions."""
        self._base.execute("CREATE TABLE mask (name TEXT PRIMARY KEY) WITHOUT ROWID")
        masks = ((row.mask_path,) for row in self.rows() if row.mask_path)
        self._many("INSERT OR IGNORE INTO mask VALUES (?)", masks)
        for name in names:
            found = self._base.execute("SELECT 1 FROM mask WHERE name = ?", (name,))
            yield found.fetchone() is not None
        self._base.execute("DROP TABLE mask")

    def _read(self, query: str) -> Iterator[Any]:
        with closing(self._base.cursor()) as cursor:
            yield from cursor.execute(query)
