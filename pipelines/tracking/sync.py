"""Bring the store up to date with what runs could not deliver while it was away."""

from dataclasses import dataclass

from pipelines.params import Params
from pipelines.storage import scratch
from pipelines.tracking.buffer import replay, waiting
from pipelines.tracking.connection import connect
from pipelines.tracking.run import BUFFERS


@dataclass(frozen=True)
class Synced:
    """What `sync` did.

    Args:
        runs: that are complete now, by id.
        left: records that could still not be delivered, by id of their run.
    """

    runs: tuple[str, ...]
    left: dict[str, int]


def sync(params: Params) -> Synced:
    """Send the records of runs whose process has ended; the store is not asked if there are none.

    Args:
        params: `tracking` and `cluster.storage` are used.

    Raises:
        TrackingError: the store does not answer.
    """
    folder = scratch(params.cluster.storage) / BUFFERS
    runs = [home.name for home in waiting(folder)]
    if not runs:
        return Synced((), {})
    left = replay(connect(params.tracking).client, folder)
    return Synced(tuple(run for run in runs if run not in left), left)
