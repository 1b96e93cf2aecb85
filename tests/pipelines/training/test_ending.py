"""A stage that is told to end writes a checkpoint first, and nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.mirror import Mirror
from pipelines.storage import read_lines
from pipelines.training import ending, run_state
from segcore.errors import SegcoreError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
DVC = [sys.executable, "-m", "dvc"]
# Reports at epoch ends alone, which take longer to come than a test waits for.
LONG = {"train.epochs": 3, "train.epoch_steps": 5000, "train.checkpoint_steps": None}


def state(root: Path) -> list[dict[str, object]]:
    files = list(root.glob(f"outputs/runs/train-*/{run_state.EVENTS}"))
    return read_lines(files[0]) if files else []


def wait_for(condition, limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def trains(root: Path) -> bool:
    """Whether steps are being done."""
    return bool(list(root.glob(f"outputs/runs/train-*/{run_state.PROGRESS}")))


def test_terminated_in_an_epoch_loses_no_step(workspace) -> None:
    workspace.write(**LONG)
    process = subprocess.Popen(
        workspace.command("train"), cwd=workspace.root, env=workspace.environment()
    )
    wait_for(lambda: trains(workspace.root))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    (report,) = state(workspace.root)
    assert not report["complete"]
    assert 0 < report["step"] < 5000
    assert list(workspace.root.glob(f"outputs/runs/train-*/checkpoints/step-*{report['step']}.pt"))
    assert not (workspace.root / "outputs/candidate").exists()


@pytest.mark.slow  # two trainings under dvc each
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_writes_on_when_dvc_is_gone_and_the_next_repro_goes_on(workspace, how) -> None:
    workspace.write(**{**LONG, "train.epochs": 1, "train.epoch_steps": 400})
    environment = {
        **workspace.environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run([*DVC, "init", "--no-scm", "-q"], check=True, env=environment)
    stage = {"cmd": "python -m pipelines.train", "outs": ["outputs/candidate"]}
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    dvc = subprocess.Popen([*DVC, "repro"], env=environment)
    wait_for(lambda: trains(workspace.root))
    stages = [
        child
        for child in psutil.Process(dvc.pid).children(recursive=True)
        if "pipelines.train" in " ".join(child.cmdline())
    ]
    assert stages
    dvc.send_signal(how)
    dvc.wait()
    psutil.wait_procs(stages, timeout=60)
    assert not any(stage.is_running() for stage in stages)
    (report,) = state(workspace.root)
    assert 0 < report["step"] < 400
    again = subprocess.run([*DVC, "repro"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resuming at step {report['step']}" in again.stdout
    assert (workspace.root / "outputs/candidate/model.safetensors").is_file()


def test_two_processes_never_write_to_one_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_state, "CLAIM_S", 0.5)
    first = run_state.RunState(tmp_path / "run", metric="val/miou", mode="max")
    second = run_state.RunState(tmp_path / "run", metric="val/miou", mode="max")
    with (
        first.claim(),
        pytest.raises(SegcoreError, match="another process trains in"),
        second.claim(),
    ):
        pass
    with second.claim():
        pass


def test_an_end_that_never_comes_is_cut_short(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ending, "GRACE_S", 0.3)

    def run() -> None:
        with ending.checkpoint_first(Mirror(tmp_path)):
            os.kill(os.getpid(), signal.SIGTERM)
            assert ending.of_driver(Mirror(tmp_path))
            assert ending.Asked(Mirror(tmp_path))()
            time.sleep(60)

    began = time.monotonic()
    with pytest.raises(SystemExit):
        run()
    assert time.monotonic() - began < 30
