"""From a body to an answer: both counted, within one deadline, and errors in each protocol's own form."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

from blu_export.serve.errors import RequestError, SlowUploadError
from blu_export.serve.limits import ClientGoneError, received_body
from blu_export.serve.logs import request_id
from blu_export.serve.render import JSON
from blu_export.serve.service import ANSWER_PIECE, Service

T = TypeVar("T")


def problem(path: str, error: RequestError, headers: Any = None) -> Response:
    """The answer that tells of an error, in the form that the path's protocol has for it."""
    message = f"{error.what} {error.fix}".strip()
    body: dict[str, Any] = {
        "error": {"code": error.code, "message": error.what, "fix": error.fix},
        "request_id": request_id.get(),
    }
    if path.startswith("/v2"):
        body = {"error": message}
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, SlowUploadError):
        headers["Connection"] = "close"  # no one waits for the rest
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), error.status, headers, JSON)


async def with_body(request: Request, service: Service, work: Callable[[bytes, float], Coroutine[Any, Any, T]]) -> T:
    """Receive the body, then do the work, unless the client goes away meanwhile; both within one deadline."""
    deadline = asyncio.get_running_loop().time() + service.settings.timeout
    length = request.headers.get("content-length")
    async with received_body(request.receive, length, service.settings.max_upload, service.uploads, deadline) as body:
        working = asyncio.create_task(work(body, deadline))
        leaving: asyncio.Future[Any] = asyncio.ensure_future(
            request.receive()
        )  # after the body only a disconnect can come
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGoneError
            return working.result()
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)


class Answer(Response):
    """A response that the service counts until its client has read it; raises BusyError where there are too many."""

    def __init__(self, service: Service, body: bytes, **others: Any) -> None:
        super().__init__(body, **others)
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI. ``send`` waits until the pieces before are read, and returns at once when the client is gone."""
        size = len(self.body)
        with self.service.answering(size):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, max(size, 1), ANSWER_PIECE):
                end = start + ANSWER_PIECE
                await send({"type": "http.response.body", "body": self.body[start:end], "more_body": end < size})


def health(good: bool) -> Response:
    """200, or 503."""
    return Response(json.dumps({"ready": good}), 200 if good else 503, media_type=JSON)
