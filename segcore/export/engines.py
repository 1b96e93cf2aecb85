"""Exported files, run by the runtimes that they are for, behind the predictor of packages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segcore.errors import ExportError, OptionError, SegcoreError, unknown_name
from segcore.export.facts import KEY, Facts, need, said
from segcore.inference.network import fill_up
from segcore.tasks import get_kind
from segcore.tasks.kind import AnyPredictor

OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class ExportedGraph(nn.Module):
    """An exported file as a module.

    Args:
        run: uint8 [N, C, H, W] to the tensor that the file returns.
        facts: the text under "segcore" in the file; None where it has none.

    Shape:
        image: uint8 [N, C, H, W], H and W at least 32
        returns: float32 [N, num_classes, H, W]
    """

    def __init__(self, run: Callable[[Tensor], Tensor], facts: str | None) -> None:
        super().__init__()
        self.run = run
        self.facts = facts

    def forward(self, image: Tensor) -> Tensor:
        return self.run(image)


class ExportedNetwork:
    """Scores by an exported file; on the CPU.

    Args:
        model: the file.
        pixel_bytes: memory that a pass takes, by pixel of its input.
    """

    def __init__(self, model: nn.Module, pixel_bytes: float) -> None:
        self.model = model
        self._pixel_bytes = pixel_bytes

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Scores [N, K, H, W] in float32 of uint8 pixels [N, H, W, C] of any size."""
        height, width = pixels.shape[1:3]
        image = fill_up(pixels.permute(0, 3, 1, 2)).contiguous()
        scores: Tensor = self.model(image)
        return scores[..., :height, :width]

    def bytes_per_pixel(self) -> float:
        """As it was measured when the file was made, of torch."""
        return self._pixel_bytes


def load_exported(
    path: str | Path,
    *,
    engine: str | None = None,
    precision: str = "fp32",
    max_memory_gib: float | None = None,
    **options: Any,
) -> AnyPredictor:
    """A predictor that runs an exported file on the CPU, with as many threads as torch has.

    Args:
        path: file that `export_package` wrote.
        engine: a key of `ENGINES`; None: the one that the suffix says.
        precision: "fp32"; "bf16" and "fp16" with openvino only.
        max_memory_gib: of the predictor.
        options: the predictor's own, such as `crf`.

    Raises:
        ExportError: the file cannot be run, or the engine is not installed.
        OptionError: the engine does not compute at this precision, or not such files.
        UnknownNameError: no such engine.
    """
    path = Path(path)
    graph = open_graph(path, engine or _engine_of(path), precision=precision)
    facts = Facts.read(graph.facts, path)
    network: Any = ExportedNetwork(graph, facts.pixel_bytes)
    return get_kind(facts.spec.task).create_predictor(
        network,
        facts.spec,
        digest=facts.digest,
        precision=precision,
        max_memory_gib=max_memory_gib,
        **options,
    )


def open_graph(path: Path, engine: str, *, precision: str = "fp32") -> ExportedGraph:
    """An exported file by an engine; see `load_exported`."""
    check_precision(engine, precision)
    suffixes, _, opener = ENGINES[engine]
    if path.suffix not in suffixes:
        raise OptionError(f"{engine} runs {' and '.join(suffixes)} files, not {path.name}")
    if not path.is_file():
        raise ExportError(f"{path} does not exist: write it by `segcore export`")
    try:
        return opener(path, precision)
    except SegcoreError:
        raise
    except Exception as error:  # the runtimes' errors share no base
        raise ExportError(
            f"{path} cannot be run by {engine} ({said(error)}): export the model again"
        ) from error


def check_precision(engine: str, precision: str) -> None:
    """Refuse a precision that an engine does not compute at.

    Raises:
        OptionError: it does not.
        UnknownNameError: no such engine.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    known = ENGINES[engine][1]
    if precision not in known:
        raise OptionError(
            f"{engine} computes exported files at {', '.join(known)}, not {precision}: set "
            "the precision (predict.precision in params.yaml), or take the engine torch"
        )


def _onnxruntime(path: Path, precision: str) -> ExportedGraph:
    runtime: Any = need("onnxruntime", "the engine onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: image.numpy()})[0])

    return ExportedGraph(run, session.get_modelmeta().custom_metadata_map.get(KEY))


def _openvino(path: Path, precision: str) -> ExportedGraph:
    openvino: Any = need("openvino", "the engine openvino")
    core = openvino.Core()
    model = core.read_model(path)
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(compiled(image.numpy())[0])

    places = ([KEY], ["framework", KEY])  # of our own files, and of ONNX files
    found = (model.get_rt_info(place).astype(str) for place in places if model.has_rt_info(place))
    return ExportedGraph(run, next(found, None))


def _torch_export(path: Path, precision: str) -> ExportedGraph:
    extra = {KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    return ExportedGraph(program.module(), extra[KEY])


def _engine_of(path: Path) -> str:
    for name, (suffixes, _, _) in ENGINES.items():
        if path.suffix in suffixes:
            return name
    known = ", ".join(suffix for suffixes, _, _ in ENGINES.values() for suffix in suffixes)
    raise OptionError(f"{path.name} is no exported file; suffixes of those: {known}")


Opener = Callable[[Path, str], ExportedGraph]

# name: (suffixes of the files that it runs, precisions, opener)
ENGINES: dict[str, tuple[tuple[str, ...], tuple[str, ...], Opener]] = {
    "onnxruntime": ((".onnx",), ("fp32",), _onnxruntime),
    "openvino": ((".xml", ".onnx"), tuple(OPENVINO_TYPES), _openvino),
    "torch-export": ((".pt2",), ("fp32",), _torch_export),
}
