"""What Prometheus sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from koopcast_server.jobs import Jobs

__all__ = ["Metrics"]

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class _JobsCollector(Collector):
    """Gauges read from the jobs when they are scraped."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family a gauge."""
        jobs = self._jobs
        held = sum(job.lease.held for job in jobs.all())
        for name, text, value in (
            ("koopcast_jobs", "Jobs held.", len(jobs)),
            ("koopcast_jobs_with_writer", "Jobs whose lease is held.", held),
            ("koopcast_device_memory_bytes", "Device memory of all jobs.", jobs.memory_bytes),
            ("koopcast_device_memory_limit_bytes", "Limit of that memory.", jobs.memory_limit_bytes),
            (
                "koopcast_engine_waiting_calls",
                "Calls on, or waiting for, worker threads.",
                jobs.engine.waiting,
            ),
            ("koopcast_draining", "1 while the service drains.", jobs.draining),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))


class Metrics:
    """Counters of the service, in a registry of their own."""

    def __init__(self, jobs: Jobs) -> None:
        """Register all of them."""
        self.registry = CollectorRegistry()
        self.registry.register(_JobsCollector(jobs))
        self.calls = Histogram(
            "koopcast_call_seconds",
            "Duration of gRPC calls.",
            ("method", "code"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.snapshots = Counter(
            "koopcast_snapshots", "Snapshots by outcome.", ("outcome",), registry=self.registry
        )
        self.received_bytes = Counter(
            "koopcast_received_bytes", "Snapshot bytes accepted.", registry=self.registry
        )
        self.sent_bytes = Counter("koopcast_sent_bytes", "Displacement bytes sent.", registry=self.registry)
        self.predictions = Counter(
            "koopcast_predictions",
            "Predictions, by whether any block moved.",
            ("moved",),
            registry=self.registry,
        )
        self.jumps = Counter("koopcast_jumps", "Reported jumps.", ("outcome",), registry=self.registry)
