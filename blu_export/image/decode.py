"""Photos from untrusted bytes: told apart by content, measured before they are decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from PIL import Image as PilImage

from blu_export.errors import ImageError, ImageFormatError, ImageSizeError
from blu_export.image import structure
from blu_export.image.bands import SIGNATURES, BandsTiff, TiffFile

Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | PilImage.Image | NDArray[np.uint8]"

OnSize: TypeAlias = Callable[[int, int], None]

MAX_PIXELS = 100_000_000
"""Larger images are refused unless the caller allows them."""
MAX_STREAM_BYTES = 2**30
"""Read at most, of a path that cannot be sought (a pipe)."""

Check: TypeAlias = Callable[[IO[bytes], str], None]

Plugin: TypeAlias = Callable[[Any], PilImage.Image]

_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile], Check | None], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile, structure.check_jpeg),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile, structure.check_png),
    (b"BM", BmpImagePlugin.BmpImageFile, None),
    *((signature, TiffFile, structure.check_tiff) for signature in SIGNATURES),
    (b"WEBP", WebPImagePlugin.WebPImageFile, structure.check_webp),
    (b"GIF8", GifImagePlugin.GifImageFile, None),
    (b"avif", AvifImagePlugin.AvifImageFile, None),
    (b"avis", AvifImagePlugin.AvifImageFile, None),
)
"""First bytes of the formats that are read, their decoders, and what looks at their structure before. Pillow knows many
more, in decoders that few people maintain."""
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
READABLE = "JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF"

_ORIENTATIONS = {
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90,
}
"""The transposition that turns an image with this EXIF orientation upright."""
_UNKNOWN_PIXELS = ("unknown pixel mode", "Invalid value for samples per pixel")
"""What Pillow says of a TIFF that is whole, but of a kind of pixels that it does not know."""
_EXIF_ORIENTATION = 0x0112
_TEXT_EXIF = "Raw profile type exif"
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO, _MAX_SAMPLE_VALUE = 258, 262, 0, 281
"""TIFF tags, and the value of one."""


RGB = 3
"""Channels of an image as a person sees it."""


@dataclass(frozen=True)
class _Options:
    """See ``decode``."""

    max_pixels: int
    turn: bool
    bits: int | None
    channels: int
    on_size: OnSize

    def check_size(self, height: int, width: int, name: str) -> None:
        """Tell the caller, who may raise, or raise where there are no pixels or too many."""
        if height < 1 or width < 1:
            raise ImageError(f"{name} has no pixels.")
        if height * width > self.max_pixels:
            raise ImageSizeError(
                f"{name} has {width}×{height} pixels, more than the {self.max_pixels / 1e6:g} million allowed.",
                f"Make it smaller, or allow it: --max-pixels {height * width} (max_pixels= in Python).",
            )
        self.on_size(height, width)


def decode(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    turn: bool = True,
    bits: int | None = None,
    channels: int = RGB,
    on_size: OnSize = lambda height, width: None,
) -> NDArray[np.uint8]:
    """Read an image as a person sees it, or with the channels that a model wants.

    JPEG, PNG, WebP, AVIF, HEIC (with pillow-heif), GIF, BMP and TIFF are told apart by their content. EXIF orientation
    is applied, gray becomes RGB, 16 bits become the upper 8, alpha is dropped and colors stay as they are; of an
    animation the first frame counts.

    Args:
        source: a path, an encoded image, a PIL image, or uint8 [H, W], [H, W, 1], [H, W, 3] RGB or
            [H, W, 4] RGBA.
        max_pixels: limit for height times width; checked before anything is decoded.
        turn: whether EXIF orientation is applied.
        bits: how many bits of 16-bit gray values are used, where the file does not say: 12 for most cameras and
            X-ray detectors.
        channels: of the result. With another number than 3 colors are not converted: the image, or an array
            uint8 [H, W, C], must have as many (1: gray, 2: gray and alpha, 4: RGBA, or what a TIFF has).
        on_size: called with height and width (before it is turned upright) when they are known and allowed.

    Returns:
        uint8 [H, W, channels], 3 of them RGB; it may be read-only, and it may be the array that was given.

    Raises:
        ImageError: it cannot be read, or is too large. No input raises any other error.
    """
    options = _Options(max_pixels, turn, bits, channels, on_size)
    if isinstance(source, np.ndarray):
        return _decode_array(source, options)
    if isinstance(source, PilImage.Image):
        return _decode_pil(source, "The image", options)
    with ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            file, name = io.BytesIO(source), "The image"
        elif isinstance(source, str | os.PathLike):
            file, name = stack.enter_context(_open(source)), os.fspath(source)
        else:
            raise ImageError(
                f"A {type(source).__name__} is not an image.", "Give a path, bytes, a PIL image or an array."
            )
        return _decode_file(file, name, options)


def _open(path: str | os.PathLike[str]) -> Any:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        if file.seekable():
            return file
        with file:
            return io.BytesIO(file.read(MAX_STREAM_BYTES))
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"The image {os.fspath(path)} cannot be read: {reason}.", "Check the path.") from error


def _decode_file(file: Any, name: str, options: _Options) -> NDArray[np.uint8]:
    try:
        head = file.read(12)
        file.seek(0)
    except OSError as error:
        raise ImageError(f"The image {name} cannot be read: {error}.") from error
    plugin, check = _plugin_for(head, name)
    try:
        if check is not None:
            check(file, name)
            file.seek(0)
        if plugin is TiffFile:
            if BandsTiff(file).wanted_for(options.channels):
                return _decode_bands(file, name, options)
            file.seek(0)
        if plugin is PngImagePlugin.PngImageFile:
            file = structure.without_text(file, _TEXT_EXIF)
        # The plugin itself, not Image.open: that would try other formats, and warn of sizes allowed here.
        image = plugin(file)
    except ImageError:
        raise
    except Exception as error:  # damaged headers raise almost anything in Pillow's plugins
        if plugin is TiffFile and str(error) in _UNKNOWN_PIXELS:
            return _decode_bands(file, name, options)
        raise _broken(name, error) from error
    with image:
        return _decode_pil(image, name, options)


def _plugin_for(head: bytes, name: str) -> tuple[Plugin, Check | None]:
    """What decodes a file that begins with these bytes, and what looks at its structure before."""
    boxed = head[:4] == b"RIFF" or head[4:8] == b"ftyp"  # a box whose content is named after its size
    content = head[8:] if boxed else head
    for magic, plugin, check in _FORMATS:
        if content.startswith(magic):
            return plugin, check
    if head[4:8] == b"ftyp" and content[:4] in _HEIF_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise ImageFormatError(
                f"{name} is HEIC, which needs another package.", "Install it with: pip install pillow-heif"
            ) from None
        return HeifImageFile, None
    what = "is not an image that can be read" if head else "is empty"
    raise ImageFormatError(f"{name} {what}.", f"Use {READABLE}.")


def _decode_pil(image: PilImage.Image, name: str, options: _Options) -> NDArray[np.uint8]:
    options.check_size(image.height, image.width, name)
    try:
        image.load()
        transpose = _ORIENTATIONS.get(_orientation(image, name)) if options.turn else None
        upright = image if transpose is None else image.transpose(transpose)
        as_seen = options.channels == RGB
        pixels = _to_rgb(upright, name, options.bits) if as_seen else _as_it_is(upright, name, options)
    except ImageError:
        raise
    except Exception as error:  # as above: there is no closed list
        raise _broken(name, error) from error
    return pixels


def _decode_bands(file: Any, name: str, options: _Options) -> NDArray[np.uint8]:
    """A TIFF with bands that no photo has."""
    try:
        tiff = BandsTiff(file)
        if not tiff.readable:
            raise structure.unsupported_tiff(file, name)
        if tiff.bands != options.channels and not (options.channels == RGB and tiff.is_color):
            raise _other_channels(name, tiff.bands, options.channels)
        options.check_size(tiff.height, tiff.width, name)
        pixels = tiff.read(options.max_pixels, name)[..., : options.channels]
        if pixels.dtype != np.uint8:
            pixels = _upper_bits(pixels, 16, tiff.largest, options.bits)
        return np.ascontiguousarray(tiff.upright(pixels) if options.turn else pixels)
    except ImageError:
        raise
    except Exception as error:  # as above
        raise _broken(name, error) from error


def _decode_array(array: NDArray[Any], options: _Options) -> NDArray[np.uint8]:
    shape = "×".join(map(str, array.shape))
    if array.dtype != np.uint8:
        raise ImageError(f"An array of {array.dtype} is not an image.", "Give uint8 values, 0 to 255.")
    if options.channels != RGB:
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] != options.channels:
            raise _other_channels(f"The array of {shape}", array.shape[-1], options.channels)
    elif array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"An array of {shape} is not an image.", "Give H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA).")
    options.check_size(array.shape[0], array.shape[1], f"The array of {shape}")
    if options.channels != RGB:
        return np.ascontiguousarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _orientation(image: PilImage.Image, name: str) -> int:
    try:
        if isinstance(profile := image.info.get(_TEXT_EXIF), str):  # a PNG's, in text that may have been compressed
            structure.check_exif(bytes.fromhex("".join(profile.split("\n")[3:])), name)
        tags = image.tag_v2 if isinstance(image, TiffFile) else image.getexif()  # which a loaded TIFF cannot read
        value = tags.get(_EXIF_ORIENTATION, 1)
    except ImageError:
        raise
    except Exception:  # EXIF that cannot be parsed: viewers show such a photo as it is stored
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: PilImage.Image, name: str, bits: int | None) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF, whose gray may have fewer bits, and begin with white
        gray = _upper_bits(np.asarray(image), tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_MAX_SAMPLE_VALUE), bits)
        if tags.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
            gray = 255 - gray
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32 bits per value, which has no agreed range.", "Convert it to 8 or 16 bits.")
    if image.mode in ("RGBa", "La"):  # alpha already multiplied in: take it out before it is dropped
        image = image.convert(image.mode[:-1] + "A")
    if "transparency" in image.info:  # a transparent color keeps its color
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _as_it_is(image: PilImage.Image, name: str, options: _Options) -> NDArray[np.uint8]:
    """The bands of an image, which must be as many as the model wants."""
    if image.mode.startswith("I;16"):
        pixels = _to_rgb(image, name, options.bits)[..., :1]
    else:
        if image.mode in ("P", "1"):
            image = image.convert({1: "L", 2: "LA", 4: "RGBA"}.get(options.channels, "RGB"))
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.shape[2] != options.channels:
        raise _other_channels(name, pixels.shape[2], options.channels)
    return pixels


def _other_channels(name: str, found: int, wanted: int) -> ImageError:
    return ImageError(
        f"{name} has {found} channel{'s' * (found != 1)}, and the model takes {wanted}.",
        f"Give an image of {wanted} channels, or an array uint8 [H, W, {wanted}].",
    )


def _upper_bits(values: NDArray[Any], depth: int, largest: Any, bits: int | None) -> NDArray[np.uint8]:
    """Gray values of more than 8 bits as uint8.

    Args:
        depth: bits of a value in the file.
        largest: the file's own MaxSampleValue, where it has one.
        bits: how many of them are used; it wins over ``largest``.
    """
    if isinstance(largest, tuple):
        largest = largest[0] if largest else None
    if bits is None and isinstance(largest, int) and 255 < largest < 2**depth - 1:
        bits = largest.bit_length()
    used = min(max(bits or depth, 8), depth)
    upper: NDArray[np.uint8] = np.minimum(values >> (used - 8), 255).astype(np.uint8)
    return upper


def _broken(name: str, error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageSizeError(f"{name} needs more memory than there is.", "Make it smaller.")
    if isinstance(error, PilImage.DecompressionBombError):  # of WebP alone: a limit of Pillow's own
        return ImageSizeError(f"{name} has more pixels than Pillow reads in this format.", "Save it as PNG or JPEG.")
    reason = str(error).rstrip(".") or type(error).__name__
    return ImageError(f"{name} is damaged: {reason}.", "Save it again, or get a whole copy.")
