"""The model package on disk: `model.safetensors`, `model.json`, `README.md`; never a pickle."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import segcore
from segcore.data.atomic import new_folder
from segcore.errors import OptionError, PackageError, UnknownNameError
from segcore.inference.spec import PackageSpec
from segcore.package_checks import DESCRIPTION_SHAPE, MAX_DESCRIPTION, build_bounded, check_options
from segcore.schema import conform, read_json
from segcore.tasks import get_kind
from segcore.tasks.kind import AnyPredictor

__all__ = ["PackageSpec", "load_package", "package_digest", "read_spec", "save_package"]

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
CARD = "README.md"
OVERLAY = "overlay.png"
FORMAT = 1


def save_package(
    path: str | Path,
    model: nn.Module | Mapping[str, Tensor],
    spec: PackageSpec,
    *,
    overlay: Image.Image | None = None,
) -> Path:
    """Write a model package by rename, so that a folder of this name is always complete.

    The same weights and spec give the same bytes: no time of day is stored.

    Args:
        path: folder of the package; an older package there is replaced.
        model: the trained model (also compiled or wrapped for data-parallel training), or its
            state dict.
        spec: what inference needs to know.
        overlay: a picture of predictions for the model card.

    Returns:
        The folder.

    Raises:
        DataError: the disk is full or the place not writable; nothing is left behind.
    """
    path = Path(path)
    with new_folder(path) as fresh:
        save_file(_tensors(model), fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
        document = {
            "format": FORMAT,
            **spec.to_json(),
            "versions": dict(spec.versions) or _versions(),
            "weights_sha256": _sha256(fresh / WEIGHTS),
        }
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        (fresh / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if overlay is not None:
            overlay.convert("RGB").save(fresh / OVERLAY)
        card = _card(spec, path.name, with_overlay=overlay is not None)
        (fresh / CARD).write_text(card, encoding="utf-8")
        for file in fresh.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    return path


def load_package(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    max_memory_gib: float | None = None,
    **options: Any,
) -> AnyPredictor:
    """Rebuild the model of a package and return it ready for images.

    Args:
        path: folder of the package.
        device, precision, max_memory_gib: of the predictor of the package's kind of task.
        options: that predictor's own, such as `crf` of class maps.

    Raises:
        OptionError: an option that predictions of this kind do not have.
        PackageError: a file is missing, truncated, or does not fit the others; names the file.
    """
    from segcore.models import create_model

    path = Path(path)
    document = _description(path)
    spec = _spec(document, path / DESCRIPTION)
    weights = path / WEIGHTS
    digest = _sha256(weights)
    if digest != document.get("weights_sha256"):
        raise PackageError(
            f"{weights} has sha256 {digest[:12]}.., {DESCRIPTION} names "
            f"{str(document.get('weights_sha256'))[:12]}..: it is truncated or of another package; "
            "copy the package again or download it from the registry"
        )
    try:
        kind = get_kind(spec.task)
        built: dict[str, Any] = {**kind.model_facts(spec), **spec.options}
        model = build_bounded(lambda: create_model(spec.architecture, **built), weights)
    except (UnknownNameError, OptionError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(
            f"{path / DESCRIPTION}: {error}; it was saved by segcore "
            f"{spec.versions.get('segcore', 'of an unknown version')}: install that version"
        ) from error
    _load_weights(model, weights, spec)
    return kind.create_predictor(
        model,
        spec,
        device=device,
        digest=package_digest(path),
        precision=precision,
        max_memory_gib=max_memory_gib,
        **options,
    )


def read_spec(path: str | Path) -> PackageSpec:
    """The spec of a package, without loading its weights.

    Raises:
        PackageError: `model.json` is missing or not a package description.
    """
    path = Path(path)
    return _spec(_description(path), path / DESCRIPTION)


def package_digest(path: str | Path) -> str:
    """SHA-256 over the names and contents of `model.json` and `model.safetensors`.

    Raises:
        PackageError: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in (DESCRIPTION, WEIGHTS):
        digest.update(f"{name}\0{_sha256(Path(path) / name)}\n".encode())
    return digest.hexdigest()


