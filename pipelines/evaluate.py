"""Stage evaluate: candidate against champion on the test split; promotes the better."""

from pathlib import Path

from pipelines import stage
from pipelines.cluster.submit import here_or_there
from pipelines.params import Params
from pipelines.storage import absolute

SHARDS = Path("data/shards")
PACKAGE = Path("outputs/candidate")
REPORT = Path("outputs/report")


def main() -> None:
    params = Params.load()
    from pipelines.evaluation.compare import evaluate  # after the params: it imports torch

    shards = absolute(SHARDS / params.data.name)
    outcome = evaluate(params, shards=shards, package=absolute(PACKAGE), folder=absolute(REPORT))
    print(f"evaluate: {outcome.summary}")


if __name__ == "__main__":
    stage.run(here_or_there("evaluate", main))
