"""Untouched defaults against a careful script: same folders, same minutes, same cores, in turn.

    python benchmarks/own_data.py [--minutes 8] [--seeds 0 1 2] [--data nuclei camvid ...] [--bf16]

Folders with test pictures kept apart are made of the archives in SEGCORE_MIRROR (nuclei: the union
of its objects; camvid; isbi_em, a block of sections held back) and of rendered streets. Ours is
`dvc exp run -S data.name=folder -S data.path=...` in a clone, with the minutes alone set; the
minutes are those of training. Results: benchmarks/results/own_data.json and .md, row by row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.data.codec import decode_image
from segcore.data.inspection import read_bytes
from segcore.data.labels import read_labels
from segcore.datasets import DataSource, create_dataset

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MIRROR = Path(os.environ.get("SEGCORE_MIRROR") or ROOT / "../shared/data")
NUCLEI = ("train", "train", "train", "val", "test")


def save(folder: Path, stem: str, image: Image.Image, mask: np.ndarray, split: str) -> None:
    """Add a picture to a folder."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    image.save(folder / "images" / f"{stem}.png", compress_level=1)
    Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{stem}.png")
    with (folder / f"{split}.txt").open("a") as names:
        names.write(f"{stem}\n")


def make_nuclei(folder: Path, raw: Path) -> list[str]:
    """Every fifth image is tested; which of near neighbours share a slide is not known."""
    subprocess.run(["tar", "xf", MIRROR / "nuclei.tar.xz", "-C", raw], check=True)
    for number, place in enumerate(sorted((raw / "stage1_train").iterdir())):
        image = Image.open(place / "images" / f"{place.name}.png").convert("RGB")
        masks = [np.asarray(Image.open(file)) > 0 for file in (place / "masks").iterdir()]
        save(folder, place.name, image, np.any(masks, axis=0), NUCLEI[number % len(NUCLEI)])
    return ["background", "nucleus"]


def make_dataset(name: str, folder: Path, raw: Path) -> list[str]:
    """A dataset of segcore, in its own splits."""
    source = DataSource(
        raw=raw, path=None, classes=None, ignore_index=255, val_fraction=0.15,
        test_fraction=0.15, seed=0, options={}, mirror=MIRROR,
    )  # fmt: skip
    dataset = create_dataset(name, source)
    dataset.download()
    info = dataset.info()
    for sample in dataset.samples():
        if sample.mask is not None:
            mask = read_labels(read_bytes(sample.mask), info).copy()
            mask[mask == info.ignore_index] = 255
            image = Image.fromarray(decode_image(read_bytes(sample.image), 3))
            save(folder, sample.id, image, mask, sample.split)
    return list(info.classes)


def make(name: str, work: Path) -> Path:
    """The folder of a dataset."""
    folder, raw = work / name, work / "raw" / name
    raw.mkdir(parents=True)
    maker = make_nuclei if name == "nuclei" else lambda f, r: make_dataset(name, f, r)
    classes = maker(folder, raw)
    (folder / "classes.txt").write_text("".join(f"{entry}\n" for entry in classes))
    return folder


def ours(folder: Path, minutes: float, seed: int, clone: Path) -> dict[str, object]:
    """Train and evaluate by the pipeline, nothing set but the folder and the minutes."""
    values = [f"data.path={folder}", "data.name=folder", f"train.budget_minutes={minutes}"]
    values += [f"train.seed={seed}"] if seed else []
    command = ["dvc", "exp", "run", "evaluate"]
    command += [part for value in values for part in ("-S", value)]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    figures = json.loads((clone / "outputs/report/metrics.json").read_text())
    return {"miou": figures["miou"], "iou": figures["iou"]}


def script(folder: Path, minutes: float, seed: int, bf16: bool) -> dict[str, object]:
    """The peer."""
    command = [sys.executable, str(ROOT / "benchmarks/smp_script.py"), str(folder)]
    command += ["--minutes", str(minutes), "--seed", str(seed), *(["--bf16"] if bf16 else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def record(row: dict[str, object]) -> None:
    """Add a row to the results, and write them as a table."""
    file = RESULTS / "own_data.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    rows.append(row)
    file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["| data | minutes | seed | who | test mIoU | IoU of the classes |", "|---" * 6 + "|"]
    for entry in rows:
        iou = ", ".join(f"{name} {value:.3f}" for name, value in entry["iou"].items())
        lines.append(
            f"| {entry['data']} | {entry['minutes']:g} | {entry['seed']} | {entry['who']} "
            f"| {entry['miou']:.4f} | {iou} |"
        )
    (RESULTS / "own_data.md").write_text("\n".join(lines) + "\n")
    print(lines[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    known = ["nuclei", "camvid", "isbi_em", "streets"]
    parser.add_argument("--data", nargs="+", default=known, choices=known)
    parser.add_argument("--bf16", action="store_true", help="the script in bf16 as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        clone = work / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        for name in arguments.data:
            folder = make(name, work)
            for seed in arguments.seeds:
                about = {"data": name, "minutes": arguments.minutes, "seed": seed}
                about["when"] = time.strftime("%Y-%m-%d")
                found = ours(folder, arguments.minutes, seed, clone)
                record({**about, "who": "segcore, untouched", **found})
                found = script(folder, arguments.minutes, seed, False)
                record({**about, "who": "script", **found})
                if arguments.bf16:
                    found = script(folder, arguments.minutes, seed, True)
                    record({**about, "who": "script in bf16", **found})


if __name__ == "__main__":
    main()
