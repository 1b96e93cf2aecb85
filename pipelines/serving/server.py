"""A server for a model: from an address to a socket that answers."""

import socket
from collections.abc import Callable

import torch
import uvicorn

from pipelines.errors import ServingError
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.prediction.job import make_job
from pipelines.prediction.located import exported, locate
from pipelines.prediction.manifest import TORCH
from pipelines.serving.app import Limits, create_app
from pipelines.serving.service import Service
from pipelines.storage import scratch
from segcore.errors import OptionError
from segcore.inference.predictor import best_device


def open_service(params: Params, *, model: str, engine: str = TORCH, device: str = "") -> Service:
    """Load a model to answer for.

    Args:
        params: `predict`, `cluster` and `tracking` are used.
        model: models:/name@alias, models:/name/version, or the folder of a package.
        engine: "torch", or a key of `segcore.export.ENGINES`, on the CPU.
        device: "cpu", "cuda", "cuda:1"; "": the accelerator if there is one.

    Raises:
        OptionError: this machine has no such device, or the engine does not run on it.
        PackageError: the model is not a whole package.
    """
    chosen = _device(device, engine)
    package, facts = locate(params, model)
    unused = Mirror(scratch(params.cluster.storage) / "serve")  # a job's results, of which are none
    job = make_job(params, package=package, out=unused, overlays=False, **facts)
    return Service(exported(params, job, engine) if engine != TORCH else job, chosen)


def serve(
    service: Service, limits: Limits, *, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Answer until interrupted.

    Args:
        ready: called with the address once it can be reached.
        port: 0 takes a free one.

    Raises:
        ServingError: the address is not free, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): give another --port"
        ) from error
    config = uvicorn.Config(
        create_app(service, limits), log_level="warning", access_log=False, server_header=False
    )
    shown = f"[{host}]" if ":" in host else host
    with listening:
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def _device(asked: str, engine: str) -> str:
    if engine != TORCH:
        if asked not in ("", "cpu"):
            raise OptionError(f"engine {engine} runs on the CPU: leave out --device {asked}")
        return "cpu"
    if not asked:
        return best_device()
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"device {asked!r} is not to be had ({reason}): try cpu") from error
    return asked
