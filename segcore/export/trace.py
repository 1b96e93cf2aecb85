"""From a model to a graph that takes any height, width and batch."""

from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from segcore.errors import ExportError, SegcoreError
from segcore.export.facts import INPUT, said
from segcore.export.pooling import averages_by_products
from segcore.inference.spec import PackageSpec

LEAST, MOST = 32, 2**15
# Batch and odd sides; no map of it has one row, for that would become a constant.
EXAMPLE = (2, 363, 395)
TRIED = (75, 101)  # sides of the part of it that runs before


def trace(graph: nn.Module, spec: PackageSpec) -> ExportedProgram:
    """The graph of a network, by torch.export.

    Args:
        graph: uint8 [N, C, H, W] to one tensor; moved to the CPU.
        spec: its description.

    Raises:
        ExportError: names the architecture and what stands against it.
    """
    batch, height, width = EXAMPLE
    example = torch.zeros(batch, spec.in_channels, height, width, dtype=torch.uint8)
    graph = graph.cpu().to(memory_format=torch.contiguous_format).eval()
    side = Dim.DYNAMIC(min=LEAST, max=MOST)
    try:
        with torch.no_grad(), averages_by_products(graph):
            found = graph(example[..., : TRIED[0], : TRIED[1]])
            if found.shape[-2:] != TRIED:
                raise ExportError(
                    f"its output is {tuple(found.shape[-2:])} for an image of {TRIED[0]} x "
                    f"{TRIED[1]}, and only networks that keep the size are exported"
                )
            program = torch.export.export(
                graph,
                (example,),
                dynamic_shapes={INPUT: {0: Dim.DYNAMIC, 2: side, 3: side}},
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except SegcoreError as error:
        raise ExportError(f"{named(spec)} cannot be exported: {error}") from error
    except Exception as error:  # of whatever part of a model torch.export cannot follow
        raise ExportError(
            f"{named(spec)} cannot be exported for images of any size: torch.export says "
            f"{said(error)!r}"
        ) from error
    _drop_checks(program)
    return program


def named(spec: PackageSpec) -> str:
    """The architecture, with the options that it was built with."""
    options = ", ".join(f"{key}={value!r}" for key, value in spec.options.items())
    return f"{spec.architecture} ({options})" if options else spec.architecture


def _drop_checks(program: ExportedProgram) -> None:
    """Remove what torch.export assumed of the sizes because it held for the example.

    Some of it says only that padding was needed, or that two sizes were unlike: it is no condition
    of the computation, but would refuse images. `check.compare` shows that the rest holds.
    """
    graph: Any = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
