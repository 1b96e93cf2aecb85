"""A stage that is sent to a cluster as a job: followed, fetched, cancelled with a checkpoint."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import segcore
from pipelines.cluster.outs import Workplace, travelling
from pipelines.errors import ClusterError
from pipelines.params import Params
from pipelines.storage import read_lines
from pipelines.training.run_state import EVENTS

REPOSITORY = Path(__file__).parents[3]


def test_what_travels_is_data_that_the_stage_reads_and_makes() -> None:
    params = Params.load(REPOSITORY / "params.yaml")
    deps, outs = travelling("train", params, REPOSITORY)
    assert set(deps) == {"data/shards/streets", "outputs/plan.yaml", "outputs/tune/best.yaml"}
    assert outs == ["outputs/candidate"]


def test_inputs_are_sent_and_outs_are_fetched(workspace, tmp_path_factory) -> None:
    there = tmp_path_factory.mktemp("there")
    params = workspace.write(**{"cluster.submit_root": str(there)})
    shutil.copy(REPOSITORY / "dvc.yaml", workspace.root)
    place = Workplace("train", params)
    place.send()
    place.send()
    sent = segcore.open_shards(there / "data/shards/painted")
    assert sent.digest == segcore.open_shards(workspace.shards).digest
    (there / "outputs/candidate").mkdir(parents=True)
    (there / "outputs/candidate/spec.json").write_text("new")
    (workspace.root / "outputs/candidate").mkdir(parents=True)
    (workspace.root / "outputs/candidate/old.json").write_text("old")
    place.fetch()
    fetched = workspace.root / "outputs/candidate"
    assert [file.name for file in fetched.iterdir()] == ["spec.json"]
    with pytest.raises(ClusterError, match=r"cluster\.submit_root '/no/such' is no folder"):
        Workplace("train", workspace.write(**{"cluster.submit_root": "/no/such"}))


def test_no_cluster_that_takes_jobs_is_one_line(workspace) -> None:
    workspace.write(**{"cluster.submit": "http://127.0.0.1:9"})
    shutil.copy(REPOSITORY / "dvc.yaml", workspace.root)
    done = subprocess.run(
        workspace.command("train"), env=workspace.environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "error: no Ray cluster takes jobs at cluster.submit" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_is_cancelled_with_a_checkpoint_and_goes_on(
    workspace, head, tmp_path_factory
) -> None:
    there = tmp_path_factory.mktemp("there")
    shutil.copy(REPOSITORY / "dvc.yaml", workspace.root)
    workspace.write(
        **{
            "cluster.submit": head.jobs,
            "cluster.submit_root": str(there),
            "train.epochs": 2,
            "train.epoch_steps": 1000,
            "train.checkpoint_steps": None,
        }
    )
    path = f"{Path(sys.executable).parent}:{head.environment['PATH']}"
    environment = {**workspace.environment(), **head.environment, "PATH": path}

    def progress() -> bool:
        return bool(list(there.glob("outputs/runs/train-*/progress.json")))

    process = subprocess.Popen(workspace.command("train"), env=environment)
    while not progress():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    (file,) = there.glob(f"outputs/runs/train-*/{EVENTS}")
    (report,) = read_lines(file)
    assert 0 < report["step"] < 1000
    done = subprocess.run(
        workspace.command("train"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming at step {report['step']}" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert segcore.load_package(workspace.root / "outputs/candidate")
