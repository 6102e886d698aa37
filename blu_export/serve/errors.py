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

    def __init__(self, what: str, fix: str = "", retry_after: float | None = None) -> None:
        super().__init__(what, fix or self.usual_fix)
        self.retry_after = retry_after


class BadRequestError(RequestError):
    """Malformed request."""

    status, code = 400, "bad_request"
    usual_fix = "See /docs for what a request looks like."


class UnauthorizedError(RequestError):
    """No key, or none that is known."""

    status, code = 401, "unauthorized"
    usual_fix = "Send the key as 'Authorization: Bearer KEY'."


class NotFoundError(RequestError):
    """There is no such model or page."""

    status, code = 404, "not_found"
    usual_fix = "See /docs for what there is."


class NotAcceptableError(RequestError):
    """None of the accepted types can be made."""

    status, code = 406, "not_acceptable"
    usual_fix = "See /docs for the types."


class SlowUploadError(RequestError):
    """The body did not arrive in time."""

    status, code = 408, "slow_upload"
    usual_fix = "Send a smaller file, or over a faster line."


class TooLargeError(RequestError):
    """Too many bytes, or too many pixels."""

    status, code = 413, "too_large"
    usual_fix = "Send a smaller one."


class UnsupportedTypeError(RequestError):
    """No image, or none of a known format."""

    status, code = 415, "unsupported_type"
    usual_fix = "Send a JPEG, PNG, WebP, BMP or TIFF."


class UnreadableImageError(RequestError):
    """The format is known, the content broken."""

    status, code = 422, "unreadable_image"
    usual_fix = "Check that the file opens elsewhere; save it again."


class BusyError(RequestError):
    """There is no room; retry_after says when to come again."""

    status, code = 429, "busy"
    usual_fix = "Try again in a second."

    def __init__(self, what: str, fix: str = "", retry_after: float = 1.0) -> None:
        super().__init__(what, fix, retry_after)


class WorkerFailedError(RequestError):
    """The network failed on this photo."""

    status, code = 500, "worker_failed"


class UnavailableError(RequestError):
    """The server starts, stops, or has lost its device."""

    status, code = 503, "unavailable"
    usual_fix = "Try again in a second, or another server."


class DeadlineError(RequestError):
    """No result in time."""

    status, code = 504, "deadline"
    usual_fix = "Try again when the server is less busy."


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
