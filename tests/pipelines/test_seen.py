"""A stage that looks at a folder itself sees every change, and nothing where there is none."""

import os
from pathlib import Path

import pytest

from pipelines import download
from pipelines.seen import Seen, signature


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/x.png", "a/y.png", "b/z.png"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(name.encode())
    return tmp_path / "own"


def test_a_signature_changes_with_names_sizes_times_and_files(folder: Path) -> None:
    seen = {signature(folder)}
    assert signature(folder) in seen
    (folder / "a/x.png").write_bytes(b"longer than before")
    seen.add(signature(folder))
    os.utime(folder / "a/x.png", ns=(1, 1))
    seen.add(signature(folder))
    (folder / "a/y.png").rename(folder / "a/w.png")
    seen.add(signature(folder))
    (folder / "b/z.png").unlink()
    seen.add(signature(folder))
    assert len(seen) == 5
    assert signature(folder / "none") == signature(folder / "nothing")


def test_links_are_followed_and_loops_end(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    before = signature(folder)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "q.png").write_bytes(b"1")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "broken.png").symlink_to(folder / "not-there")
    linked = signature(folder)
    assert linked != before
    (elsewhere / "q.png").write_bytes(b"22")
    assert signature(folder) != linked


def test_a_memory_holds_until_a_fact_changes(tmp_path: Path) -> None:
    Seen(tmp_path / "deep" / "memory.json", {"own": "1"}).remember()
    assert Seen(tmp_path / "deep" / "memory.json", {"own": "1"}).is_same()
    assert not Seen(tmp_path / "deep" / "memory.json", {"own": "2"}).is_same()
    (tmp_path / "deep" / "memory.json").write_bytes(b"\xff torn")
    assert not Seen(tmp_path / "deep" / "memory.json", {"own": "1"}).is_same()


def test_download_runs_again_only_where_a_file_changed(
    folder: Path, project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    (folder / "a").rename(folder / "images")
    (folder / "b").rename(folder / "masks")
    (folder / "masks/z.png").rename(folder / "masks/x.png")
    (folder / "images/y.png").unlink()
    values = project.override({"data.name": "folder", "data.path": str(folder)}).dump()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    said = []
    for _ in range(2):
        download.main()
        said.append(capsys.readouterr().out.splitlines()[-1])
    (folder / "images/x.png").write_bytes(b"changed")
    download.main()
    said.append(capsys.readouterr().out.splitlines()[-1])
    (tmp_path / "data/raw/folder/source.json").unlink()
    download.main()
    said.append(capsys.readouterr().out.splitlines()[-1])
    new, old = "download: folder is in data/raw/folder", "download: as before, data/raw/folder"
    assert said == [new, old, new, new]
