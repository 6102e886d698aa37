"""The inside of a decoder: a process in which what clients send is parsed and decoded, so that it can be killed.

The body of a request lies in memory that the server maps too; the canvas, and where asked the photo, are put after it:

    server → decoder   {"form": …, "size": bytes of the body, "pixels": whether the photo itself is wanted, …}
    decoder → server   {"ask": pixels of the photo}, where it is not a small one
    server → decoder   {"go": true}, or false: not now, and that is the end of the request
    decoder → server   {"shape": […], "window": …, "scale": …, "image_size": […], "wanted": …, …}, or {"error": …}

A model's spec comes with the first photo for it.
"""

from __future__ import annotations

import mmap
import resource
import sys
import time
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.image import decode, mold
from blu_export.serve.errors import RequestError, TooLargeError, of_image_error
from blu_export.serve.limits import image_of
from blu_export.serve.oip_request import Wanted, parse_request, photo_of_bytes
from blu_export.spec import ModelSpec
from blu_export.workers.channel import Channel, error_as_json

MAX_WARNINGS = 4
"""Sizes of one photo that are reported."""


def main(channel: Channel, config: dict[str, Any]) -> None:
    """Report when ready, and decode photos until the server closes its end."""
    memory = mmap.mmap(config["memory"], config["memory_size"])
    limit = MemoryLimit(config["bytes_per_pixel"], config["spare_memory"], config["max_pixels"])
    decoder = _Decoder(channel, config, memory, limit)
    channel.send(ready=True)
    for request in channel:
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                answer = decoder.run(request)
            kinds = sorted({f"{each.category.__name__}: {each.message}"[:200] for each in told})[:MAX_WARNINGS]
            channel.send(**answer, warnings=kinds)
        except _NotNowError:
            channel.send(later=True)
        except RequestError as error:
            channel.send(error=error_as_json(error))
        except BluError as error:
            channel.send(error=error_as_json(of_image_error(error)))
        except MemoryError:
            too_large = TooLargeError("The photo needs more memory than a request may use.", "Send a smaller one.")
            channel.send(error=error_as_json(too_large))


class MemoryLimit:
    """What this process may map; beyond it there is MemoryError. Only on Linux.

    Args:
        per_pixel: bytes for each pixel of a photo.
        spare: bytes beside those.
        max_pixels: of the largest photo.
    """

    OPENING = 1 / 2
    """Of the largest photo's memory, that may be mapped while a photo's size is not known: WebP is laid out then."""

    def __init__(self, per_pixel: int, spare: int, max_pixels: int) -> None:
        self._per_pixel, self._spare, self._max_pixels = per_pixel, spare, max_pixels
        if sys.platform == "linux":
            with open("/proc/self/statm", encoding="ascii") as file:
                self._mapped = int(file.read().split()[0]) * mmap.PAGESIZE
            most = self._bytes(max_pixels)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def allow(self, pixels: int | None) -> None:
        """Allow what a photo of this many pixels may take; None: its size is not known yet."""
        if sys.platform == "linux":
            allowed = self._bytes(round(self.OPENING * self._max_pixels) if pixels is None else pixels)
            resource.setrlimit(resource.RLIMIT_AS, (allowed, self._bytes(self._max_pixels)))

    def _bytes(self, pixels: int) -> int:
        return self._mapped + self._spare + self._per_pixel * pixels


class _NotNowError(Exception):
    """There is no room for this photo's pixels."""


class _Decoder:
    def __init__(self, channel: Channel, config: dict[str, Any], memory: mmap.mmap, limit: MemoryLimit) -> None:
        self._channel, self._config, self._memory, self._limit = channel, config, memory, limit
        self._room = np.frombuffer(memory, np.uint8, offset=config["room"])
        self._spec: ModelSpec | None = None

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; its arrays are in the memory."""
        start = time.perf_counter()
        if "spec" in request:
            self._spec = ModelSpec.from_json(request["spec"])
        spec = self._spec
        assert spec is not None
        self._limit.allow(None)
        body = self._memory[: request["size"]]
        source, wanted = self._read(request, body)

        def on_size(height: int, width: int) -> None:
            if wanted is not None:
                wanted.check_size(height, width, spec.detection_max_instances)
            self._limit.allow(height * width)
            if request["pixels"] or height * width > self._config["small_photo"]:
                self._channel.send(ask=height * width)
                if not self._channel.receive()["go"]:
                    raise _NotNowError

        pixels = decode(
            source, max_pixels=self._config["max_pixels"], channels=spec.image_channel_count, on_size=on_size
        )
        del body, source
        if request["pixels"]:
            return {"shape": self._put(pixels)}
        molded = mold(pixels, spec)
        return {
            "shape": self._put(molded.canvas),
            "window": molded.window.tolist(),
            "scale": molded.scale,
            "image_size": molded.image_size,
            "wanted": None if wanted is None else asdict(wanted),
            "seconds": time.perf_counter() - start,
        }

    def _read(self, request: dict[str, Any], body: bytes) -> tuple[bytes | NDArray[np.uint8], Wanted | None]:
        """The photo in a body, and what an infer request wants of it."""
        match request["form"]:
            case "image":
                return image_of(request["content_type"], body), None
            case "infer":
                return parse_request(body, request["header_length"], self._config["max_json"])
            case "tensor":
                return photo_of_bytes(request["datatype"], request["shape"], body), Wanted(**request["wanted"])
        raise AssertionError(request["form"])

    def _put(self, pixels: NDArray[np.uint8]) -> list[int]:
        """Put an image where the server reads it; its shape."""
        if pixels.size > self._room.size:
            raise TooLargeError(f"A canvas of {pixels.shape[1]}x{pixels.shape[0]} is too large for this server.")
        self._room[: pixels.size].reshape(pixels.shape)[:] = pixels
        return list(pixels.shape)