def _tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = _unwrap(model).state_dict() if isinstance(model, nn.Module) else model
    # A clone each: safetensors refuses tensors that share memory.
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(state.items())
    }


def _unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of torch.compile's and data-parallel wrappers in any order."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return _unwrap(compiled) if isinstance(compiled, nn.Module) else model


def _versions() -> dict[str, str]:
    return {
        "segcore": segcore.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackageError(
            f"{path} cannot be read ({error.strerror}): a model package is a folder with {WEIGHTS} "
            f"and {DESCRIPTION}; check the path, or run the train stage to make one"
        ) from error


def _description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    _sha256(file)
    try:
        document = read_json(file, most=MAX_DESCRIPTION)
    except ValueError as error:
        raise PackageError(
            f"{file} is not JSON ({error}): it is truncated or was edited; copy the package again"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise PackageError(
            f"{file} has format {found!r}, this segcore reads {FORMAT}: "
            "it is no model package, or was written by a newer segcore"
        )
    return document


def _spec(document: Mapping[str, Any], file: Path) -> PackageSpec:
    values = {k: v for k, v in document.items() if k not in ("format", "weights_sha256")}
    try:
        conform(document, DESCRIPTION_SHAPE)
        check_options(document["options"], "options")
        return PackageSpec.from_json(values)
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(
            f"{file} is not a package description ({error}): copy the package again"
        ) from error


def _load_weights(model: nn.Module, weights: Path, spec: PackageSpec) -> None:
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except SafetensorError as error:
        raise PackageError(
            f"{weights} is not a safetensors file ({error}): copy the package again"
        ) from error
    except RuntimeError as error:
        raise PackageError(
            f"{weights} does not fit {spec.architecture} with options {dict(spec.options)}: "
            f"{str(error).splitlines()[-1].strip()}; the package was edited, or this segcore "
            f"builds the model differently from {spec.versions.get('segcore', 'its own')}"
        ) from error


def _card(spec: PackageSpec, name: str, *, with_overlay: bool) -> str:
    kind = get_kind(spec.task)
    size = "x".join(map(str, spec.input_size)) if spec.input_size else "native"
    picture = f"![predictions]({OVERLAY})\n\n" if with_overlay else ""
    metrics = "".join(
        f"| {key} | {value:.4f} |\n"
        for key, value in sorted(spec.metrics.items())
        if value is not None and math.isfinite(value)
    )
    figures = (
        f"## Validation figures\n\n| figure | value |\n|---|---|\n{metrics}\n" if metrics else ""
    )
    rows = "".join(
        f"| {index} | {label} | {', '.join(map(str, color))} |\n"
        for index, (label, color) in enumerate(zip(spec.classes, spec.palette, strict=True))
    )
    return (
        f"# {spec.architecture} on {spec.dataset_name or 'unnamed data'}\n\n{picture}"
        f"{kind.title} into {spec.num_classes} classes. Architecture "
        f"`{spec.architecture}`, options `{dict(spec.options)}`, {spec.in_channels} input channels,"
        f" input size {size}. Trained on `{spec.dataset_name}`, shards digest "
        f"`{spec.dataset_digest}`.\n\n"
        "## Use\n\n```python\nimport segcore\n\n"
        f'predictor = segcore.load_package("{name}")\n'
        'for prediction in predictor(["street.png", "square.jpg"]):\n'
        f"    {kind.usage}\n```\n\n"
        f"{figures}"
        f"## Classes\n\n| index | class | colour |\n|---|---|---|\n{rows}\n"
        "## Made with\n\n"
        + "".join(f"- {key} {value}\n" for key, value in (spec.versions or _versions()).items())
    )
