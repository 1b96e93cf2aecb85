"""What an exported file says of itself, inside: one JSON text, the same in every format."""

import importlib
import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from segcore.errors import ExportError
from segcore.inference.spec import PackageSpec

KEY = "segcore"
VERSION = 1
INPUT = "image"
OUTPUT = "logits"


@dataclass(frozen=True)
class Facts:
    """The description of an exported file.

    Args:
        spec: of the model package that it was made of.
        digest: of that package.
        pixel_bytes: memory that a pass takes, by pixel of its input.
    """

    spec: PackageSpec
    digest: str
    pixel_bytes: float

    def entries(self) -> dict[str, str]:
        """Keys and texts for the metadata of a file; classes and palette by themselves too."""
        document = {
            "format": VERSION,
            "input": f"{INPUT}: uint8 [N, {self.spec.in_channels}, H, W], H and W at least 32",
            "output": f"{OUTPUT}: float32 [N, {self.spec.num_classes}, H, W]; its argmax is the "
            "class",
            "package_digest": self.digest,
            "pixel_bytes": self.pixel_bytes,
            "spec": self.spec.to_json(),
        }
        return {
            KEY: json.dumps(document, sort_keys=True, ensure_ascii=False),
            "classes": json.dumps(self.spec.classes, ensure_ascii=False),
            "palette": json.dumps(self.spec.palette),
        }

    @classmethod
    def read(cls, text: str | None, file: Any) -> "Facts":
        """The facts in the metadata of a file.

        Raises:
            ExportError: there are none, or they are damaged or of a newer segcore.
        """
        try:
            document = json.loads(text or "{}")
            if document.get("format") != VERSION:
                raise ValueError(f"format {document.get('format')!r}, this segcore reads {VERSION}")
            spec = PackageSpec.from_json(document["spec"])
            return cls(spec, document["package_digest"], float(document["pixel_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(
                f"{file} does not say what its classes are ({error}): it was not written by "
                "`segcore export`, or by a newer one; export the model again"
            ) from error


def said(error: BaseException) -> str:
    """The first line of what went wrong first; runtimes wrap it in advice of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def need(module: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Raises:
        ExportError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"{purpose} needs {module}, which cannot be imported ({error}): "
            "pip install 'segcore[export]'"
        ) from error
