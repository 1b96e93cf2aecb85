"""TorchTrainer with fewer helper processes, which does not retry what the user has to mend.

It leaves out what a group of workers without Ray Data does not use: the coordinator of
autoscaling, the placement group's cleaner, the dataset manager; that halves Ray Train's start-up on
a small machine. This rests on private names of Ray 2.60; on any other version `trainer_class` gives
the plain TorchTrainer.
"""

from typing import Any

import ray
from ray.train.torch import TorchTrainer

VERSION = "2.60."
DROPPED = {"PlacementGroupCleanerCallback", "DatasetsCallback"}


def trainer_class() -> type[TorchTrainer]:
    """The lean trainer where Ray is of the version that it was written for."""
    return LeanTrainer if ray.__version__.startswith(VERSION) else TorchTrainer


class LeanTrainer(TorchTrainer):  # type: ignore[misc,unused-ignore]
    """A TorchTrainer without datasets; elastic where `sizes` has more than one."""

    sizes: tuple[int, ...] = ()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [entry for entry in callbacks if type(entry).__name__ not in DROPPED]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        from pipelines.cluster.failing import OnlyUnexpected
        from pipelines.cluster.scaling import ElasticGroup, FixedGroup

        settings = self.run_config
        run = self.train_loop_config["job"].state.mirror
        options["failure_policy"] = OnlyUnexpected(settings.failure_config, run)
        options["scaling_policy"] = (
            ElasticGroup(self.scaling_config, sizes=self.sizes, run=run)
            if len(self.sizes) > 1
            else FixedGroup(scaling_config=self.scaling_config)
        )
        return super()._initialize_and_run_controller(**options)
