"""Metrics: what the server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from blu_export.serve import logs
from blu_export.serve.worker_process import ModelInfo

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass
class Timer:
    """How long a stage took, once it is over."""

    seconds: float = 0.0


class LogLines(Collector):
    """Lines of the log that were dropped, as the log counts them."""

    def collect(self) -> Iterable[CounterMetricFamily]:
        """See prometheus_client."""
        yield CounterMetricFamily("blu_log_lines_dropped", "Log lines that no one read.", value=logs.dropped())


class Metrics:
    """Counters of one server; each server has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(LogLines())
        self.requests = Counter(
            "blu_requests", "Requests answered.", ("protocol", "route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "blu_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "blu_stage_seconds", "Seconds per stage of a photo.", ("stage",), buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "blu_batch_size", "Photos in the network at a time.", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.restarts = Counter("blu_worker_restarts", "Workers lost.", ("reason",), registry=self.registry)
        self.reloads = Counter("blu_reloads", "New model files.", ("result",), registry=self.registry)
        self._queue = Gauge("blu_queue_length", "Photos that wait for the network.", registry=self.registry)
        self._inside = Gauge("blu_photos_inside", "Photos admitted and not yet answered.", registry=self.registry)
        self._ready = Gauge("blu_ready", "1 while the server takes work.", registry=self.registry)
        self._model = Gauge(
            "blu_model_info",
            "The model that is served.",
            ("name", "sha256", "runtime", "device", "precision"),
            registry=self.registry,
        )

    def watch(self, queue: Callable[[], float], inside: Callable[[], float], ready: Callable[[], float]) -> None:
        """Read the gauges from these when they are asked for."""
        self._queue.set_function(queue)
        self._inside.set_function(inside)
        self._ready.set_function(ready)

    def model(self, info: ModelInfo) -> None:
        """Show this model as the one that is served."""
        self._model.clear()
        self._model.labels(info.name, info.sha256, info.runtime, info.device, info.precision).set(1)

    @contextmanager
    def stage(self, name: str) -> Iterator[Timer]:
        """Time a stage."""
        timer = Timer()
        start = perf_counter()
        try:
            yield timer
        finally:
            timer.seconds = perf_counter() - start
            self.stages.labels(name).observe(timer.seconds)

    def text(self) -> bytes:
        """Everything, as CONTENT_TYPE says."""
        return generate_latest(self.registry)
