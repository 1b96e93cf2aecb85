"""Stage predict: masks of a folder of images, or of the images that judge, by the champion."""

import os
from pathlib import Path

from pipelines import stage
from pipelines.cluster.submit import here_or_there
from pipelines.params import Params
from pipelines.storage import absolute, root

SHARDS = Path("data/shards")
PACKAGE = Path("outputs/candidate")
OUT = Path("outputs/predictions")
SHOWN_FAILURES = 20


def held_out(params: Params) -> str:
    """Where the images of test, or else val, are: with the shards, which may lie elsewhere."""
    from segcore.data.place import Place
    from segcore.data.published import published
    from segcore.data.shards import open_shards
    from segcore.tasks.judging import JUDGES

    here = SHARDS / params.data.name
    dataset = open_shards(absolute(here))
    split = next((name for name in JUDGES if len(dataset.split(name))), JUDGES[0])
    place = published(Place(absolute(here)))
    elsewhere = place.address != str(absolute(here))
    return f"{place.address}/{split}" if elsewhere else str(here / split)


def main() -> int:
    params = Params.load()
    os.chdir(root())  # paths of images start from it, and a submitted job from elsewhere
    from pipelines.prediction.run import predict  # after the params: it imports torch
    from pipelines.tracking.registry import CHAMPION, model_name
    from segcore.package import read_spec

    model = params.predict.model
    if model is None:
        model = f"models:/{model_name(read_spec(absolute(PACKAGE)).dataset_name)}@{CHAMPION}"
    summary = predict(
        params,
        images=params.predict.images or held_out(params),
        model=model,
        out=OUT,
        overlays=params.predict.overlays,
        prune=True,
    )
    print(summary)
    for row in summary.failed[:SHOWN_FAILURES]:
        print(f"  {row.path}: {row.reason}")
    return summary.exit_code


if __name__ == "__main__":
    stage.run(here_or_there("predict", main))
