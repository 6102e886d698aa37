"""Videos, streams and cameras, frame by frame, and videos written: PyAV, which is FFmpeg.

Frames that cannot be decoded are left out and counted; a file that ends before its last frame is reported when it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import ImageError, UsageError
from blu_export.extras import import_extra
from blu_export.files import atomic_write

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".asf", ".3gp", ".3g2", ".flv", ".f4v"}
) | {".ts", ".mts", ".m2ts", ".ogv", ".vob", ".mxf"}
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "srt")
"""What is read as a live stream; pages of the web are not."""
USUAL_FPS = 25.0
"""Of a video that does not say."""
STREAM_TIMEOUT_S = 15
_QUARTER_TURNS = {90: 1, 180: 2, 270: 3}


def is_live(source: str | os.PathLike[str]) -> bool:
    """Whether this names a camera (``0``, ``1``, …) or a stream (``rtsp://…``)."""
    text = os.fspath(source)
    return text.isdecimal() or (text.partition("://")[0] in STREAM_SCHEMES and "://" in text)


class Video:
    """The frames of a file, a stream or a camera, in their order.

    Args:
        source: a path, an address with one of STREAM_SCHEMES, or the number of a camera.
        stride: every how many frames one is returned; the others are decoded and dropped.

    Attributes:
        fps: frames a second, before any are left out.
        expected: frames that the file says it has; None where it does not say.
        damaged: frames that could not be decoded, so far.
        ended_early: whether the file ended before its last frame; known when all frames have been read.

    Raises:
        UsageError: the stride is not positive.
        ImageError: there is no such file, camera or stream, or nothing in it is a video.
        MissingDependencyError: the extra video is not installed.
    """

    def __init__(self, source: str | os.PathLike[str], stride: int = 1) -> None:
        if stride < 1:
            raise UsageError(f"A stride of {stride} gives no frames.", "Give 1 or more.")
        self.name = os.fspath(source)
        self.stride = stride
        self.damaged = 0
        self.ended_early = False
        self._live = is_live(source)
        self._stack = ExitStack()
        self._capture: Any = None
        if self.name.isdecimal():
            self._capture, self.fps = _open_camera(int(self.name)), USUAL_FPS
            self.expected: int | None = None
            self._stack.callback(self._capture.release)
            return
        self._av = import_extra("av")
        self._container, self._stream = self._open()
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        self.fps = rate if 0 < rate < 1000 else USUAL_FPS
        self.expected = self._count()

    def _open(self) -> tuple[Any, Any]:
        self._av.logging.set_level(None)  # what is wrong is said here, in a sentence
        if not self._live and not Path(self.name).is_file():
            raise ImageError(f"There is no video {self.name}.", "Check the path.")
        try:
            if self._live:
                options = {"rtsp_transport": "tcp"} if self.name.startswith("rtsp") else {}
                container = self._av.open(self.name, options=options, timeout=STREAM_TIMEOUT_S)
            else:
                # Only the file: playlists in it cannot name other files or addresses.
                file = self._stack.enter_context(Path(self.name).open("rb"))  # noqa: SIM115 - the stack closes it
                container = self._av.open(file, options={"protocol_whitelist": "none"})
            self._stack.enter_context(container)
            stream = container.streams.video[0]
        except (self._av.FFmpegError, OSError, IndexError, ValueError) as error:
            self.close()
            what = "cannot be opened" if self._live else "is not a video that can be read"
            reason = getattr(error, "strerror", None) or "it holds no video"
            raise ImageError(
                f"{self.name} {what}: {reason}.",
                "Check the address." if self._live else "Convert it to H.264 in an .mp4 file.",
            ) from error
        stream.thread_type = "AUTO"
        return container, stream

    def _count(self) -> int | None:
        if self._live:
            return None
        if self._stream.frames:
            return int(self._stream.frames)
        if self._stream.duration and self._stream.time_base:
            return round(float(self._stream.duration * self._stream.time_base) * self.fps) or None
        return None

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(number from 1, uint8 [H, W, 3] RGB, upright) of every frame that the stride takes.

        Raises:
            ImageError: no frame can be decoded, or a stream breaks off.
        """
        number = 0
        for image in self._camera_frames() if self._capture is not None else self._frames():
            number += 1
            if (number - 1) % self.stride == 0:
                yield number, image() if callable(image) else image
        if number == 0:
            raise ImageError(f"No frame of {self.name} can be decoded.", "Convert the video to H.264 in an .mp4 file.")
        declared = self._stream.frames if self._capture is None else 0
        self.ended_early = bool(declared) and number + self.damaged < declared

    def _frames(self) -> Iterator[Any]:
        """Functions that give a frame's pixels: converting those that are left out would be wasted."""
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except self._av.InvalidDataError:
                    self.damaged += 1
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self.damaged += 1
                    else:
                        yield lambda frame=frame: _upright(frame)
        except self._av.FFmpegError as error:
            if self._live:
                raise ImageError(f"The stream {self.name} broke off: {error.strerror}.", "Open it again.") from error
            self.ended_early = True

    def _camera_frames(self) -> Iterator[Any]:
        while True:
            good, frame = self._capture.read()
            if not good:
                return
            yield np.ascontiguousarray(frame[..., ::-1])

    def close(self) -> None:
        """Release file, stream or camera."""
        self._stack.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _upright(frame: Any) -> NDArray[np.uint8]:
    turns = _QUARTER_TURNS.get(round(getattr(frame, "rotation", 0)) % 360, 0)
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _open_camera(number: int) -> Any:
    import cv2

    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise ImageError(f"There is no camera {number} here.", "Give the path or address of a video.")
    return capture


class VideoWriter:
    """An .mp4 file in H.264, which browsers play; it is there when it is whole.

    Args:
        path: of the file.
        fps: frames a second.

    Raises:
        MissingDependencyError: the extra video is not installed.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = Fraction(fps).limit_denominator(1001)
        self._size: tuple[int, int] | None = None
        self._av = import_extra("av")
        self._stream: Any = None
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(path))
            self._container = stack.enter_context(
                self._av.open(os.fspath(temporary), "w", format="mp4", options={"movflags": "+faststart"})
            )
            self._stack = stack.pop_all()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 [H, W, 3] RGB.

        Raises:
            ImageError: it is of another size than those before.
        """
        height, width = image.shape[:2]
        if self._stream is None:
            self._size = height, width
            codec = next(name for name in ("libx264", "libopenh264", "h264") if name in self._av.codecs_available)
            self._stream = self._container.add_stream(codec, rate=self._fps)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
        if (height, width) != self._size:
            raise ImageError(f"The frames for {self.path} change their size.", "Split the video where they do.")
        # Color is stored for two pixels at a time: an odd edge is repeated.
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(even, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file; after an error nothing is left of it."""
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._stack.__exit__(kind, error, trace)
