"""The HTTP application: routes, and the envelope around them (request ids, keys, logs, errors)."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from blu_export import __version__
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.serve import oip
from blu_export.serve.decoding import Upload
from blu_export.serve.errors import BadRequestError, RequestError, SlowUploadError, UnsupportedTypeError
from blu_export.serve.limits import ClientGoneError, received_body
from blu_export.serve.logs import request_id
from blu_export.serve.metrics import CONTENT_TYPE
from blu_export.serve.oip_request import HEADER, json_length
from blu_export.serve.render import JSON, MEDIA_TYPES, NPZ, PNG, Options, negotiate, render
from blu_export.serve.service import ANSWER_PIECE, Found, Service

log = logging.getLogger(__name__)

T = TypeVar("T")
ASGI = Callable[..., Awaitable[None]]

PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/static/rle.js": ("rle.js", "text/javascript; charset=utf-8"),
    "/static/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> (file in static/, type). Beside the demo photo nothing on disk can be asked for."""
DEMO_PATH = "/static/demo.jpg"
OPEN_PATHS = frozenset({*PAGES, DEMO_PATH, "/openapi.json", "/v2/health/live", "/v2/health/ready"})
"""What needs no key."""
CLIENT_GONE = 499
"""Status in the log for a client that left, as in nginx."""
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_DETECTIONS = {
    "request_id": "a1b2",
    "model": {"name": "garments", "sha256": "…"},
    "image": {"height": 1024, "width": 768},
    "classes": ["coat", "shoes"],
    "detections": [
        {
            "class": "coat",
            "class_id": 1,
            "score": 0.98,
            "box": [120, 80, 700, 420],
            "mask": {"size": [1024, 768], "counts": "…"},
        }
    ],
    "seconds": {"decode": 0.008, "queue": 0.0001, "run": 0.4},
    "batch": 1,
}
_PREDICT_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
_PREDICT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What was found. Boxes are (y1, x1, y2, x2) in pixels.",
        "content": {
            JSON: {"example": _DETECTIONS},
            PNG: {"schema": {"type": "string", "format": "binary"}},
            NPZ: {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **{
        status: {"description": text}
        for status, text in {
            400: "The request makes no sense.",
            406: "None of the accepted types can be made.",
            408: "The body did not arrive in time.",
            413: "Too many bytes or pixels.",
            415: "This is no image of a known format.",
            422: "The image is broken.",
            429: "Busy: try again after the seconds in Retry-After.",
            504: "No result within the deadline, the queue included.",
        }.items()
    },
}


def create_app(service: Service, all_metrics: Callable[[], Awaitable[bytes]] | None = None) -> ASGI:
    """The ASGI application of a service; where it is one of several, ``all_metrics`` gives the metrics of all."""
    app = FastAPI(
        title="blu",
        version=__version__,
        description="Instance segmentation: Mask R-CNN over HTTP. The same model speaks the Open Inference Protocol.",
        docs_url=None,  # both load scripts from other hosts; /docs is ours
        redoc_url=None,
    )
    for path, (file, media_type) in PAGES.items():
        _add_file(app, path, resources.files("blu_export.serve").joinpath("static", file).read_bytes(), media_type)
    _add_file(app, DEMO_PATH, embedded(DEMO_PHOTO).read_bytes(), "image/jpeg")
    _add_predict(app, service)
    _add_oip(app, service)

    @app.get("/metrics", summary="Metrics for Prometheus", tags=["operation"])
    async def metrics() -> Response:
        text = service.metrics.text() if all_metrics is None else await all_metrics()
        return Response(text, media_type=CONTENT_TYPE)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(request.url.path, BadRequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        found = RequestError(str(error.detail))
        found.status, found.code = error.status_code, str(error.detail).lower().replace(" ", "_")
        return problem(request.url.path, found, error.headers)

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        return problem(request.url.path, error)

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=CLIENT_GONE)  # for the log: nobody is there to read it

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        return problem(
            request.url.path, RequestError("The server made a mistake.", "Its log says which, by request id.")
        )

    return Envelope(app, service)


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
        headers["Connection"] = "close"  # nobody waits for the rest
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), error.status, headers, JSON)


