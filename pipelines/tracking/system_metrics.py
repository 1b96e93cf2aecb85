"""Samples of processor, memory, disk, network and GPU while a run goes on, outages included."""

import threading
import time
from collections.abc import Callable
from typing import Any

INTERVAL_S = 5.0
FIRST_S = 1.0


class SystemMetrics:
    """A thread that samples until it is stopped.

    Args:
        log: takes metrics by name and the seconds since the start.
        ready: whether MLflow, whose sampler this uses, may be imported; nothing is sampled before.
    """

    def __init__(
        self, log: Callable[[dict[str, float], int], None], *, ready: Callable[[], bool]
    ) -> None:
        self._log = log
        self._ready = ready
        self._ending = threading.Event()
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        sampler: Any = None
        wait_s = FIRST_S
        while not self._ending.wait(wait_s):
            if not self._ready():
                continue
            wait_s = INTERVAL_S
            sampler = sampler or _sampler()
            sampler.collect_metrics()
            values = sampler.aggregate_metrics()
            for monitor in sampler.monitors:
                monitor.clear_metrics()
            elapsed_s = int(time.monotonic() - self._start)
            self._log({f"system/{key}": value for key, value in values.items()}, elapsed_s)

    def stop(self) -> None:
        """End sampling; returns when the thread has ended."""
        self._ending.set()
        self._thread.join()


def _sampler() -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # Only its sampling is used: its own thread gives up when the server is away for a moment.
    return SystemMetricsMonitor(run_id="")
