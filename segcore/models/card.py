"""What is known about an architecture beside its code."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelCard:
    """Facts of one registered architecture; the tests hold the code to them.

    Args:
        name: registry name.
        title: name in the literature.
        paper: citation with arXiv id or DOI.
        year: of publication.
        task: "semantic", "instance", "panoptic" or "semi_supervised".
        parameters: published or reference count at 21 classes, 3 input channels, default options.
        counts: the same at other numbers of classes, where a source has them.
        published: results that the authors or others report, by benchmark name.
        notes: departures from the paper and contradictions between sources.
        exceptions: contract checks that do not hold ("export", "compile"); a test proves each.
        input_dims: 2 for images [N, C, H, W], 3 for volumes [N, C, D, H, W].
        min_size: smallest side of the input that the model takes.
    """

    name: str
    title: str
    paper: str
    year: int
    task: str
    parameters: int
    counts: Mapping[int, int] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""
    exceptions: tuple[str, ...] = ()
    input_dims: int = 2
    min_size: int = 32
