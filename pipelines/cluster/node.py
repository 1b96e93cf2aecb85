"""The node that trains, asked from here: what it is, and how long a step takes on it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pipelines.cluster import session
from pipelines.params import ClusterParams
from segcore.machine import Machine, describe_machine

T = TypeVar("T")


def trains_elsewhere(cluster: ClusterParams) -> bool:
    """Whether the machine that trains may be another than this one."""
    return session.address(cluster) != "local"


def training_machine(cluster: ClusterParams) -> Machine:
    """The machine that a worker will find: a node with a GPU where the cluster has any.

    Raises:
        ClusterError: no cluster answers at `cluster.address`.
    """
    if not trains_elsewhere(cluster):
        return describe_machine()
    with session.connect(cluster) as total:
        machine: Machine = _on_a_node(total, describe_machine)
    return replace(machine, accelerators=total.gpus)


def on_the_node(
    cluster: ClusterParams, call: Callable[[Mapping[str, Any], Mapping[str, Any]], T]
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], T]:
    """`call` as it is, or run by a node of the cluster where that trains."""
    if not trains_elsewhere(cluster):
        return call

    def remote(what: Mapping[str, Any], options: Mapping[str, Any]) -> T:
        with session.connect(cluster) as total:
            result: T = _on_a_node(total, call, what, options)
        return result

    return remote


def _on_a_node(total: session.Resources, call: Callable[..., T], *arguments: Any) -> T:
    import ray

    gpus = 1 if total.gpus else 0
    task = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_retries=1)(call)
    result: T = ray.get(task.remote(*arguments))
    return result
