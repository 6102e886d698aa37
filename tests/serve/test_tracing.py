"""Traces: a span for each photo's request, one for each stage, and the request's id."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_runner import write_model
from loopback import HERE, PATIENCE, gray

from blu_export.serve.app import create_app
from blu_export.serve.service import Service
from blu_export.serve.settings import ServeSettings
from blu_export.serve.tracing import ENDPOINTS, Traces

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def served(model: Path, traces: Traces, *requests: dict[str, Any]) -> list[int]:
    """The statuses of requests to a server with these traces."""

    async def main() -> list[int]:
        async with asyncio.timeout(PATIENCE), Service(ServeSettings(model, loader="fake_runner:load")) as service:
            service.traces = traces
            transport = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(transport=transport, base_url="http://blu") as client:
                return [(await client.request(**request)).status_code for request in requests]

    return asyncio.run(main())


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    return write_model(tmp_path / "fake.onnx", seconds=0.01)


def test_each_stage_is_a_span_of_the_callers_trace(model: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    headers = {"x-request-id": "mine-1", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    post = {"method": "POST", "url": "/v1/predict", "headers": headers}
    health = {"method": "GET", "url": "/v2/health/ready"}
    assert served(model, Traces(provider), post | {"content": gray(51)}, post | {"content": b"no"}, health) == [
        200,
        415,
        200,
    ]
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["decode", "queue", "run", "unmold", *["POST /v1/predict"] * 2]
    *stages, request, refused = spans
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert f"{request.parent.span_id:016x}" == SPAN
    assert {span.parent.span_id for span in stages} == {request.context.span_id}
    assert dict(request.attributes) == {"blu.request_id": "mine-1", "http.response.status_code": 200}
    assert refused.attributes["http.response.status_code"] == 415
    starts = [span.start_time for span in (request, *stages)]
    ends = [span.end_time for span in (*stages, request)]
    assert starts == sorted(starts) and ends == sorted(ends)
    assert stages[2].attributes["blu.batch"] == 1 and stages[2].end_time - stages[2].start_time >= 10_000_000


def test_without_an_endpoint_there_is_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    traces = Traces.from_environment()
    with traces.request("POST /", {}) as attributes:
        traces.stage("decode", 0, 1)
    assert attributes == {} and traces._provider is None
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Traces.from_environment()._provider is None


def test_an_endpoint_switches_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    traces = Traces.from_environment()
    assert traces._provider.resource.attributes["service.name"] == "mine"
    traces.close()
