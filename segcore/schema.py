"""JSON from elsewhere: bounded, read without surprises, compared with the shape it should have."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20
MAX_ENTRIES = 10_000_000

# A type; a tuple of shapes, one of which fits; [shape] for a list; {"key": shape, "key?": shape}
# for an object with these keys (and others); {str: shape} for one with any keys; ANY.
Shape = Any
ANY = object()
NUMBER = (int, float)


def read_json(path: Path, *, most: int = MAX_BYTES) -> Any:
    """The value in a JSON file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no JSON.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested without end.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def conform(value: Any, shape: Shape, where: str = "") -> None:
    """Compare a JSON value with its shape.

    Raises:
        ValueError: names the place, what is there and what should be.
    """
    if shape is ANY:
        return
    if isinstance(shape, tuple):
        _one_of(value, shape, where)
    elif isinstance(shape, list):
        _need(isinstance(value, list) and len(value) <= MAX_ENTRIES, where, value, "a list")
        for index, item in enumerate(value):
            conform(item, shape[0], f"{where}[{index}]")
    elif isinstance(shape, Mapping):
        _need(isinstance(value, Mapping), where, value, "an object")
        _conform_object(value, shape, where)
    elif shape is None:
        _need(value is None, where, value, "null")
    else:
        right = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        _need(right, where, value, shape.__name__)


def _conform_object(value: Mapping[str, Any], shape: Mapping[Any, Shape], where: str) -> None:
    for key, inner in shape.items():
        if key is str:
            for name, item in value.items():
                conform(item, inner, f"{where}.{name}")
            continue
        name = key.removesuffix("?")
        if name in value:
            conform(value[name], inner, f"{where}.{name}")
        else:
            _need(key.endswith("?"), f"{where}.{name}", None, "there")


def _one_of(value: Any, shapes: tuple[Shape, ...], where: str) -> None:
    faults = []
    for shape in shapes:
        try:
            conform(value, shape, where)
        except ValueError as error:
            faults.append(error)
        else:
            return
    raise faults[0]


def _need(right: bool, where: str, value: Any, what: str) -> None:
    if not right:
        found = repr(value)
        found = found if len(found) < 60 else f"{found[:60]}.."
        raise ValueError(f"{where.removeprefix('.') or 'the document'} is {found}, expected {what}")
