"""Logs what the machine did during a run (CPU, memory, disk, network, GPU), measured by MLflow's own monitors.

The values go through the run's spool, as all other metrics do. MLflow's own logging of system metrics would send them
directly and lose them while the server is unavailable.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 10.0


@contextmanager
def log_system_metrics(log_metrics: Callable[[Mapping[str, float], int], None]) -> Iterator[None]:
    """Calls `log_metrics` with the machine's metrics, and the number of the sample as step, every few seconds."""
    ended = threading.Event()

    def sample() -> None:
        try:
            monitors = _monitors()
            number = 0
            while not ended.wait(SAMPLE_SECONDS):
                values = {f"system/{key}": value for monitor in monitors for key, value in _read(monitor).items()}
                log_metrics(values, number)
                number += 1
        except Exception as error:  # a failure to measure the machine must never end the work
            logger.warning("system metrics are not logged: %s", error)

    thread = threading.Thread(target=sample, daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # The thread has to end before the run does, so that no sample follows the run's `end` event.
        thread.join(SAMPLE_SECONDS)


def _monitors() -> list["BaseMetricsMonitor"]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # no NVIDIA library, or no GPU
        monitors.append(GPUMonitor())
    return monitors


def _read(monitor: "BaseMetricsMonitor") -> dict[str, float]:
    monitor.collect_metrics()
    values = monitor.aggregate_metrics()
    monitor.clear_metrics()
    return values
