"""The HTTP application: its routes. What is around every request is in middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException as StarletteHTTPException

from blu_export import __version__
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.serve import oip, openapi
from blu_export.serve.answers import Answer, health, problem, with_body
from blu_export.serve.decoder_process import Upload
from blu_export.serve.errors import BadRequestError, RequestError, UnsupportedTypeError
from blu_export.serve.limits import ClientGoneError
from blu_export.serve.logs import request_id
from blu_export.serve.metrics import CONTENT_TYPE
from blu_export.serve.middleware import CLIENT_GONE, Envelope
from blu_export.serve.oip_request import HEADER, json_length
from blu_export.serve.render import JSON, MEDIA_TYPES, PNG, Options, negotiate, render
from blu_export.serve.service import Found, Service
from blu_export.serve.tiled import MAX_TILE, tiling_of

ASGI = Callable[..., Awaitable[None]]

PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    **{f"/static/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("labels", "save", "view")},
    "/static/palette.js": ("palette.js", "text/javascript; charset=utf-8"),
    "/static/rle.js": ("rle.js", "text/javascript; charset=utf-8"),
    "/static/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> (file in static/, type). Beside the demo photo nothing on disk can be asked for."""
DEMO_PATH = "/static/demo.jpg"
OPEN_PATHS = frozenset({*PAGES, DEMO_PATH, "/openapi.json", "/v2/health/live", "/v2/health/ready"})
"""What needs no key."""
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(service: Service, all_metrics: Callable[[], Awaitable[bytes]] | None = None) -> ASGI:
    """The ASGI application of a service; where it is one of several, ``all_metrics`` gives the metrics of all."""
    app = FastAPI(
        title="blu",
        version=__version__,
        description="Instance segmentation: Mask R-CNN over HTTP. The same model speaks the Open Inference Protocol.",
        docs_url=None,  # both load scripts from other hosts; /docs is ours
        redoc_url=None,
        redirect_slashes=False,  # would send clients wherever their Host header says
    )
    for path, (file, media_type) in PAGES.items():
        _add_file(app, path, resources.files("blu_export.serve").joinpath("static", file).read_bytes(), media_type)
    _add_file(app, DEMO_PATH, embedded(DEMO_PHOTO).read_bytes(), "image/jpeg")
    _add_predict(app, service)
    _add_oip(app, service)

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        tags=["operation"],
        responses=openapi.METRICS,
        response_class=Response,
    )
    async def metrics() -> Response:
        text = service.metrics.text() if all_metrics is None else await all_metrics()
        return Response(text, media_type=CONTENT_TYPE)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return problem(request.scope["path"], BadRequestError(f"{where[:200]}: {first['msg'][:500]}."))

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        fix = "See /docs for what exists."
        if "GET" in (allowed := headers.get("Allow", "").split(", ")):
            headers["Allow"] = ", ".join(sorted({*allowed, "HEAD"}))
        if "Allow" in headers:
            fix = f"Use {headers['Allow']}."
        found = RequestError(f"{error.detail}.", fix)
        found.status, found.code = error.status_code, str(error.detail).lower().replace(" ", "_")
        return problem(request.scope["path"], found, headers)

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        return problem(request.scope["path"], error)

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=CLIENT_GONE)  # for the log: no one is there to read it

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        return problem(request.scope["path"], RequestError("Internal server error."))

    return Envelope(app, service, OPEN_PATHS)


