"""What can go wrong with a request, and the status that says so, for HTTP and gRPC alike."""

from __future__ import annotations

from blu_export.errors import BluError, ImageFormatError, ImageSizeError


class RequestError(BluError):
    """A request that gets no result.

    Attributes:
        status: of HTTP.
        code: one word for machines.
        usual_fix: what to do, where the error says nothing more precise.
        retry_after: seconds after which another try may do better.
    """

    status = 500
    code = "internal"
    usual_fix = "The server's log says more, by the request's id."
    retry_after: float | None = None

    def __init_subclass__(cls, status: int, code: str, fix: str | None = None) -> None:
        super().__init_subclass__()
        cls.status, cls.code = status, code
        if fix is not None:
            cls.usual_fix = fix

    def __init__(self, what: str, fix: str = "", retry_after: float | None = None) -> None:
        super().__init__(what, fix or self.usual_fix)
        if retry_after is not None:
            self.retry_after = retry_after


class BadRequestError(RequestError, status=400, code="bad_request", fix="See /docs for what a request looks like."):
    """Malformed request."""


class UnauthorizedError(
    RequestError, status=401, code="unauthorized", fix="Send the key as 'Authorization: Bearer KEY'."
):
    """No key, or an unknown one."""


class NotFoundError(RequestError, status=404, code="not_found", fix="See /docs for what exists."):
    """There is no such model or page."""


class NotAcceptableError(RequestError, status=406, code="not_acceptable", fix="See /docs for the types."):
    """None of the accepted types can be made."""


class SlowUploadError(
    RequestError, status=408, code="slow_upload", fix="Send a smaller file, or use a faster connection."
):
    """The body did not arrive in time."""


class TooLargeError(RequestError, status=413, code="too_large", fix="Send a smaller one."):
    """Too many bytes, or too many pixels."""


class UnsupportedTypeError(
    RequestError, status=415, code="unsupported_type", fix="Send a JPEG, PNG, WebP, BMP or TIFF."
):
    """Not an image, or not in a known format."""


class UnreadableImageError(
    RequestError, status=422, code="unreadable_image", fix="Check that the file opens elsewhere; save it again."
):
    """The format is known, but the content is damaged."""


class BusyError(RequestError, status=429, code="busy", fix="Try again in a second."):
    """There is no room now; retry_after says when to try again."""

    retry_after = 1.0


class WorkerFailedError(RequestError, status=500, code="worker_failed"):
    """The network failed on this photo."""


class UnavailableError(
    RequestError, status=503, code="unavailable", fix="Try again in a second, or use another server."
):
    """The server is starting or stopping, or has lost its device."""


class DeadlineError(RequestError, status=504, code="deadline", fix="Try again when the server is less busy."):
    """No result in time."""


def megabytes(size: int) -> str:
    """``20 MB``: a size as messages have it."""
    return f"{size / 2**20:.4g} MB"


def of_image_error(error: BluError) -> RequestError:
    """The request's error for an image that cannot be decoded or molded."""
    if isinstance(error, ImageFormatError):
        return UnsupportedTypeError(error.what, error.fix)
    if isinstance(error, ImageSizeError):
        return TooLargeError(error.what, "Send a smaller one.")
    return UnreadableImageError(error.what, error.fix)
