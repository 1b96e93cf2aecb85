"""A folder that may lie in an object store: a local path or s3://bucket/prefix, by pyarrow.

The endpoint is that of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL; credentials come from the standard
chain (environment, ~/.aws, the machine's role) and are kept nowhere.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from segcore.data.address import ENDPOINTS, SCHEME, check_address, is_remote
from segcore.data.atomic import write_file
from segcore.errors import DataError

REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
CONNECT_S, REQUEST_S, ATTEMPTS = 10.0, 60.0, 5
CHUNK = 8 * 2**20
MAX_WHOLE = 256 * 2**20  # bytes of a file that is read into memory at once


class Place:
    """A folder of files, local or in a bucket; small, and can be sent to another process.

    A file that is written appears whole or not at all.

    Args:
        address: path, or s3://bucket/prefix.

    Raises:
        OptionError: it is an address of another kind.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = check_address(str(address), "the address")
        self.is_remote = is_remote(self.address)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.address.rstrip('/')}/{name}")

    @property
    def key(self) -> str:
        """The path as `filesystem` takes it."""
        return self.address.removeprefix(SCHEME)

    @property
    def filesystem(self) -> fs.FileSystem:
        """What reads and writes here."""
        return _s3(os.getpid(), *_settings()) if self.is_remote else fs.LocalFileSystem()

    def read(self, name: str, *, most: int = MAX_WHOLE) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it is larger than `most` bytes, or the store does not answer.
        """
        with self._answers(name), self.filesystem.open_input_file(self._path(name)) as file:
            size = file.size()
            if size > most:
                raise DataError(f"{self / name} has {size} bytes, at most {most} are read")
            content: bytes = file.read()
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Raises:
            DataError: the disk is full, or the store does not answer or refuses.
        """
        if not self.is_remote:
            write_file(Path(self.address, name), content)
            return
        with self._answers(name), self.filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(content)

    def upload(self, file: Path, name: str) -> None:
        """Copy a local file here; it is never in memory as a whole.

        Raises:
            DataError: the store does not answer or refuses.
        """
        with (
            file.open("rb") as source,
            self._answers(name),
            self.filesystem.open_output_stream(self._path(name)) as target,
        ):
            while chunk := source.read(CHUNK):
                target.write(chunk)

    def download(self, name: str, file: Path) -> None:
        """Copy a file from here to a local one, which appears whole or not at all.

        Raises:
            FileNotFoundError: it is not there.
            DataError: the store does not answer, or the disk is full.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            with (
                self._answers(name),
                self.filesystem.open_input_file(self._path(name)) as source,
                part.open("wb") as target,
            ):
                while chunk := source.read(CHUNK):
                    target.write(chunk)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file here and in folders below, by relative name; empty where none is.

        Raises:
            DataError: the store does not answer.
        """
        selector = fs.FileSelector(self.key, recursive=True, allow_not_found=True)
        with self._answers(""):
            found = self.filesystem.get_file_info(selector)
        return {
            PurePosixPath(entry.path).relative_to(self.key).as_posix(): entry.size
            for entry in found
            if entry.type == fs.FileType.File
        }

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            DataError: the store does not answer.
        """
        with self._answers(name):
            found = self.filesystem.get_file_info(self._path(name))
        return bool(found.type == fs.FileType.File)

    def sha256(self, name: str) -> str:
        """Hex digest of a file, read piece by piece.

        Raises:
            FileNotFoundError: it is not there.
            DataError: the store does not answer.
        """
        digest = hashlib.sha256()
        with self._answers(name), self.filesystem.open_input_stream(self._path(name)) as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Delete a file, if it is there.

        Raises:
            DataError: the store does not answer or refuses.
        """
        try:
            with self._answers(name):
                self.filesystem.delete_file(self._path(name))
        except FileNotFoundError:
            return

    def clear(self) -> None:
        """Delete every file here and below."""
        for name in self.sizes():
            self.remove(name)

    def parquet(self, name: str) -> pq.ParquetFile:
        """A Parquet file, opened; a local one is mapped, of a remote one parts are fetched."""
        if not self.is_remote:
            path = Path(self.address, name)
            return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        source = self.filesystem.open_input_file(self._path(name))
        return pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)

    def _path(self, name: str) -> str:
        return f"{self.key}/{name}"

    @contextmanager
    def _answers(self, name: str) -> Iterator[None]:
        """Turn what a store that is away or refuses raises into a DataError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            if not self.is_remote:
                raise
            raise away(f"{self.address}/{name}", error) from error


def away(address: str, error: Exception) -> DataError:
    """What to raise where an object store does not answer or refuses."""
    return DataError(
        f"{address} cannot be reached ({str(error).splitlines()[0]}): check that the bucket is "
        f"there, {ENDPOINTS[1]}, and the credentials in the environment or ~/.aws; then run the "
        "same command again"
    )


def _settings() -> tuple[str, str]:
    endpoint = next((os.environ[key] for key in ENDPOINTS if os.environ.get(key)), "")
    region = next((os.environ[key] for key in REGIONS if os.environ.get(key)), "")
    return endpoint, region


@lru_cache(maxsize=4)
def _s3(process: int, endpoint: str, region: str) -> fs.S3FileSystem:
    """One client a process: it does not survive a fork."""
    options: dict[str, Any] = {"region": region} if region else {}
    if endpoint:
        options["endpoint_override"] = endpoint
    return fs.S3FileSystem(
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        allow_delayed_open=True,  # a small file is one request
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **options,
    )
