"""A stage as a job of a Ray cluster: sent from here, followed here, cancelled from here."""

import asyncio
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipelines import storage
from pipelines.cluster.outs import Workplace
from pipelines.cluster.session import JOB_VARIABLE
from pipelines.errors import ClusterError
from pipelines.params import Params

EXCLUDES = [
    "/data", "/outputs", "/mlruns", "/mlflow.db", "/.venv", "/.git", "/.dvc",
    "/tests", "/docs", "/benchmarks",
]  # fmt: skip
STOP_S = 30  # for a job's last checkpoint
POLL_S = 0.5
LOST_S = 60.0
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
DONE = {0, 3}  # 3: some inputs of a prediction failed, the others are there
TOKEN = "ray_token"
KEY = "segcore"
QUIET = ("ray.dashboard.modules", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")


def here_or_there(stage: str, main: Callable[[], int | None]) -> Callable[[], int | None]:
    """`main` itself, or what sends the stage to the cluster that `cluster.submit` names.

    Args:
        stage: name in dvc.yaml.
        main: the stage; in the job's own process it runs.
    """

    def run() -> int | None:
        if JOB_VARIABLE in os.environ:
            return main()
        params = Params.load()
        return main() if params.cluster.submit is None else submit(stage, params)

    return run


def submit(stage: str, params: Params) -> int:
    """Run a stage as a job, or follow the one that an earlier process has sent.

    Ctrl-C and SIGTERM cancel the job, which writes a checkpoint first. What the stage makes lies
    in its outs afterwards, as if it had run here.

    Args:
        stage: name in dvc.yaml.
        params: of the project.

    Returns:
        The exit code of the stage.

    Raises:
        ClusterError: nothing answers at `cluster.submit`, or Ray could not run the job.
    """
    address = str(params.cluster.submit)
    place = Workplace(stage, params)
    client = _client(address, params)
    job = _running(client, place.key)
    if job is None:
        place.send()
        job = _send(client, stage, place)
        print(f"job {job} at {address}: {stage}", flush=True)
    else:
        print(f"job {job} at {address} still runs: following it", flush=True)
    try:
        _follow(client, job)
    except BaseException:
        _cancel(client, job)
        raise
    code = _exit_code(client, job)
    if code in DONE:
        place.fetch()
    return code


def _client(address: str, params: Params) -> Any:
    token = storage.absolute(params.cluster.storage) / TOKEN
    if "RAY_AUTH_MODE" not in os.environ and token.is_file():
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    from ray.job_submission import JobSubmissionClient

    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)  # every file that does not travel

    try:
        return JobSubmissionClient(address)
    except Exception as error:  # Ray raises bare ConnectionError and RuntimeError, among others
        raise ClusterError(
            f"no Ray cluster takes jobs at cluster.submit {address!r} "
            f"({(str(error) or type(error).__name__).splitlines()[0]}): give the head's dashboard, "
            "http://HEAD:8265, and its token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH), or set "
            "cluster.submit to null"
        ) from error


def _running(client: Any, key: str) -> str | None:
    """The job that does the same and has not ended."""
    for job in client.list_jobs():
        if (job.metadata or {}).get(KEY) == key and str(job.status.value) not in ENDED:
            return str(job.submission_id)
    return None


def _send(client: Any, stage: str, place: Workplace) -> str:
    environment = {
        storage.ROOT_VARIABLE: str(place.root),
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
        "PYTHONUNBUFFERED": "1",
    }
    runtime = {
        "working_dir": str(storage.root()),
        "excludes": EXCLUDES,
        "env_vars": environment,
    }
    digest = hashlib.sha256(f"{place.key} {time.time_ns()}".encode()).hexdigest()[:8]
    sent = client.submit_job(
        entrypoint=f"python -m pipelines.{stage}",
        submission_id=f"{stage}-{digest}",
        runtime_env=runtime,
        metadata={KEY: place.key},
    )
    return str(sent)


def _follow(client: Any, job: str) -> None:
    """Print what the job prints until it has ended; a broken connection is made again."""
    shown = 0

    async def tail() -> None:
        nonlocal shown
        seen = 0
        async for part in client.tail_job_logs(job):
            seen += len(part)
            new = part[len(part) - min(len(part), max(0, seen - shown)) :]
            shown = max(shown, seen)
            sys.stdout.write(new)
            sys.stdout.flush()

    answered = time.monotonic()
    while True:
        with suppress(Exception):  # aiohttp's and Ray's, of a connection that broke
            asyncio.run(tail())
        try:
            if str(client.get_job_status(job).value) in ENDED:
                return
            answered = time.monotonic()
        except Exception as error:
            if time.monotonic() - answered > LOST_S:
                raise ClusterError(
                    f"the cluster has not answered for {LOST_S:g} s; job {job} may still run: the "
                    "same command follows it again, or goes on from its newest checkpoint"
                ) from error
        time.sleep(POLL_S)


def _cancel(client: Any, job: str) -> None:
    """Tell a job to end, and wait until it has."""
    print(f"cancelling job {job}", file=sys.stderr, flush=True)
    with suppress(Exception):  # the reason to cancel may be that the cluster is gone
        client.stop_job(job)
        end = time.monotonic() + STOP_S + 5
        while time.monotonic() < end and str(client.get_job_status(job).value) not in ENDED:
            time.sleep(POLL_S)


def _exit_code(client: Any, job: str) -> int:
    info = client.get_job_info(job)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    raise ClusterError(
        f"job {job} ended without an exit code ({info.message or info.status.value}): run the "
        "same command again, it goes on from the newest checkpoint"
    )