def _add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=media_type, headers={**SECURITY_HEADERS, "Cache-Control": "no-cache"})


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        summary="Find objects on a photo",
        tags=["photos"],
        openapi_extra=openapi.PREDICT_BODY,
        responses=openapi.PREDICT_ANSWERS,
        response_class=Response,
    )
    async def predict(
        request: Request,
        min_score: Annotated[float, Query(ge=0, le=1, description="Drop detections below it.")] = 0.0,
        classes: Annotated[str, Query(max_length=4096, description="Names or ids, separated by commas.")] = "",
        masks: Annotated[
            Literal["rle", "polygon", "none"], Query(description="How masks are written in JSON.")
        ] = "rle",
        tile: Annotated[
            Annotated[int, Field(ge=32, le=MAX_TILE)] | SkipJsonSchema[None],
            Query(description="Also look at it in tiles of this many pixels; see overlap."),
        ] = None,
        overlap: Annotated[
            Annotated[float, Field(ge=0, le=0.9)] | SkipJsonSchema[None],
            Query(description="Share of a tile that its neighbor sees too; 0.2 unless said."),
        ] = None,
    ) -> Response:
        """Send image bytes, or a multipart form with a file. The header Accept chooses JSON, a PNG overlay or .npz."""
        _refuse_compression(request)
        options = Options(
            min_score,
            tuple(name.strip() for name in classes.split(",") if name.strip()),
            masks,
            negotiate(request.headers.get("accept")),
            request_id.get() or "",
        )
        options.check(service.model.info.spec.class_names)
        tiling = tiling_of(tile, overlap)
        content_type = request.headers.get("content-type", "")

        async def work(body: bytes, deadline: float) -> bytes:
            upload = Upload(body, "image", {"content_type": content_type})
            with_photo = options.media_type == PNG
            return await service.predict(upload, lambda found: render(found, options), deadline, with_photo, tiling)

        return Answer(service, await with_body(request, service, work), media_type=options.media_type)

    @app.get(
        "/v1/model",
        summary="What is served",
        tags=["photos"],
        responses=openapi.one(openapi.MODEL, 401, problem=openapi.PROBLEM),
    )
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

    @app.get("/v2", summary="The server", tags=tags, responses=openapi.one(openapi.SERVER, 401))
    async def server() -> dict[str, Any]:
        return {"name": "blu", "version": __version__, "extensions": list(oip.EXTENSIONS)}

    @app.get("/v2/health/live", summary="Is the process able to work?", tags=tags, responses=openapi.health())
    async def live() -> Response:
        return health(service.alive)

    @app.get("/v2/health/ready", summary="Should work be sent here?", tags=tags, responses=openapi.health())
    async def ready() -> Response:
        return health(service.ready)

    @app.get("/v2/models/{name}/ready", summary="Is the model ready?", tags=tags, responses=openapi.health(401, 404))
    @app.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str = "") -> Response:
        oip.check_model(service.model.info, name, version)
        return health(service.ready)

    @app.get(
        "/v2/models/{name}",
        summary="The model's inputs and outputs",
        tags=tags,
        responses=openapi.one(openapi.METADATA, 401, 404),
    )
    @app.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def metadata(name: str, version: str = "") -> dict[str, Any]:
        oip.check_model(service.model.info, name, version)
        return oip.model_metadata(service.model.info)

    @app.get(
        "/v2/models/{name}/config",
        summary="The model's configuration, class names included",
        tags=tags,
        responses=openapi.one(openapi.CONFIG, 401, 404),
    )
    @app.get("/v2/models/{name}/versions/{version}/config", include_in_schema=False)
    async def config(name: str, version: str = "") -> dict[str, Any]:
        oip.check_model(service.model.info, name, version)
        return oip.model_config(service.model.info)

    @app.post(
        "/v2/models/{name}/infer",
        summary="Find objects on a photo",
        tags=tags,
        openapi_extra=openapi.INFER_BODY,
        responses=openapi.INFER_ANSWERS,
        response_class=Response,
    )
    @app.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str = "") -> Response:
        oip.check_model(service.model.info, name, version)
        _refuse_compression(request)
        header_length = request.headers.get(HEADER)

        def answer(found: Found) -> tuple[bytes, int | None]:
            assert found.wanted is not None
            return oip.format_answer(found.wanted, found.info, found.detections)

        async def work(body: bytes, deadline: float) -> tuple[bytes, int | None]:
            json_length(header_length, len(body), service.settings.max_json)  # before a decoder is asked
            upload = Upload(body, "infer", {"header_length": header_length})
            return await service.predict(upload, answer, deadline)

        body, head = await with_body(request, service, work)
        if head is None:
            return Answer(service, body, media_type=JSON)
        headers = {HEADER: str(head)}
        return Answer(service, body, headers=headers, media_type="application/octet-stream")


def _refuse_compression(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedTypeError("Compressed requests are not taken.", "Photos are compressed already.")
