"""A local Ray that starts only what one driver needs: half the processor seconds of Ray's own.

It leaves out the monitor of an autoscaler (nothing scales), the log monitor (the driver follows
the run's own records) and the dashboard's server (it would be gone before anybody looks), and lets
actors of Ray Tune run in workers that are started with Ray, as they would be without an
environment of their own: here every process has the driver's. This rests on private names of Ray
2.60; on any other version nothing is changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

VERSION = "2.60."


@contextmanager
def lean_head() -> Iterator[None]:
    """While its block runs, `ray.init` starts a head without helpers."""
    import ray

    if not ray.__version__.startswith(VERSION):
        yield
        return
    from ray._private.node import Node

    with _replaced(
        Node, start_monitor=_nothing, start_log_monitor=_nothing, start_api_server=_no_server
    ):
        yield


@contextmanager
def shared_environment() -> Iterator[None]:
    """While its block runs, Ray Tune gives its actors no environment variables of their own."""
    import ray

    if not ray.__version__.startswith(VERSION):
        yield
        return
    from ray.tune.execution import class_cache

    with _replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set()):
        yield


@contextmanager
def _replaced(target: Any, **values: Any) -> Iterator[None]:
    """Other values of attributes while the block runs."""
    own = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(target, name, value)


def _nothing(node: Any) -> None:
    """Start no such process."""


def _no_server(node: Any, **options: Any) -> None:
    """Start no dashboard; it has no address then."""
    node._webui_url = ""
