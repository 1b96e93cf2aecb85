"""Weights from torchvision's enums or from the user's own files; never a pickle of code."""

import pickle
import urllib.error
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from segcore.errors import CheckpointError, OptionError

SAMPLES = 3


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """ImageNet state_dict of a torchvision builder, through torch.hub's cache.

    Raises:
        OptionError: torchvision has no weights of this name, or they are neither in the cache nor
            can be downloaded; the message says which file to put where.
    """
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError) as error:
        raise OptionError(
            f"torchvision has no weights for {name!r}: set pretrained to false or a path"
        ) from error
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise OptionError(
            f"weights of {name} are not in the cache and cannot be downloaded ({error}): "
            f"put {weights.url} at {target}, or set pretrained to false"
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"{target} cannot be read ({error}): delete it and download {weights.url} again"
        ) from error
    return state


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch.save'd state_dict.

    Args:
        path: the file, or a folder that holds model.safetensors. A state_dict may lie under
            "state_dict" or "model" in it.

    Raises:
        CheckpointError: missing, unreadable or not a state_dict.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist: give an existing file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds for a broken file
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}): give a .safetensors file "
            "or a torch.save'd state_dict of tensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"checkpoint {path} holds no state_dict: save model.state_dict()")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load the user's checkpoint into a whole model, or into its encoder.

    Tensors of another shape (a classifier of other classes) keep their initialisation, with a
    warning; a tensor that is missing is an error, unless the model lists the start of its name in
    `absent_in_siblings` (the finer scores of FCN-16s, in a checkpoint of FCN-32s).

    Raises:
        CheckpointError: unreadable, or of another architecture.
    """
    state = read_checkpoint(path)
    encoder = getattr(model, "encoder", None)
    trunk = getattr(encoder, "trunk", None)
    candidates = [module for module in (model, encoder, trunk) if isinstance(module, nn.Module)]
    for module in candidates:
        if not _missing(module, state):
            _load_shapes_that_fit(module, state, path)
            return
    missing = _missing(model, state)
    raise CheckpointError(
        f"checkpoint {path} is not of this architecture: it lacks {len(missing)} tensors "
        f"({', '.join(missing[:SAMPLES])}, ...)"
    )


def load_trunk(trunk: nn.Sequential, state: Mapping[str, Tensor], source: str) -> None:
    """Load a classification network's state_dict into its convolutional trunk.

    Args:
        trunk: layers under the network's own names, or those of its `features`.
        state: of the network, of the trunk, or of an `Encoder`; the classifier is left out.
        source: what the error names.

    Raises:
        CheckpointError: tensors of the trunk are missing or have another shape.
    """
    own = trunk.state_dict()
    for prefix in ("", "features.", "trunk.", "encoder.trunk."):
        found = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix) and key.removeprefix(prefix) in own
        }
        missing = [k for k in own if k not in found and not k.endswith("num_batches_tracked")]
        if not missing:
            break
    else:
        raise CheckpointError(
            f"{source} is not of this backbone: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:SAMPLES])}, ...)"
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"{source}: {key} is {tuple(value.shape)}, the backbone has {tuple(own[key].shape)}"
            )
    trunk.load_state_dict(found, strict=False)


def _missing(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    optional: tuple[str, ...] = getattr(module, "absent_in_siblings", ())
    return [k for k in module.state_dict() if k not in state and not k.startswith(optional)]


def _load_shapes_that_fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = {key: value for key, value in module.state_dict().items() if key in state}
    unlike = [key for key in own if state[key].shape != own[key].shape]
    if unlike:
        warnings.warn(
            f"{path}: tensors of another shape keep their initialisation: {', '.join(unlike)}",
            stacklevel=3,
        )
    module.load_state_dict({k: state[k] for k in own if k not in unlike}, strict=False)
