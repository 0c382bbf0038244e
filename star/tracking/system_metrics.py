"""What the machine did during a run: MLflow's own system metrics, through the spool, so that they too survive a server that is down."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 10.0


@contextmanager
def sampled(write: Callable[[Mapping[str, float], int], None]) -> Iterator[None]:
    """Writes CPU, memory, disk, network and, where there is one, GPU figures every few seconds while the work goes on."""
    ended = threading.Event()

    def sample() -> None:
        try:
            monitors = _monitors()
            number = 0
            while not ended.wait(SAMPLE_SECONDS):
                write({f"system/{key}": value for monitor in monitors for key, value in _read(monitor).items()}, number)
                number += 1
        except Exception as error:  # figures about the machine are not worth the work
            log.warning("system metrics are not logged: %s", error)

    thread = threading.Thread(target=sample, daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SAMPLE_SECONDS)


def _monitors() -> list:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # no NVIDIA library, or no GPU
        monitors.append(GPUMonitor())
    return monitors


def _read(monitor) -> dict[str, float]:
    monitor.collect_metrics()
    values = monitor.aggregate_metrics()
    monitor.clear_metrics()
    return values
