"""Archives from elsewhere: links, paths outside and bombs."""

import io
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.datasets.base import silent
from segcore.datasets.unpack import unpack
from segcore.errors import DataError


def tar(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """A tar archive of (name, type, link target or content)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content.decode()
            archive.addfile(member, io.BytesIO(content))
    return path


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    packed = tar(
        tmp_path / "a.tar.gz",
        ("good.png", tarfile.REGTYPE, b"pixels"),
        ("soft.png", tarfile.SYMTYPE, b"/etc/passwd"),
        ("hard.png", tarfile.LNKTYPE, b"/etc/passwd"),
        ("device.png", tarfile.CHRTYPE, b""),
    )
    unpack(packed, tmp_path / "out", lambda name: name, silent)  # makes the folder
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["good.png"]


@pytest.mark.parametrize(
    "name", ["../outside.png", "/tmp/outside-of-it.png", "a/../../outside.png"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_path_outside_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    packed = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar(packed, (name, tarfile.REGTYPE, b"x"))
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(name, b"x")
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with suppress(DataError):
        unpack(packed, out, lambda name: name, silent)
    assert not (tmp_path / "deep" / "outside.png").exists()
    assert not (tmp_path / "outside.png").exists()
    assert not Path("/tmp/outside-of-it.png").exists()


def test_more_than_the_disk_holds_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "bomb.tar"
    member = tarfile.TarInfo("big.png")
    member.size = 1 << 60
    packed.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="unpacks to 1152921504"):
        unpack(packed, tmp_path / "out", lambda name: name, silent)
    assert not list((tmp_path / "out").iterdir())


@settings(max_examples=100, deadline=None)
@given(
    where=st.floats(0, 1, exclude_max=True),
    what=st.binary(min_size=1, max_size=6),
    kind=st.booleans(),
)
def test_a_damaged_archive_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, where: float, what: bytes, kind: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    packed = folder / "a"
    if kind:
        tar(packed, ("a/x.png", tarfile.REGTYPE, b"x" * 999), ("y.png", tarfile.REGTYPE, b"y"))
    else:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/x.png", b"x" * 999)
            archive.writestr("y.png", b"y")
    data = packed.read_bytes()
    at = int(where * len(data))
    packed.write_bytes(data[:at] + what + data[at + len(what) :])
    (folder / "out").mkdir()
    with suppress(DataError):
        unpack(packed, folder / "out", lambda name: name, silent)
    assert {file.name for file in folder.iterdir()} == {"a", "out"}
