"""Where a model is: the folder of its package, and its exported file."""

import hashlib
from dataclasses import replace
from pathlib import Path

from pipelines.params import Params
from pipelines.prediction.job import Job, fetch_package
from pipelines.storage import absolute, scratch
from pipelines.tracking.registry import Registry
from segcore.data.address import is_remote
from segcore.data.place import Place
from segcore.errors import unknown_name

REGISTRY = "models:/"
RUNS = {"onnxruntime": "onnx", "openvino": "openvino"}  # engine: what it runs here


def locate(params: Params, model: str) -> tuple[Path, dict[str, str]]:
    """Folder of a model package, what the manifest calls it, and what trained it.

    Args:
        model: models:/name@alias, models:/name/version, or a folder, also an s3:// address.

    Raises:
        PackageError: there is no package at that address.
        TrackingError: the registry has no such model.
    """
    if is_remote(model):
        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        folder = scratch(params.cluster.storage) / "models" / f"s3-{name}"
        return fetch_package(Place(model), folder), {"version": model}
    if not model.startswith(REGISTRY):
        return absolute(model), {"version": model}
    registry = Registry(params)
    version = registry.resolve(model)
    made = {"version": version.uri, "run_id": version.run_id, "commit": version.commit}
    return registry.download(version), made


def exported(params: Params, job: Job, engine: str) -> Job:
    """The job with an exported file for an engine: made once for each package, in the storage.

    Engines that compute in float32 only do so where the precision is left to the machine.

    Raises:
        ExportError: the architecture cannot be exported, or a module is not installed.
        OptionError: the engine does not compute at the precision that params ask for.
        UnknownNameError: no such engine.
    """
    if engine not in RUNS:
        raise unknown_name("engine", engine, ["torch", *RUNS])
    from segcore.export import ENGINES, FORMATS, check_precision, export_package

    precision = job.precision
    if params.predict.precision == "auto" and precision not in ENGINES[engine][1]:
        precision = "fp32"
    check_precision(engine, precision)
    form = RUNS[engine]
    file = scratch(params.cluster.storage) / "exported" / f"{job.digest}{FORMATS[form].suffix}"
    if not file.is_file():
        export_package(job.package, file, to=form)
    return replace(job, exported=file, engine=engine, precision=precision)
