"""What workers do before they train: they find each other's addresses, and listen to SIGTERM.

Gloo and NCCL look for a network interface by the host's name, which on many nodes means loopback:
workers of two nodes then wait for each other in vain. Here each worker takes the interface that
carries its node's address in the cluster, unless the environment names another.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from pipelines.training import ending

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class NodeBackend(_TorchBackend):  # type: ignore[misc,unused-ignore]
    """Ray's own, after each worker has chosen its interface and listens to SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Prepare the workers, then let them find each other."""
        worker_group.execute(choose_interface)
        worker_group.execute(ending.listen)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeTorchConfig(TorchConfig):  # type: ignore[misc,unused-ignore]
    """Torch's settings, with `NodeBackend`."""

    @property
    def backend_cls(self) -> type[NodeBackend]:
        """What prepares the workers."""
        return NodeBackend


def choose_interface() -> None:
    """Name the interface of this node's address to Gloo and NCCL; what is set already wins."""
    import ray.util

    name = interface_of(ray.util.get_node_ip_address())
    for variable in INTERFACES:
        if name:
            os.environ.setdefault(variable, name)


def interface_of(address: str) -> str:
    """Name of the network interface that has an address; "" if none has it."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            known = entry.family in (socket.AF_INET, socket.AF_INET6)
            if known and entry.address.partition("%")[0] == address:
                return str(name)
    return ""
