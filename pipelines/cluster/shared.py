"""Whether every node of the cluster sees a folder: looked for there, not believed."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ClusterError
from segcore.data.address import is_remote

ANSWER_S = 60.0
WAYS = "name a folder that all nodes mount at the same path, or s3://bucket/prefix"


def check_shared(folders: Mapping[str, str | Path]) -> None:
    """Refuse folders that only this machine has, where the cluster has other nodes.

    A file is put into each folder, and a task on each node looks for it; then it is removed.

    Args:
        folders: setting of params.yaml -> absolute folder, or an address, which is not looked at.

    Raises:
        ClusterError: a node does not see a folder; names the setting, the folder and the node.
    """
    import ray

    local = {key: Path(folder) for key, folder in folders.items() if not is_remote(folder)}
    if not local or not ray.is_initialized():
        return
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    marks = {key: folder / f".seen-{secrets.token_hex(8)}" for key, folder in local.items()}
    try:
        for mark in marks.values():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        _ask(nodes, marks)
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)


def _ask(nodes: Mapping[str, str], marks: Mapping[str, Path]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    paths = {key: os.fspath(mark) for key, mark in marks.items()}
    look = ray.remote(num_cpus=0, max_retries=1)(_unseen)
    asked: dict[Any, str] = {}
    for node, address in nodes.items():
        strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        asked[look.options(scheduling_strategy=strategy).remote(paths)] = address
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    for answer in answered:
        for key in ray.get(answer):
            raise ClusterError(
                f"{key} is {marks[key].parent}, which node {asked[answer]} does not see; the "
                f"cluster has {len(nodes)} nodes: {WAYS}"
            )


def _unseen(paths: Mapping[str, str]) -> list[str]:
    """Keys of the files that this node does not see."""
    return [key for key, path in paths.items() if not os.path.exists(path)]
