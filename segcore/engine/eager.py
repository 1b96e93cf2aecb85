"""Optimisers that do not import the compiler.

`torch.optim` keeps torch.compile out of its methods, and imports the compiler for that when one of
them is first called: four seconds of every process that trains, most of which compile nothing.
The guard of a method is stored with it (`torch/_compile.py`): putting the method itself there says
that nothing has to be guarded. `step` breaks the compiler's graph around torch's own function,
which its wrappers name. Where the compiler is there already, nothing is done.
"""

import inspect
import sys
from types import MethodType

import torch
from torch.optim import Optimizer

GUARDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
GUARD = "__dynamo_disable"


def spare_compiler() -> None:
    """Let methods of optimisers run unguarded; for runs that do not compile."""
    for name in GUARDED if not _compiler_is_there() else ():
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, GUARD):
            setattr(method, GUARD, method)


def guard_again() -> None:
    """Undo `spare_compiler`; for runs that compile."""
    for name in GUARDED:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None and getattr(method, GUARD, None) is method:
            delattr(method, GUARD)


def step_plainly(optimizer: Optimizer) -> None:
    """Let `step` of an optimiser, which no hooks are put on, be torch's own function alone."""
    if not _compiler_is_there():
        plain = MethodType(inspect.unwrap(type(optimizer).step), optimizer)
        setattr(optimizer, "step", torch.no_grad()(plain))  # noqa: B010 - a method, to mypy


def _compiler_is_there() -> bool:
    return "torch._dynamo" in sys.modules
