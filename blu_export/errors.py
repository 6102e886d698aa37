"""Errors a person can act on: what happened, how to fix it, and the exit code of the command."""

from __future__ import annotations

EXIT_CHECK_FAILED = 1
"""A check failed: parity, average precision, engine precision."""
EXIT_USAGE = 2
"""The command line or a configuration value is wrong."""
EXIT_BAD_INPUT = 3
"""An image, data set or model file cannot be read."""
EXIT_MISSING = 4
"""A package or a device that the command needs is not there."""
EXIT_INTERRUPTED = 130
"""Stopped by the user."""


class BluError(Exception):
    """Something the user can fix.

    Args:
        what: one sentence on what happened; it names the file or value.
        fix: one sentence on what to do about it.
    """

    exit_code = EXIT_BAD_INPUT
    lost = False
    """Whether the process is of no use any more: its GPU answers nothing but errors."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what} {fix}".strip())
        self.what = what
        self.fix = fix


class UsageError(BluError):
    """A value given by the user is not possible."""

    exit_code = EXIT_USAGE


class ImageError(BluError):
    """An image cannot be read, or is larger than allowed."""


class ImageFormatError(ImageError):
    """It is not an image, or of a format that is not read."""


class ImageSizeError(ImageError):
    """It has more pixels than allowed."""


class ModelFileError(BluError):
    """A weights, ONNX or engine file is corrupt, foreign or does not fit."""


class DatasetError(BluError):
    """A data set is missing, broken or empty."""


class MissingDependencyError(BluError):
    """A package or device is not available; the fix says what to install."""

    exit_code = EXIT_MISSING


class CheckFailedError(BluError):
    """A measured value is outside its tolerance."""

    exit_code = EXIT_CHECK_FAILED
