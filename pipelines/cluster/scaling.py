"""How many workers a group has: as many as it was given, or as many as there is room for.

Ray's own elastic policy asks an actor that reserves resources for an autoscaler. It starts a group
of the old size while a lost node is still on the list of the living, waits a minute for it, and
does not see nodes that were added by hand. These policies ask nobody and look for themselves.
"""

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

from pipelines.mirror import Mirror
from pipelines.training.uploads import CHECKPOINTS

LOOK_S = 2.0  # between two looks for more room
WAIT_S = 0.5  # between two looks while there is too little
PATIENCE_S = 10.0  # for room to appear, before Ray is told to wait for it
ANSWER_S = 0.5  # of a node that lives

Resources = Mapping[str, float]


class FixedGroup(FixedScalingPolicy):  # type: ignore[misc,unused-ignore]
    """A fixed group of workers without the actor that coordinates autoscaling."""

    def after_controller_start(self, *args: Any, **kwargs: Any) -> None:
        """Do not start the coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """Do not ask it for resources."""

    def _cancel_resource_request(self) -> None:
        """Nothing was asked for."""


class ElasticGroup(FixedGroup):
    """As many workers as there is room for, in sizes that share a batch evenly.

    A group that lost a worker starts again at the size that fits; one that could be larger is
    started again when its next checkpoint is written, so that no step is lost.

    Args:
        scaling_config: of the trainer.
        sizes: numbers of workers that may be, smallest first.
        run: folder of the run, in which a new file tells of a checkpoint.
    """

    def __init__(self, scaling_config: Any, *, sizes: Sequence[int], run: Mirror) -> None:
        super().__init__(scaling_config=scaling_config)
        self._sizes = tuple(sizes)
        self._run = run
        self._next_look = 0.0
        self._larger = 0
        self._newest = ""
        self._held: Counter[str] = Counter()  # workers by node, until their room is given back
        self._ended: float | None = None

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start at the size that fits, what the group that ended still holds included."""
        now = time.monotonic()
        self._ended = self._ended or now
        size = self._fitting()
        if not size and now < self._ended + PATIENCE_S:
            time.sleep(WAIT_S)
            return NoopDecision()
        return self._resize(size or self._sizes[0])  # Ray then waits for the room

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Grow at the next checkpoint, once there is room for more."""
        self._held = Counter(worker.metadata.node_id for worker in worker_group_state.workers)
        running = self._held.total()
        if self._larger and _newest(self._run) != self._newest:
            return self._resize(self._larger)
        now = time.monotonic()
        if now >= self._next_look and running < self._sizes[-1]:
            self._next_look = now + LOOK_S
            size = self._fitting()
            if size > running and not self._larger:
                self._newest = _newest(self._run)
            self._larger = size if size > running else 0
        return NoopDecision()

    def _resize(self, size: int) -> Any:
        self._larger, self._ended, self._held = 0, None, Counter()
        return ResizeDecision(
            num_workers=size,
            resources_per_worker=self.scaling_config._resources_per_worker_not_none,
        )

    def _fitting(self) -> int:
        worker = self.scaling_config._resources_per_worker_not_none
        room = room_for(worker, free_nodes(), self._held)
        return max((size for size in self._sizes if size <= room), default=0)


def room_for(worker: Resources, nodes: Mapping[str, Resources], held: Mapping[str, int]) -> int:
    """How many workers fit on some nodes.

    Args:
        worker: what one asks for.
        nodes: free resources by node.
        held: workers by node that would make room.
    """
    asked = {name: amount for name, amount in worker.items() if amount > 0}
    return sum(
        held.get(name, 0) + int(min(free.get(key, 0.0) // amount for key, amount in asked.items()))
        for name, free in nodes.items()
        if asked
    )


def free_nodes() -> dict[str, Resources]:
    """Free resources of each node that answers, by its id."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    living = [node for node in ray.nodes() if node["Alive"] and _answers(node)]
    return {node["NodeID"]: free.get(node["NodeID"], {}) for node in living}


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether a node listens; one that died is on Ray's list for some more seconds."""
    where = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(where, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def _newest(run: Mirror) -> str:
    return max((name for name in run.names(CHECKPOINTS) if name.startswith("step-")), default="")
