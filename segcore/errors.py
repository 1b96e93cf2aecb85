"""The errors that segcore raises on bad input: what is wrong, its value, what to do."""

import difflib
from collections.abc import Iterable


class SegcoreError(Exception):
    """Base of every error that segcore raises on purpose; its text is meant for the user."""


class ShapeError(SegcoreError, ValueError):
    """A tensor or image has a shape that the receiver cannot take."""


class OptionError(SegcoreError, ValueError):
    """An option has a value (or a name) that the receiver does not know."""


class UnknownNameError(SegcoreError, LookupError):
    """A registry has no entry of this name."""


class DataError(SegcoreError, ValueError):
    """A dataset, shard or image file is missing, corrupt or contradicts its description."""


class PackageError(SegcoreError, ValueError):
    """A model package on disk is missing, incomplete or does not match its digest."""


class ExportError(SegcoreError, ValueError):
    """A model cannot be written in a format, or an exported file cannot be run."""


class CheckpointError(SegcoreError, ValueError):
    """A checkpoint is missing, incomplete or belongs to another run."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that a registry does not hold, with the nearest match.

    Args:
        kind: what the registry holds, singular ("model", "loss", "dataset").
        name: the name that was asked for.
        known: every name that would have worked.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UnknownNameError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
