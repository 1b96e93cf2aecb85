"""The room that the group of a trial holds: Ray keeps it until the search ends, unless told.

A trial that is stopped ends at once, and the controller of its group with it, before that has given
back the group's room. So the workers write down which room they are in.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segcore
from pipelines.cluster.train import TrainWorker
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.storage import write_atomic

FILE = "room"
SETTLE_S = 5.0  # in which the controller of a trial that was stopped has ended


@dataclass(frozen=True)
class Noting:
    """A worker that writes down its room before it begins.

    Args:
        worker: what it does.
        trial: folder of the trial.
    """

    worker: TrainWorker
    trial: Mirror

    def __call__(
        self, params: Params, shards: Path | str, folder: Path, state: dict[str, Any] | None
    ) -> Iterator["segcore.Epoch"]:
        from ray.util import get_current_placement_group

        room = get_current_placement_group()
        if room is not None:
            write_atomic(self.trial.folder / FILE, room.id.hex().encode())
            self.trial.push(FILE)
        return self.worker(params, shards, folder, state)


class Rooms:
    """The rooms of trials that are over, until they are given back."""

    def __init__(self) -> None:
        self._left: list[tuple[float, str]] = []

    def leave(self, trial: Mirror) -> None:
        """A trial is over, or its process died."""
        known = trial.read(FILE)
        if known is not None:
            trial.remove(FILE)
            self._left.append((time.monotonic(), known.decode()))

    def free(self) -> None:
        """Give back what was left some seconds ago.

        Not at once: a controller that still lives would start its workers again elsewhere.
        """
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        while self._left and self._left[0][0] < time.monotonic() - SETTLE_S:
            _, name = self._left.pop(0)
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))
