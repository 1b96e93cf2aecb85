"""Reading params.yaml, and the words of its errors."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from segcore.errors import OptionError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2, as DVC reads them: 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        OptionError: the file is missing, is not YAML, or holds no mapping.
    """
    if not file.is_file():
        raise OptionError(f"no {file} in {Path.cwd()}: run from the top of the repository")
    try:
        values = yaml.load(file.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"{file} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise OptionError(f"{file} holds no sections: restore it from git")
    return values


def unknown_key(key: str, known: Iterable[str]) -> OptionError:
    """The error for a dotted key that does not exist, with its nearest match."""
    parent, _, leaf = key.rpartition(".")
    names = sorted(known)
    near = difflib.get_close_matches(leaf, names, n=1)
    hint = f"did you mean {parent}{'.' if parent else ''}{near[0]}? " if near else ""
    place = f"Keys of {parent}" if parent else "Sections"
    return OptionError(f"unknown key {key}: {hint}{place}: {', '.join(names)}")


def explain(fault: Any, model: type[BaseModel]) -> str:
    """One fault of a pydantic validation in the words of params.yaml."""
    place = [str(part) for part in fault["loc"]]
    key = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return str(unknown_key(key, _fields(model, place[:-1])))
    if fault["type"] == "missing":
        return f"missing key {key}: add it, or restore params.yaml from git"
    secret = isinstance(fault["input"], dict) or "@" in str(fault["input"])  # credentials, perhaps
    given = "" if secret else f"is {fault['input']!r}: "
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    near = ""
    if fault["type"] == "literal_error":
        choices = re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        match = difflib.get_close_matches(str(fault["input"]), choices, n=1)
        near = f"; did you mean {match[0]}?" if match else ""
    return f"{key} {given}{message}{near}"


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the keys that the section at `path` knows; for unions, those of its members."""
    found: Any = model
    for part in path:
        fields = getattr(found, "model_fields", {})
        if part not in fields:
            break
        found = fields[part].annotation
    return list(getattr(found, "model_fields", {}))
