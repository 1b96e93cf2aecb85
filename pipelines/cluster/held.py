"""The room that the group of a trial holds: Ray keeps it until the search ends, unless told.

A trial that is stopped ends at once, and the controller of its group with it, before that has given
back the group's room. So the workers write down which room they are in.
"""

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


def free(trial: Mirror) -> None:
    """Give back the room of a trial that is over; workers that are left end."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    known = trial.read(FILE)
    if known is not None:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(known.decode()))))
        trial.remove(FILE)
