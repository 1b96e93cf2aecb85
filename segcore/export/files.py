"""Model packages written as ONNX, torch.export or OpenVINO files, each checked beside torch."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram

from segcore.data.atomic import disk_errors
from segcore.errors import ExportError, unknown_name
from segcore.export.check import Agreement, compare
from segcore.export.engines import open_graph
from segcore.export.facts import INPUT, KEY, OUTPUT, Facts, need, said
from segcore.export.trace import named, trace
from segcore.inference.network import Network
from segcore.package import load_package
from segcore.tasks import get_kind

AXES = {0: "batch", 2: "height", 3: "width"}
OPSET = 18


@dataclass(frozen=True)
class Format:
    """A kind of exported file.

    Args:
        suffix: of its main file.
        engine: runs it for the check.
        write: (program, facts, folder) -> nothing; makes files named `model` in the folder.
    """

    suffix: str
    engine: str
    write: Callable[[ExportedProgram, Facts, Path], None]


def export_package(
    package: str | Path, out: str | Path, *, to: str = "onnx", check: bool = True
) -> tuple[Path, Agreement | None]:
    """Write the model of a package as a file that needs no segcore to run.

    The file takes uint8 images [N, C, H, W] of any size from 32 on and any number, normalises them,
    and returns logits [N, num_classes, H, W] in float32. Where the package has an `input_size`,
    images are to be resized to it before, as `load_exported` does.

    Args:
        package: folder of the package.
        out: file; its suffix is that of the format if it has another.
        to: a key of `FORMATS`.
        check: run it beside torch on images of several sizes.

    Returns:
        The file, and how far it agrees with torch; None unless checked.

    Raises:
        ExportError: the architecture cannot be exported, a module is not installed, or the file
            labels pixels otherwise than torch does; then nothing is written.
        UnknownNameError: no such format.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    form, out = FORMATS[to], Path(out)
    if out.suffix != form.suffix:
        out = out.with_name(out.name + form.suffix)
    predictor = load_package(package)
    spec, model = predictor.spec, predictor.model
    graph = get_kind(spec.task).graph(model, spec)
    network = Network(model, spec, device=torch.device("cpu"), precision="fp32")
    facts = Facts(spec, predictor.digest, network.bytes_per_pixel())
    with quiet(), disk_errors(out):
        program = trace(graph, spec)
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            form.write(program, facts, Path(folder))
            made = Path(folder, f"model{form.suffix}")
            agreement = compare(graph, open_graph(made, form.engine), spec) if check else None
            for file in sorted(Path(folder).iterdir()):  # weights before what names them
                file.replace(out.with_suffix(file.suffix))
    return out, agreement


def write_torch(program: ExportedProgram, facts: Facts, folder: Path) -> None:
    """model.pt2, for `torch.export.load`; its extra file "segcore" says what the classes are."""
    torch.export.save(program, folder / "model.pt2", extra_files=facts.entries())


def write_onnx(program: ExportedProgram, facts: Facts, folder: Path) -> None:
    """model.onnx, weights inside."""
    need("onnxscript", "the format onnx")
    try:
        exported: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: AXES},
            verbose=False,
        )
    except Exception as error:  # of an operation that ONNX, or its exporter, has not
        raise ExportError(
            f"{named(facts.spec)} cannot be written as ONNX: {said(error)}; the format "
            "torch-export may take it"
        ) from error
    exported.model.metadata_props.update(facts.entries())
    exported.save(folder / "model.onnx", external_data=False)


def write_openvino(program: ExportedProgram, facts: Facts, folder: Path) -> None:
    """model.xml and model.bin, by way of ONNX; weights stay float32."""
    openvino: Any = need("openvino", "the format openvino")
    with TemporaryDirectory() as between:
        write_onnx(program, facts, Path(between))
        model = openvino.Core().read_model(Path(between, "model.onnx"))
        for key, text in facts.entries().items():
            model.set_rt_info(text, [key] if key == KEY else [KEY + "_" + key])
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice that exporters give to their own developers."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", "onnxruntime", write_onnx),
    "torch-export": Format(".pt2", "torch-export", write_torch),
    "openvino": Format(".xml", "openvino", write_openvino),
}
