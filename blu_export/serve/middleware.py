"""Around every request: an id, the key, HEAD, other sites' scripts, the count, a line in the log."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import FastAPI

from blu_export.serve.answers import problem
from blu_export.serve.errors import RequestError
from blu_export.serve.logs import id_of_request, request_id
from blu_export.serve.service import Service

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status in the log for a client that left, as in nginx."""
CORS_METHODS = b"GET, HEAD, POST"
CORS_HEADERS = b"Authorization, Content-Type, Accept, X-API-Key, X-Request-Id, Inference-Header-Content-Length"
CORS_EXPOSED = b"X-Request-Id, Retry-After, Inference-Header-Content-Length"
CORS_AGE = b"600"
"""Seconds for which a browser may keep what it was told."""


class Envelope:
    """The outermost layer; it always answers, even if something fails inside."""

    def __init__(self, app: FastAPI, service: Service, open_paths: frozenset[str]) -> None:
        self.app = app
        self.service = service
        self.open_paths = open_paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        current = id_of_request(headers.get("x-request-id"))
        more = [(b"x-request-id", current.encode()), *self._cors(headers.get("origin"))]
        token = request_id.set(current)
        start = time.perf_counter()
        status = 0

        async def send_on(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        # HEAD is GET, of which uvicorn then sends no body. A copy: the router notes its route in it.
        inner = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        try:
            if self._is_preflight(scope, headers):
                await send_on({"type": "http.response.start", "status": 204, "headers": _PREFLIGHT})
                await send_on({"type": "http.response.body"})
                return
            if scope["path"] not in self.open_paths:
                self.service.keys.check(headers.get("authorization"), headers.get("x-api-key"))
            if scope["method"] == "POST":
                with self.service.traces.request(f"POST {scope['path'][:200]}", headers) as attributes:
                    await self.app(inner, receive, send_on)
                    attributes["http.response.status_code"] = status
            else:
                await self.app(inner, receive, send_on)
        except RequestError as error:  # of the key; those of the routes have been answered
            await problem(scope["path"], error)(scope, receive, send_on)
        except Exception:  # has been answered by the handler below; here it is only told
            log.exception("request failed")
        finally:
            self._count(inner, scope["method"], status, time.perf_counter() - start)
            request_id.reset(token)

    def _cors(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """What allows a page of another site to read the answer, if that site was named."""
        allowed = self.service.settings.cors
        if not allowed:
            return []
        vary = (b"vary", b"Origin")
        if origin is None or not (origin in allowed or "*" in allowed):
            return [vary]
        allow = (b"access-control-allow-origin", origin.encode("latin-1"))
        return [vary, allow, (b"access-control-expose-headers", CORS_EXPOSED)]

    def _is_preflight(self, scope: Any, headers: dict[str, str]) -> bool:
        """A browser's question whether the site may ask; it carries no key."""
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asks and any(name == b"access-control-allow-origin" for name, _ in self._cors(headers.get("origin")))

    def _count(self, scope: Any, method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.requests.labels("http", route, str(status)).inc()
        self.service.metrics.latency.labels(route).observe(seconds)
        quiet = route.startswith("/v2/health") or route == "/metrics"
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={
                "method": method,
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 1),
                "client": (scope.get("client") or ("", 0))[0],
            },
        )


_PREFLIGHT = [
    (b"access-control-allow-methods", CORS_METHODS),
    (b"access-control-allow-headers", CORS_HEADERS),
    (b"access-control-max-age", CORS_AGE),
]