def _add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=media_type, headers={**SECURITY_HEADERS, "Cache-Control": "no-cache"})


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        summary="Find objects on a photo",
        tags=["photos"],
        openapi_extra=_PREDICT_DOCS,
        responses=_PREDICT_ANSWERS,
    )
    async def predict(
        request: Request,
        min_score: Annotated[float, Query(ge=0, le=1, description="Drop detections below it.")] = 0.0,
        classes: Annotated[str, Query(max_length=4096, description="Names or ids, separated by commas.")] = "",
        masks: Annotated[
            Literal["rle", "polygon", "none"], Query(description="How masks are written in JSON.")
        ] = "rle",
    ) -> Response:
        """Send image bytes, or a multipart form with a file. The header Accept chooses JSON, a PNG overlay or .npz."""
        options = Options(
            min_score,
            tuple(name.strip() for name in classes.split(",") if name.strip()),
            masks,
            negotiate(request.headers.get("accept")),
            request_id.get() or "",
        )
        options.check(service.model.info.spec.class_names)
        content_type = request.headers.get("content-type", "")

        async def work(body: bytes, deadline: float) -> bytes:
            upload = Upload(body, "image", {"content_type": content_type})
            with_photo = options.media_type == PNG
            return await service.predict(upload, lambda found: render(found, options), deadline, with_photo)

        return Answer(service, await _with_body(request, service, work), media_type=options.media_type)

    @app.get("/v1/model", summary="What is served", tags=["photos"])
    async def model() -> dict[str, Any]:
        info = service.model.info
        return {
            "name": info.name,
            "sha256": info.sha256,
            "runtime": info.runtime,
            "device": info.device,
            "precision": info.precision,
            "classes": list(info.spec.class_names[1:]),
            "canvas": info.spec.canvas,
            "min_score": info.spec.detection_min_confidence,
            "limits": {"bytes": service.settings.max_upload, "pixels": service.settings.max_pixels},
            "accept": MEDIA_TYPES,
        }


def _add_oip(app: FastAPI, service: Service) -> None:
    tags: list[Any] = ["Open Inference Protocol"]

    @app.get("/v2", summary="The server", tags=tags)
    async def server() -> dict[str, Any]:
        return {"name": "blu", "version": __version__, "extensions": list(oip.EXTENSIONS)}

    @app.get("/v2/health/live", summary="Is the process able to work?", tags=tags)
    async def live() -> Response:
        return _health(service.alive)

    @app.get("/v2/health/ready", summary="Should work be sent here?", tags=tags)
    async def ready() -> Response:
        return _health(service.ready)

    @app.get("/v2/models/{name}/ready", summary="Is the model ready?", tags=tags)
    @app.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str = "") -> Response:
        oip.check_model(service.model.info, name, version)
        return _health(service.ready)

    @app.get("/v2/models/{name}", summary="The model's inputs and outputs", tags=tags)
    @app.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def metadata(name: str, version: str = "") -> dict[str, Any]:
        oip.check_model(service.model.info, name, version)
        return oip.model_metadata(service.model.info)

    @app.get("/v2/models/{name}/config", summary="The model's configuration, class names included", tags=tags)
    @app.get("/v2/models/{name}/versions/{version}/config", include_in_schema=False)
    async def config(name: str, version: str = "") -> dict[str, Any]:
        oip.check_model(service.model.info, name, version)
        return oip.model_config(service.model.info)

    @app.post("/v2/models/{name}/infer", summary="Find objects on a photo", tags=tags)
    @app.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str = "") -> Response:
        oip.check_model(service.model.info, name, version)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedTypeError("Compressed requests are not taken.", "Photos are compressed already.")
        header_length = request.headers.get(HEADER)

        def answer(found: Found) -> tuple[bytes, int | None]:
            assert found.wanted is not None
            return oip.format_answer(found.wanted, found.info, found.detections)

        async def work(body: bytes, deadline: float) -> tuple[bytes, int | None]:
            json_length(header_length, len(body), service.settings.max_json)  # before a decoder is asked
            upload = Upload(body, "infer", {"header_length": header_length})
            return await service.predict(upload, answer, deadline)

        body, head = await _with_body(request, service, work)
        if head is None:
            return Answer(service, body, media_type=JSON)
        headers = {HEADER: str(head)}
        return Answer(service, body, headers=headers, media_type="application/octet-stream")


async def _with_body(request: Request, service: Service, work: Callable[[bytes, float], Coroutine[Any, Any, T]]) -> T:
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


def _health(good: bool) -> Response:
    return Response(json.dumps({"ready": good}), 200 if good else 503, media_type=JSON)


class Envelope:
    """Around every request: an id, the key, the count, a line in the log; and an answer whatever happens."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        current = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        token = request_id.set(current)
        start = time.perf_counter()
        status = 0

        async def send_on(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", current.encode())]}
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                self.service.keys.check(headers.get("authorization"), headers.get("x-api-key"))
            await self.app(scope, receive, send_on)
        except RequestError as error:  # of the key; those of the routes have been answered
            await problem(scope["path"], error)(scope, receive, send_on)
        except Exception:  # has been answered by the handler below; here it is only told
            log.exception("request failed")
        finally:
            self._count(scope, status, time.perf_counter() - start)
            request_id.reset(token)

    def _count(self, scope: Any, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.requests.labels("http", route, str(status)).inc()
        self.service.metrics.latency.labels(route).observe(seconds)
        quiet = route.startswith("/v2/health") or route == "/metrics"
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 1),
                "client": (scope.get("client") or ("", 0))[0],
            },
        )
