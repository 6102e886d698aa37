"""Photos to a running ``blu serve``, Detections back: ``Client``, and ``AsyncClient`` for asyncio."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.errors import BluError, ImageError, UsageError
from blu_export.extras import import_extra

Photo = bytes | str | os.PathLike[str] | NDArray[np.uint8]
"""An encoded photo, a path to one, or uint8 [H, W, 3] RGB."""

BUSY = (429, 503)
"""Statuses after which another try may do better; the server says when, in Retry-After."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until another try where the server does not say: doubled each time, and scattered by half."""


class ServerError(BluError):
    """The server refused a request, could not be reached, or answered what this client does not understand.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: the server's word for it: ``unsupported_type``.
        request_id: as the server's log has it.
    """

    def __init__(self, what: str, fix: str = "", status: int = 0, code: str = "", request_id: str = "") -> None:
        super().__init__(what, fix)
        self.status, self.code, self.request_id = status, code, request_id


class _Base:
    """What both clients share: requests as values, answers read, pauses between tries.

    Args:
        url: of the server: ``http://127.0.0.1:8000``.
        api_key: where the server wants one.
        timeout: seconds for an answer.
        retries: further tries where the server is busy or cannot be reached. A photo changes nothing on the server,
            so it may be sent again.
    """

    _kind: str
    """The class of httpx that sends."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0, retries: int = 4) -> None:
        self._httpx = import_extra("httpx")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} is not the URL of a server.", "Write it like http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self.retries = retries
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = getattr(self._httpx, self._kind)(base_url=self.url, timeout=timeout, headers=headers)

    def _pause(self, tried: int, answer: Any) -> float | None:
        """Seconds until the next try, ``tried`` being 1 after the first; None: it is final.

        Args:
            tried: number of tries so far.
            answer: a response, or the exception that came instead.
        """
        if tried > self.retries or isinstance(answer, self._httpx.TimeoutException):
            return None
        if isinstance(answer, Exception):
            return _scattered(tried)
        if answer.status_code not in BUSY:
            return None
        said = _retry_after(answer.headers.get("retry-after", ""))
        return _scattered(tried) if said is None else min(said, LONGEST_PAUSE)

    def _read(self, answer: Any) -> Any:
        """The JSON of a final answer.

        Raises:
            ServerError: it is an error.
        """
        if isinstance(answer, Exception):
            raise ServerError(
                f"{self.url} does not answer: {answer or type(answer).__name__}.", "Check the URL, and that it runs."
            ) from answer
        try:
            values = json.loads(answer.content)
            if answer.is_success:
                return values
            error = values["error"]
            if isinstance(error, str):
                error = {"message": error}
            what, fix, code = str(error["message"]), str(error.get("fix", "")), str(error.get("code", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            what = f"{self.url} answered {answer.status_code} with something that is not from blu serve."
            fix, code = "Check the URL, and what lies between.", ""
        raise ServerError(what, fix, answer.status_code, code, answer.headers.get("x-request-id", ""))

    @staticmethod
    def _detections(values: Any) -> Detections:
        try:
            size = values["image"]["height"], values["image"]["width"]
            names = ("BG", *values["classes"])
            objects = values["detections"]
        except (KeyError, TypeError) as error:
            raise ServerError(f"The answer is not one of /v1/predict: {error!r}.", "Check the URL.") from error
        return Detections.from_json({"image_size": size, "class_names": names, "detections": objects})


class Client(_Base):
    """A server, for programs that wait for each answer. Use it in a ``with`` block, or ``close`` it.

    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     found = client.predict("photo.jpg", min_score=0.8)
    """

    _kind = "Client"

    def predict(
        self,
        photo: Photo,
        min_score: float = 0.0,
        classes: Iterable[str | int] = (),
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Detections:
        """The instances on a photo of at least ``min_score`` (0..1) and, where given, of some classes.

        Args:
            photo: encoded, a path, or pixels.
            min_score: 0..1.
            classes: names or ids; none: all.
            tile: also look at the photo in tiles of this many pixels, for small things.
            overlap: share of a tile that its neighbor sees too, 0 up to 0.9; None: the server's own, 0.2.

        Raises:
            ServerError: the server refused it, or cannot be reached.
            ImageError: the file cannot be read.
        """
        request = _request(photo, min_score, classes, tile, overlap)
        return self._detections(self._send("POST", "/v1/predict", **request))

    def model(self) -> dict[str, Any]:
        """What is served: ``name``, ``sha256``, ``classes``, ``limits``, …"""
        values: dict[str, Any] = self._send("GET", "/v1/model")
        return values

    def ready(self) -> bool:
        """Whether the server takes photos now; False where it cannot be reached."""
        try:
            return bool(self._http.get("/v2/health/ready").is_success)
        except self._httpx.TransportError:
            return False

    def _send(self, method: str, path: str, **options: Any) -> Any:
        tried = 0
        while True:
            answer: Any
            try:
                answer = self._http.request(method, path, **options)
            except self._httpx.TransportError as error:
                answer = error
            tried += 1
            if (pause := self._pause(tried, answer)) is None:
                return self._read(answer)
            time.sleep(pause)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Base):
    """A server, for asyncio; as Client, with ``await``. Many photos at once: the server makes batches of them.

    >>> async with AsyncClient("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     found = await asyncio.gather(*map(client.predict, photos))
    """

    _kind = "AsyncClient"

    async def predict(
        self,
        photo: Photo,
        min_score: float = 0.0,
        classes: Iterable[str | int] = (),
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Detections:
        """See Client.predict."""
        request = await asyncio.to_thread(_request, photo, min_score, classes, tile, overlap)
        return self._detections(await self._send("POST", "/v1/predict", **request))

    async def model(self) -> dict[str, Any]:
        """See Client.model."""
        values: dict[str, Any] = await self._send("GET", "/v1/model")
        return values

    async def ready(self) -> bool:
        """See Client.ready."""
        try:
            return bool((await self._http.get("/v2/health/ready")).is_success)
        except self._httpx.TransportError:
            return False

    async def _send(self, method: str, path: str, **options: Any) -> Any:
        tried = 0
        while True:
            answer: Any
            try:
                answer = await self._http.request(method, path, **options)
            except self._httpx.TransportError as error:
                answer = error
            tried += 1
            if (pause := self._pause(tried, answer)) is None:
                return self._read(answer)
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _request(
    photo: Photo, min_score: float, classes: Iterable[str | int], tile: int | None, overlap: float | None
) -> dict[str, Any]:
    """The options of httpx for a photo; pixels are sent as PNG, which loses nothing."""
    parameters: dict[str, Any] = {"min_score": min_score, "classes": ",".join(map(str, classes))}
    parameters |= {name: value for name, value in (("tile", tile), ("overlap", overlap)) if value is not None}
    if isinstance(photo, str | os.PathLike):
        try:
            photo = Path(photo).read_bytes()
        except OSError as error:
            raise ImageError(f"{os.fsdecode(photo)} cannot be read: {error.strerror}.", "Check the path.") from error
    elif not isinstance(photo, bytes):
        from PIL import Image

        pixels = np.asarray(photo)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UsageError(f"Pixels are uint8 [H, W, 3], RGB, not {pixels.dtype} {list(pixels.shape)}.")
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        photo = buffer.getvalue()
    return {"params": parameters, "content": photo, "headers": {"Content-Type": "application/octet-stream"}}


def _scattered(tried: int) -> float:
    """Seconds before the next try where the server does not say; clients that failed together do not return so."""
    longest = min(FIRST_PAUSE * 2.0 ** (tried - 1), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)


def _retry_after(text: str) -> float | None:
    """The header Retry-After in seconds: a number, or a date; None where it is neither."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
