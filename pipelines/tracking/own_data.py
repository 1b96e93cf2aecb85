"""Whose data a registered model stands for: two folders of one name are not one model."""

from collections.abc import Mapping
from typing import Any

from pipelines.errors import OtherDataError

DATA, SOURCE, CLASSES = "dataset_digest", "data_source", "data_classes"
LONGEST_TAG = 4000


def data_tags(spec: Any) -> dict[str, str]:
    """What a version says of the data that its model was trained on (a `PackageSpec`)."""
    tags = {DATA: spec.dataset_digest}
    if source := spec.extra.get(SOURCE):
        tags |= {SOURCE: str(source), CLASSES: ", ".join(spec.classes)[:LONGEST_TAG]}
    return tags


def check_same_data(name: str, version: str, there: Mapping[str, str], own: dict[str, str]) -> None:
    """Refuse data of the user under the name of a model of other such data.

    Data that grew or was corrected is the same data: it has other shards, but the same source and
    classes. Equal shards are the same data wherever they came from. What does not say where it came
    from is let pass.

    Args:
        name: of the registered model.
        version: that stands for it.
        there: tags of that version.
        own: `data_tags` of the model to be registered.

    Raises:
        OtherDataError: names both sources, and the way out.
    """
    if SOURCE not in there or SOURCE not in own or there.get(DATA) == own[DATA]:
        return
    for key, what in ((SOURCE, "the folder"), (CLASSES, "the classes")):
        if there.get(key, own[key]) != own[key]:
            raise OtherDataError(
                f"registered model {name} is already that of other data: version {version} was "
                f"trained on {what} {there[key]}, this one is of {own[key]}. Give this data a name "
                "of its own by data.options.title (dvc exp run -S +data.options.title=NAME)"
            )
