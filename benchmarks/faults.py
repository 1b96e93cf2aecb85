"""Random SIGKILLs in search, training and prediction: what is lost, what comes out twice.

Every fault is drawn from its seed: the stage, the process that dies (a worker, the actor that
controls it, the raylet, the head's control service, the driver itself) and the moment. The stage is
then run again by the same command until it ends, and what it made is compared with that of a run
that nothing disturbed. `python benchmarks/faults.py --faults 60` writes
benchmarks/results/faults.json and the table in docs/reliability.md; --first continues a table.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml
from PIL import Image

import segcore
from pipelines.params import Params
from pipelines.storage import read_lines
from segcore.data.prepare import prepare
from segcore.datasets import DataSource, create_dataset
from segcore.errors import SegcoreError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
TABLE = ROOT / "docs" / "reliability.md"
MARK = "<!-- benchmarks/faults.py -->"
SIZES = {"num_train": 16, "num_val": 4, "num_test": 4, "height": 64, "width": 96}
PICTURES, CHECKPOINT_STEPS, MOST_RUNS, LIMIT_S = 120, 2, 6, 1200.0
VICTIMS = {
    "train": ("RayTrainWorker", "TrainController", "raylet", "gcs_server", "driver"),
    "predict": ("MapWorker", "raylet", "driver"),
    "tune": ("ImplicitFunc", "raylet", "driver"),
}
VALUES = {
    "data.name": "streets",
    "data.options": SIZES,
    "model.name": "unet",
    "model.options": {"base_channels": 4, "norm": None, "dropout": 0.0},
    "loss.name": "cross_entropy",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 30,
    "train.max_minutes": None,
    "train.epoch_steps": None,
    "train.refit": False,
    "train.batch_size": 4,
    "train.lr": 0.01,
    "train.optimizer": "sgd",
    "train.precision": "fp32",
    "train.checkpoint_steps": CHECKPOINT_STEPS,
    "train.overlay_epochs": 1000,
    "train.augment.crop": None,
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.2,
    "tune.trials": 2,
    "tune.epochs": 4,
    "tune.space": {"train.lr": {"kind": "choice", "values": [0.01, 0.02]}},
    "cluster.num_workers": 2,
    "predict.batch_size": 4,
    "predict.ray_min_images": 1,
    "tracking.system_metrics": False,
}


@dataclass
class Outcome:
    """What a fault did."""

    seed: int
    stage: str
    victim: str  # "none": the stage had ended before
    runs: int  # of the command until it ended well; 0: never
    steps_lost: int  # done when it died, and in no checkpoint
    wrong: int  # outputs that are missing, twice there, or unlike the undisturbed ones
    corrupt: int  # files that cannot be read
    seconds: float


class Project:
    """A folder with shards and params in which stages run as processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        values = VALUES | {"tracking.uri": f"sqlite:///{root}/mlflow.db"}
        params = Params.load(ROOT / "params.yaml").override(values)
        root.mkdir()
        (root / "params.yaml").write_text(yaml.safe_dump(params.dump()))
        source = DataSource(raw=root / "data/raw/streets", options=SIZES)
        dataset = create_dataset("streets", source)
        dataset.download()
        prepare(dataset, root / "data/shards/streets", workers=1)

    def use_package(self) -> None:
        """Keep the trained package for predictions, and pictures to predict."""
        shutil.copytree(self.root / "outputs/candidate", self.root / "package")
        images = self.root / "images"
        images.mkdir()
        split = segcore.open_shards(self.root / "data/shards/streets").split("train")
        for index in range(PICTURES):
            (images / f"{index:05}.png").write_bytes(split.read(index % len(split)).image)
        file = self.root / "params.yaml"
        values = {"predict.images": str(images), "predict.model": str(self.root / "package")}
        file.write_text(yaml.safe_dump(Params.load(file).override(values).dump()))

    def start(self, stage: str) -> subprocess.Popen[bytes]:
        """A stage's process."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", f"pipelines.{stage}"],
            cwd=self.root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def clear(self) -> None:
        """Forget what stages made."""
        shutil.rmtree(self.root / "outputs", ignore_errors=True)

    def events(self) -> list[dict[str, Any]]:
        """Reports of training, repeated ones too."""
        files = list(self.root.glob("outputs/runs/train-*/events.jsonl"))
        return read_lines(files[0]) if files else []

    def steps_at_risk(self) -> int:
        """Steps of training that are done and that the newest checkpoint does not hold."""
        folders = list(self.root.glob("outputs/runs/train-*"))
        if not folders or not (folders[0] / "progress.json").is_file():
            return 0
        at = json.loads((folders[0] / "progress.json").read_text())
        kept = max((int(f.stem[5:]) for f in folders[0].glob("checkpoints/step-*.pt")), default=0)
        return max(0, at["epoch"] * at["steps"] + at["step"] - kept)

    def alive(self, stage: str) -> bool:
        """Whether a stage has begun its work."""
        if stage == "train":
            return bool(self.events())
        if stage == "predict":
            return any(self.root.glob("outputs/predictions/masks/*.png"))
        return any(self.root.glob("outputs/runs/tune-*/**/checkpoints/*.pt"))


def find(process: subprocess.Popen[bytes], victim: str) -> psutil.Process | None:
    """The process below a driver that is to die; the last of several."""
    if victim == "driver":
        return psutil.Process(process.pid)
    found = None
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if victim in title.partition(" ")[0] or f"ray::{victim}" in title:
            found = child
    return found


def disturb(project: Project, seed: int) -> Outcome:
    """Run a stage, kill a part of it, and run it again until it ends."""
    draw = random.Random(seed)
    stage = draw.choice(sorted(VICTIMS))
    victim, delay = draw.choice(VICTIMS[stage]), draw.uniform(0.0, 2.0)
    project.clear()
    began, killed, lost = time.monotonic(), "none", 0
    for runs in range(1, MOST_RUNS + 1):
        process = project.start(stage)
        while process.poll() is None and not (runs == 1 and project.alive(stage)):
            time.sleep(0.02)
        if process.poll() is None:
            time.sleep(delay)
            found = find(process, victim)
            if found is not None:
                found.kill()
                killed, lost = victim, project.steps_at_risk()
        code = process.wait(LIMIT_S)
        if code == 0:
            break
    else:
        runs = 0
    wrong, corrupt = judge(project, stage)
    seconds = time.monotonic() - began
    return Outcome(seed, stage, killed, runs, lost, wrong, corrupt, round(seconds, 1))


def judge(project: Project, stage: str) -> tuple[int, int]:
    """Outputs that are not as undisturbed ones are, and files that cannot be read."""
    outputs = project.root / "outputs"
    if stage == "predict":
        names = sorted(file.name for file in (project.root / "images").iterdir())
        rows = pq.read_table(outputs / "predictions/manifest.parquet").to_pylist()
        listed = sorted(Path(row["path"]).name for row in rows if row["status"] == "ok")
        masks = sorted((outputs / "predictions/masks").iterdir())
        wrong = differences(listed, names) + differences([mask.name for mask in masks], names)
        return wrong, sum(not readable(mask) for mask in masks)
    if stage == "train":
        packages = (outputs / "candidate", project.root / "package")
        found, kept = (folder / "model.safetensors" for folder in packages)
        try:
            segcore.load_package(found.parent)
        except SegcoreError:
            return 0, 1
        return int(found.read_bytes() != kept.read_bytes()), 0
    best = outputs / "tune/best.yaml"
    found = yaml.safe_load(best.read_text()) if best.is_file() else {}
    return int("train.lr" not in found.get("overrides", {})), 0


def differences(found: list[str], expected: list[str]) -> int:
    """Names that are missing, or there more often than once."""
    return len(set(expected) ^ set(found)) + len(found) - len(set(found))


def readable(mask: Path) -> bool:
    """Whether a picture decodes to its end."""
    try:
        with Image.open(mask) as picture:
            picture.load()
    except OSError:
        return False
    return True


def write_table(outcomes: list[Outcome], seconds: dict[str, float]) -> None:
    """Rewrite the table between the marks of docs/reliability.md."""
    lines = [
        "| stage | what died | faults | ended | most runs | most steps lost | wrong outputs | "
        "corrupt files | seconds, median (undisturbed) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, victim in sorted({(o.stage, o.victim) for o in outcomes}):
        group = [o for o in outcomes if (o.stage, o.victim) == (stage, victim)]
        middle = statistics.median(o.seconds for o in group)
        lines.append(
            f"| {stage} | {victim} | {len(group)} | {sum(o.runs > 0 for o in group)} | "
            f"{max(o.runs for o in group)} | {max(o.steps_lost for o in group)} | "
            f"{sum(o.wrong for o in group)} | {sum(o.corrupt for o in group)} | "
            f"{middle:.0f} ({seconds[stage]:.0f}) |"
        )
    before, _, rest = TABLE.read_text().partition(MARK)
    after = rest.partition(MARK)[2]
    TABLE.write_text(f"{before}{MARK}\n" + "\n".join(lines) + f"\n{MARK}{after}")


def undisturbed(project: Project) -> dict[str, float]:
    """Seconds of each stage; leaves the package that training is compared with."""
    seconds = {}
    for stage in ("tune", "train", "predict"):
        began = time.monotonic()
        if project.start(stage).wait(LIMIT_S) != 0:
            raise SystemExit(f"{stage} fails without any fault: see {project.root}")
        seconds[stage] = round(time.monotonic() - began, 1)
        if stage == "tune":
            project.clear()  # training is compared without what the search found
        if stage == "train":
            project.use_package()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="seed of the first fault")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if arguments.first else {"faults": []}
    outcomes = [Outcome(**entry) for entry in known["faults"]][: arguments.first]
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder) / "project")
        seconds = undisturbed(project)
        for seed in range(arguments.first, arguments.first + arguments.faults):
            outcomes.append(disturb(project, seed))
            print(outcomes[-1], flush=True)
            facts = {"seconds": seconds, "faults": [asdict(outcome) for outcome in outcomes]}
            RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
            write_table(outcomes, seconds)


if __name__ == "__main__":
    main()
