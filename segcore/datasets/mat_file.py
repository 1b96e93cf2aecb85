"""MATLAB's .mat files of version 5 to 7: label maps and structs of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.data.codec import encode_mask
from segcore.data.sample import Flaw, Objects
from segcore.errors import DataError


def read_variable(file: Path, name: str) -> NDArray[Any]:
    """A variable of a file.

    Raises:
        DataError: the file is missing or damaged, of version 7.3 (HDF5), or has no such variable.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(file)
    except Exception as error:  # scipy raises every kind of error on broken files
        raise DataError(f"{type(error).__name__}: {error}") from error
    if name not in content:
        known = ", ".join(key for key in content if not key.startswith("__"))
        raise DataError(f"no variable {name}, but {known or 'none'}")
    found: NDArray[Any] = content[name]
    return found


def read_struct(file: Path, name: str, field: str) -> NDArray[Any]:
    """A field of a variable that is one struct.

    Raises:
        DataError: as `read_variable`, or it is no such struct.
    """
    struct = read_variable(file, name)
    if struct.dtype.names is None or field not in struct.dtype.names or struct.size != 1:
        raise DataError(f"{name} is no struct with {field}")
    found: NDArray[Any] = struct[field].item()
    return found


@dataclass(frozen=True)
class MatMask:
    """A label map in a .mat file whose classes begin with 1.

    Args:
        file: the file.
        variable: its map, [H, W].
        ignore_index: what 0 becomes; the others lose 1.
    """

    file: Path
    variable: str
    ignore_index: int = 255

    def read(self) -> Objects:
        """Read the map; there are no instances."""
        fix = "replace it by an intact copy"
        try:
            values = read_variable(self.file, self.variable)
        except DataError as error:
            flaw = Flaw(str(self.file), "unreadable mask", str(error), fix)
            return Objects(flaws=(flaw,))
        if values.ndim != 2 or values.min(initial=0) < 0 or values.max(initial=0) > 255:
            value = f"{values.shape}, up to {values.max(initial=0)}"
            return Objects(flaws=(Flaw(str(self.file), "unreadable mask", value, fix),))
        mask = np.where(values == 0, self.ignore_index, values.astype(np.int64) - 1)
        return Objects(None, encode_mask(mask.astype(np.uint8)))
