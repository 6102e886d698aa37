"""Limits on what comes in: bytes, time, places, keys; and multipart forms of which nothing touches the disk."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from blu_export.serve.errors import (
    BadRequestError,
    BusyError,
    SlowUploadError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedTypeError,
    megabytes,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

MAX_PARTS = 16
"""Of a multipart form."""


class ClientGoneError(Exception):
    """The client closed the connection before it had sent everything."""


@dataclass
class Memory:
    """Bytes of one kind that may be in memory at once, over all connections."""

    kind: str
    """As the error names it: ``uploads``."""
    limit: int
    used: int = 0

    def take(self, size: int) -> None:
        """Account for ``size`` more bytes; raises BusyError when that is too many."""
        if self.used + size > self.limit:
            raise BusyError(f"Too many {self.kind} at once.", "Try again in a second.", retry_after=1)
        self.used += size

    def give(self, size: int) -> None:
        """They are gone."""
        self.used -= size

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Account for ``size`` bytes inside the block; raises BusyError when that is too many."""
        self.take(size)
        try:
            yield
        finally:
            self.give(size)


@asynccontextmanager
async def received_body(
    receive: Receive, declared: str | None, limit: int, memory: Memory, deadline: float
) -> AsyncIterator[bytes]:
    """Receive a request's body, counting what really arrives; its memory is accounted for inside the block.

    Args:
        receive: of ASGI.
        declared: the header Content-Length, if there is one. A client may lie in it.
        limit: bytes.
        memory: shared by all requests.
        deadline: loop time.

    Raises:
        TooLargeError: more than ``limit`` bytes were declared or came.
        BusyError: no memory left for uploads.
        SlowUploadError: not complete by the deadline.
        ClientGoneError: the client went away.
    """
    too_large = TooLargeError(f"The body is larger than {megabytes(limit)}.", "Send a smaller file.")
    if declared is not None and int(declared) > limit:
        raise too_large
    taken = 0
    chunks: list[bytes] = []
    try:
        try:
            async with asyncio.timeout_at(deadline):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunk = message.get("body", b"")
                    more = message.get("more_body", False)
                    if taken + len(chunk) > limit:
                        raise too_large
                    memory.take(len(chunk))
                    taken += len(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            raise SlowUploadError(f"Only {megabytes(taken)} of the body arrived in time.") from None
        yield b"".join(chunks)
    finally:
        memory.give(taken)


class ApiKeys:
    """The keys that open the server; none: it is open.

    Only digests are kept, and every key is compared in constant time.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, authorization: str | None, api_key: str | None) -> None:
        """Raise UnauthorizedError unless ``Authorization: Bearer KEY`` or ``X-API-Key: KEY`` holds a known key."""
        if not self._digests:
            return
        given = api_key or ""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        digest = hashlib.sha256(given.encode("latin-1", "replace")).digest()
        known = [hmac.compare_digest(digest, each) for each in self._digests]  # all of them: no early end
        if not any(known):
            raise UnauthorizedError("This server wants a key.", "Send it as 'Authorization: Bearer KEY'.")


def image_of(content_type: str, body: bytes) -> bytes:
    """The encoded photo in a body: the body itself, or the first file of a multipart form.

    Raises:
        UnsupportedTypeError: the content type is neither an image's nor a form's.
        BadRequestError: the form is broken or has no file; the body is empty.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = next((data for _, data in _files(content_type, body)), b"")
        if not body:
            raise BadRequestError("The form has no file.", "Send one: curl -F image=@photo.jpg")
    elif kind not in ("", "application/octet-stream", "application/x-www-form-urlencoded") and not kind.startswith(
        "image/"
    ):
        raise UnsupportedTypeError(
            f"A body of type {kind[:80]} is not an image.", "Send image bytes, or a multipart form."
        )
    if not body:
        raise BadRequestError("The body is empty.", "Send an image: curl --data-binary @photo.jpg")
    return body


@dataclass
class _Part:
    header_name: bytes = b""
    header_value: bytes = b""
    name: str | None = None
    is_file: bool = False
    data: bytearray | None = None


def _files(content_type: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """(field name, content) of the files of a multipart form, all in memory."""
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary", b"")
    if not re.fullmatch(rb"[\x21-\x7e ]{1,70}", boundary):
        raise BadRequestError("The multipart form has no usable boundary.")
    parts: list[_Part] = []

    def begin() -> None:
        if len(parts) == MAX_PARTS:
            raise BadRequestError(f"The form has more than {MAX_PARTS} parts.")
        parts.append(_Part(data=bytearray()))

    def header_field(data: bytes, start: int, end: int) -> None:
        parts[-1].header_name += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        parts[-1].header_value += data[start:end]

    def header_end() -> None:
        part = parts[-1]
        if part.header_name.lower() == b"content-disposition":
            _, fields = parse_options_header(part.header_value)
            part.name = fields.get(b"name", b"").decode("utf-8", "replace")
            part.is_file = b"filename" in fields
        part.header_name = part.header_value = b""

    def part_data(data: bytes, start: int, end: int) -> None:
        content = parts[-1].data
        assert content is not None
        content += data[start:end]

    ended = False

    def form_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": header_field,
                "on_header_value": header_value,
                "on_header_end": header_end,
                "on_part_data": part_data,
                "on_end": form_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise BadRequestError(f"The multipart form is broken: {error}.") from error
    if not ended:
        raise BadRequestError("The multipart form is cut off.")
    for part in parts:
        if part.is_file and part.data is not None:
            yield part.name or "", bytes(part.data)
