"""OpenTelemetry traces (extra ``otel``): a span for each request with a photo, and one inside it for each stage.

On where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to send them; OpenTelemetry's other variables hold too. A caller's
``traceparent`` is taken on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from blu_export import __version__
from blu_export.extras import import_extra
from blu_export.serve.logs import request_id

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables that switch traces on."""
FLUSH_MS = 1000
"""Milliseconds that the last spans have when the server ends."""


class Traces:
    """Spans of one server; without a tracer all of it does nothing.

    Args:
        provider: of OpenTelemetry's SDK; closed with ``close``.
    """

    def __init__(self, provider: Any | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("blu_export", __version__) if provider else None

    @classmethod
    def from_environment(cls) -> Traces:
        """Traces where the variables ask for them.

        Raises:
            MissingDependencyError: they do, and the extra is not installed.
        """
        off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if off or not any(os.environ.get(name) for name in ENDPOINTS):
            return cls()
        exporter = import_extra("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
        sdk = import_extra("opentelemetry.sdk.trace")
        batches = import_extra("opentelemetry.sdk.trace.export").BatchSpanProcessor
        name = os.environ.get("OTEL_SERVICE_NAME", "blu serve")
        resource = import_extra("opentelemetry.sdk.resources").Resource.create(
            {"service.name": name, "service.version": __version__}
        )
        provider = sdk.TracerProvider(resource=resource)
        provider.add_span_processor(batches(exporter))
        return cls(provider)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The span of a request; what is put into the dict inside the block becomes its attributes."""
        attributes: dict[str, Any] = {}
        if self._tracer is None:
            yield attributes
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        caller = TraceContextTextMapPropagator().extract(dict(headers))
        with self._tracer.start_as_current_span(name, caller, kind=trace.SpanKind.SERVER) as span:
            span.set_attribute("blu.request_id", request_id.get() or "")
            try:
                yield attributes
            finally:
                span.set_attributes(attributes)

    def stage(self, name: str, start: int, end: int, **attributes: Any) -> None:
        """A stage of the current request that is over, from and to times as ``time.time_ns`` has them."""
        if self._tracer is not None:
            self._tracer.start_span(name, start_time=start, attributes=attributes).end(end)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.force_flush(FLUSH_MS)
            self._provider.shutdown()
