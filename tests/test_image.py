"""Decoding of anything that calls itself an image; mold and unmold against the original's pixels and each other."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageOps

from blu_export.errors import ImageError, ModelFileError, UsageError
from blu_export.image import Molded, canvas_of, decode, mold, resize_scale, stack, unmold
from blu_export.spec import ModelSpec

CLASSES = ("BG", "coat", "shoe", "hat")
SPEC = ModelSpec(CLASSES, image_min_dim=128, image_max_dim=128)
FORMATS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


def picture(height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    """Smooth, so that JPEG hardly changes it, and different in every corner and channel."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]  # fmt: skip
    return np.stack([40 + 150 * y, 30 + 200 * x, 220 - 100 * y - 60 * x], axis=-1).astype(np.uint8)


def encode(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


# decode


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_told_apart_by_content(kind: str, tmp_path: Path) -> None:
    data = encode(picture(), kind, **FORMATS[kind])
    path = tmp_path / "photo.txt"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path), Image.open(path)):
        decoded = decode(source)
        assert decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - picture()).max() <= (3 if kind == "JPEG" else 0)


def test_other_formats_are_refused() -> None:
    for kind in ("PPM", "ICO", "JPEG2000"):
        with pytest.raises(ImageError, match="JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF"):
            decode(encode(picture(), kind))


def test_alpha_is_dropped_and_colors_stay() -> None:
    image = picture()
    alpha = np.linspace(0, 255, image.shape[0] * image.shape[1]).astype(np.uint8).reshape(*image.shape[:2], 1)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(np.concatenate([image, alpha], axis=-1), kind)), image)
    gray_alpha = encode(np.concatenate([image[..., :1], alpha], axis=-1))
    np.testing.assert_array_equal(decode(gray_alpha), np.repeat(image[..., :1], 3, axis=-1))


def test_gray_is_repeated() -> None:
    gray = picture()[..., 0]
    for source in (encode(gray), encode(gray, "TIFF"), gray, gray[..., None]):
        np.testing.assert_array_equal(decode(source), np.stack([gray] * 3, axis=-1))


def test_one_bit() -> None:
    bits = picture()[..., 0] > 100
    np.testing.assert_array_equal(decode(encode(bits)), np.repeat(255 * bits[..., None].astype(np.uint8), 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 200, 10))])
def test_palettes_keep_their_colors(transparency: int | bytes | None) -> None:
    paletted = Image.fromarray(picture()).quantize(20)
    expected = np.asarray(paletted.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(decode(encode(paletted, **options)), expected)


def test_a_pil_image_is_not_changed() -> None:
    image = Image.open(io.BytesIO(encode(Image.fromarray(picture()).quantize(20), transparency=3)))
    decode(image)
    assert (image.mode, image.info["transparency"]) == ("P", 3)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_upper_eight(suffix: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), np.uint16)
    data = cv2.imencode(suffix, deep)[1].tobytes()
    expected = (deep[..., ::-1] >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(data), np.broadcast_to(expected, (20, 30, 3)))


@pytest.mark.parametrize(("bits", "white_is_zero"), [(16, True), (12, False)])
def test_deep_gray_tiffs_look_as_they_should(bits: int, white_is_zero: bool) -> None:
    upper = np.arange(256, dtype=np.uint16).reshape(16, 16)
    deep = upper << bits - 8
    packed = deep.astype("<u2").tobytes()
    if bits == 12:  # two values in three bytes
        first, second = deep.reshape(-1, 2).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8), (277, 1), (278, 16)]
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in [*tags, (279, len(packed))])
    data = b"II*\0" + struct.pack("<L", 8 + len(packed)) + packed + struct.pack("<H", 9) + directory + bytes(4)
    expected = (255 - upper if white_is_zero else upper)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind: str) -> None:
    # Pillow writes a CMYK JPEG the way Adobe does: inverted, and marked so.
    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert np.abs(decode(encode(cmyk, kind)).astype(int) - picture()).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif, **FORMATS[kind])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape[:2] == ((40, 30) if orientation > 4 else (30, 40))
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(data))), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_exif_that_cannot_be_read_turns_nothing() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    assert decode(encode(picture(), "JPEG", exif=exif)).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.fromarray(picture()), Image.new("RGB", (40, 30), "red")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **FORMATS[kind])
    np.testing.assert_array_equal(decode(data), picture())


def test_arrays() -> None:
    image = picture()
    assert np.shares_memory(decode(image), image)
    np.testing.assert_array_equal(decode(image), image)
    np.testing.assert_array_equal(decode(np.dstack([image, image[..., 0]])), image)
    np.testing.assert_array_equal(decode(image[::-1, ::2]), image[::-1, ::2])
    for wrong in (image / np.float32(255), image.astype(np.uint16), image > 9):
        with pytest.raises(ImageError, match="uint8"):
            decode(wrong)
    for shape in ((4,), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3)):
        with pytest.raises(ImageError, match="H×W"):
            decode(np.zeros(shape, np.uint8))
    with pytest.raises(ImageError, match="no pixels"):
        decode(np.zeros((0, 4, 3), np.uint8))


def test_32_bit_values_are_refused() -> None:
    for dtype in (np.float32, np.int32):
        with pytest.raises(ImageError, match="no agreed range"):
            decode(encode(np.ones((4, 4), dtype), "TIFF"))


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"never read")


def test_the_pixel_limit_is_checked_on_the_header() -> None:
    with pytest.raises(ImageError, match="100000×100000 pixels, more than the 100 million allowed"):
        decode(huge_png())
    for kind, options in FORMATS.items():
        data = encode(picture(), kind, **options)
        for source in (data, picture(), Image.fromarray(picture())):
            with pytest.raises(ImageError, match="40×30"):
                decode(source, max_pixels=1199)
        # Nothing after the header is looked at: without it the answer is the same.
        if kind not in ("TIFF", "WEBP"):  # whose header may lie at the end; whose decoder looks at the length first
            with pytest.raises(ImageError, match="40×30"):
                decode(data[: 700 if kind == "JPEG" else 60], max_pixels=1199)
        assert decode(data, max_pixels=1200).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_an_error(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    data = encode(noise, kind, **FORMATS[kind])
    for length in (1, 4, 8, 12, 20, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_sources_that_are_no_images(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    for source, message in [
        (tmp_path / "none.jpg", "none.jpg cannot be read: No such file"),
        (tmp_path, "cannot be read"),
        ("a\0b", "cannot be read"),
        (empty, "is empty"),
        (b"", "is empty"),
        (b"not an image", "not an image that can be read"),
        (b"RIFF\0\0\0\0AVI LIST", "not an image that can be read"),
        (12, "A int is not an image"),
        (None, "A NoneType is not an image"),
    ]:
        with pytest.raises(ImageError, match=message):
            decode(source)  # type: ignore[arg-type]


MAGIC = st.sampled_from(
    [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"RIFF\0\0\0\0WEBP"]
)
WHOLE = [encode(picture(9, 13), kind, **options) for kind, options in FORMATS.items()] + [
    encode(Image.fromarray(picture(9, 13)).quantize(9), transparency=2),
    encode(Image.fromarray(picture(9, 13)).convert("CMYK"), "TIFF", compression="tiff_lzw"),
    encode(picture(9, 13)[..., 0].astype(np.uint16)),
    encode(picture(9, 13), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    encode(picture(9, 13), "WEBP", save_all=True, append_images=[Image.new("RGB", (13, 9))]),
]


def decodes_or_refuses(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in use: Pillow warns of odd metadata, and goes on
        try:
            decoded = decode(data, max_pixels=10**6)
        except ImageError as error:
            assert error.what
        else:
            assert decoded.dtype == np.uint8
            assert decoded.shape[2:] == (3,)
            assert decoded.size


@settings(max_examples=300, deadline=None)
@given(MAGIC, st.binary(max_size=300))
def test_random_bytes_never_crash(magic: bytes, data: bytes) -> None:
    decodes_or_refuses(data)
    decodes_or_refuses(magic + data)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_files_never_crash(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    decodes_or_refuses(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    decodes_or_refuses(bytes(damaged))


# mold


def resized_plainly(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """What scipy's zoom does for the original, straight from its definition: zeros outside, one sum of four."""
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    y, x = ((np.arange(n) + 0.5) * (size / n) - 0.5 for n, size in zip((height, width), image.shape[:2], strict=True))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    upper, before = 1 - (y - top), 1 - (x - left)
    weights = [(0, upper, 0, before), (0, upper, 1, 1 - before), (1, 1 - upper, 0, before)]
    weights.append((1, 1 - upper, 1, 1 - before))
    total = np.zeros((height, width, 3))
    for down, row_weight, right, column_weight in weights:
        values = padded[np.ix_(top + down + 1, left + right + 1)]
        total += values * row_weight[:, None, None] * column_weight[None, :, None]
    return np.clip(total, image.min(), image.max()).astype(np.uint8)


SIDES = st.integers(1, 200)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, 255), fill=st.integers(0, 255)),
    st.integers(1, 128),
    st.sampled_from([0.0, 1.3, 2.7]),
)
def test_a_square_canvas_holds_the_resized_photo(gray: NDArray[np.uint8], min_dim: int, min_scale: float) -> None:
    image = np.stack([gray, gray // 2 + 9, gray[::-1]], axis=-1)
    spec = SPEC.replace(image_min_dim=min_dim, image_min_scale=min_scale)
    molded = mold(image, spec)
    assert molded.canvas.shape == (128, 128, 3)
    y1, x1, y2, x2 = molded.window.astype(int)
    height, width = y2 - y1, x2 - x1
    assert (y1, x1) == ((128 - height) // 2, (128 - width) // 2)
    assert [height, width] == [max(1, round(side * molded.scale)) for side in image.shape[:2]]
    assert max(height, width) <= 128
    if max(height, width) < 128:  # there was room: all wishes are fulfilled
        assert molded.scale >= max(1, min_scale, min_dim / min(image.shape[:2]))
    expected = image if molded.scale == 1 else resized_plainly(image, height, width)
    np.testing.assert_array_equal(molded.canvas[y1:y2, x1:x2], expected)
    outside = molded.canvas.copy()
    outside[y1:y2, x1:x2] = 0
    assert not outside.any()


def test_flat_grays_are_cut_where_the_original_cuts_them() -> None:
    # Weights that do not add up to 1 make 113 of 114; a photo that is all 114 is clipped to its range.
    flat = np.full((333, 500, 3), 114, np.uint8)
    assert np.unique(mold(flat, SPEC.replace(image_max_dim=256)).canvas).tolist() == [0, 114]
    flat[0, 0] = 0
    assert np.unique(mold(flat, SPEC.replace(image_max_dim=256)).canvas[60:180]).tolist() == [113, 114]


def test_pad64() -> None:
    spec = SPEC.replace(image_resize_mode="pad64")
    molded = mold(picture(130, 200), spec)
    assert molded.canvas.shape == (192, 256, 3)
    assert molded.window.tolist() == [31, 28, 161, 228]
    np.testing.assert_array_equal(molded.canvas[31:161, 28:228], picture(130, 200))
    assert mold(picture(64, 320), spec).canvas.shape == (128, 640, 3)
    with pytest.raises(ImageError, match="512000×128 pixels; the largest side is 8192"):
        mold(np.zeros((1, 4000, 3), np.uint8), spec)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 256), st.sampled_from([0, 1.5]))
def test_fit_is_square_without_the_bars(height: int, width: int, min_dim: int, min_scale: float) -> None:
    """The same pixels; each side is the photo's, rounded up to 64."""
    square = SPEC.replace(image_max_dim=256, image_min_dim=min_dim, image_min_scale=min_scale)
    whole, fit = (mold(picture(height, width), spec) for spec in (square, square.replace(image_resize_mode="fit")))
    assert fit.scale == whole.scale
    assert fit.canvas.shape[:2] == canvas_of(height, width, square.replace(image_resize_mode="fit"))
    for side, (near, far) in zip(fit.canvas.shape, fit.window.astype(int).reshape(2, 2).T, strict=False):
        assert side % 64 == 0 and 0 <= side - (far - near) < 64 and side <= 256
        assert near == (side - (far - near)) // 2
    photos = [m.canvas[y1:y2, x1:x2] for m in (whole, fit) for y1, x1, y2, x2 in [m.window.astype(int)]]
    np.testing.assert_array_equal(*photos)
    assert fit.canvas.sum(dtype=int) == photos[1].sum(dtype=int), "all else is zero"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_a_rectangle_takes_every_photo(height: int, width: int, min_dim: int) -> None:
    spec = SPEC.replace(image_resize_mode="rectangle", image_canvas=(128, 192), image_min_dim=min_dim)
    molded = mold(picture(height, width), spec)
    assert molded.canvas.shape == (128, 192, 3)
    y1, x1, y2, x2 = molded.window.astype(int)
    assert (y1, x1) == ((128 - (y2 - y1)) // 2, (192 - (x2 - x1)) // 2)
    if y2 - y1 < 128 and x2 - x1 < 192:  # there was room: all wishes are fulfilled
        assert molded.scale == max(1, min_dim / min(height, width))
    assert [y2 - y1, x2 - x1] == [max(1, round(side * molded.scale)) for side in (height, width)]


def test_no_resizing_at_all() -> None:
    spec = SPEC.replace(image_resize_mode="none")
    image = picture(64, 192)
    molded = mold(image, spec)
    np.testing.assert_array_equal(molded.canvas, image)
    assert (molded.window.tolist(), molded.scale) == ([0, 0, 64, 192], 1)
    with pytest.raises(ImageError, match="40×30 is not a multiple of 64"):
        mold(picture(), spec)


def test_only_decoded_photos_are_molded() -> None:
    for wrong in (picture() / 255, picture()[..., 0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError, match="uint8"):
            mold(wrong, SPEC)


def test_stack() -> None:
    molded = [mold(picture(*size), SPEC) for size in ((30, 40), (40, 30))]
    canvases, windows = stack(molded)
    assert (canvases.shape, windows.shape) == ((2, 128, 128, 3), (2, 4))
    np.testing.assert_array_equal(canvases[1], molded[1].canvas)
    alone, window = stack(molded[:1])
    assert alone.base is molded[0].canvas
    np.testing.assert_array_equal(window, molded[0].window[None])
    for wrong in ([], [molded[0], mold(picture(), SPEC.replace(image_max_dim=256))]):
        with pytest.raises(UsageError, match="cannot form one batch"):
            stack(wrong)


def test_the_originals_canvases(shared: Path) -> None:
    with np.load(shared / "golden" / "expected" / "edge_cases" / "molding.npz") as cases:
        for i in range(int(cases["count"])):
            config = {name.lower(): value for name, value in json.loads(str(cases[f"{i}_cfg"])).items()}
            molded = mold(cases[f"{i}_image"], ModelSpec(CLASSES).replace(**config))
            np.testing.assert_array_equal(molded.canvas, cases[f"{i}_molded_u8"])
            np.testing.assert_array_equal(molded.window, cases[f"{i}_window"])
            assert molded.scale == cases[f"{i}_meta"][11]


GOLDEN = [
    *(f"resnet50_small/{name}" for name in ("astronaut", "camera_gray", "chelsea", "china", "coffee", "flower")),
    "resnet50_small/matterport_640x480",
    *(f"resnet50_df2/{name}" for name in ("astronaut", "coffee", "flower", "matterport_portrait")),
    *(f"resnet101_coco/{name}" for name in ("astronaut", "china", "coffee")),
    *(f"edge_cases/{name}.0" for name in ("batch2", "black", "dim64", "none_detected", "pad64")),
    "edge_cases/batch2.1",
]
GoldenCase = Callable[[str, str], dict[str, NDArray[Any]]]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_originals_photos_and_results(name: str, golden_case: GoldenCase) -> None:
    case = golden_case(*name.split("/"))
    height, width = case["padded_image"].shape[:2]
    spec = ModelSpec(tuple(map(str, range(81))), image_min_dim=min(height, 800), image_max_dim=width)
    if height != width:
        spec = spec.replace(image_resize_mode="pad64", image_min_dim=256)
    molded = mold(decode(case["image"]), spec)
    np.testing.assert_array_equal(molded.canvas, case["padded_image"])
    np.testing.assert_array_equal(molded.window, case["window"])
    check_result(unmold(case["mrcnn_detections"], case["mrcnn_mask"], molded, spec).to_dict(), case)


def test_the_originals_masks_of_made_up_boxes(golden_case: GoldenCase) -> None:
    case = golden_case("edge_cases", "unmold_unit")
    height, width = case["original_image_shape"][:2].tolist()
    canvas = np.zeros(case["image_shape"], np.uint8)
    molded = Molded(canvas, case["window"].astype(np.float32), 0.64, (height, width))
    from pycocotools import mask as coco_mask

    case["masks"] = coco_mask.decode(json.loads(str(case["masks_rle"]))).astype(bool)
    check_result(unmold(case["detections"], case["mrcnn_mask"], molded, ModelSpec(CLASSES)).to_dict(), case)


def check_result(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    for name in ("rois", "class_ids", "scores", "masks"):
        np.testing.assert_array_equal(found[name], expected[name])
        assert found[name].dtype == expected[name].dtype


# unmold


def on_canvas(rois: NDArray[Any], molded: Molded) -> NDArray[np.float32]:
    """Normalized boxes on the canvas of boxes in pixels of the photo: the exact inverse of unmold's."""
    height, width = molded.canvas.shape[:2]
    edges = np.array([0, 0, 1, 1])
    y1, x1, y2, x2 = (molded.window - edges) / np.array([height - 1, width - 1] * 2)
    photo = np.maximum(np.array([molded.image_size] * 2).ravel() - 1, 1)
    inside = (rois - edges) / photo
    return (inside * np.array([y2 - y1, x2 - x1] * 2) + np.array([y1, x1, y1, x1])).astype(np.float32)


def rows_of(boxes: NDArray[np.float32], size: int = 8) -> NDArray[np.float32]:
    """Raw detections of these boxes: class 1, score 0.5, the rest of ``size`` rows zero."""
    rows = np.zeros((size, 6), np.float32)
    rows[: len(boxes)] = np.column_stack([boxes, np.ones(len(boxes)), np.full(len(boxes), 0.5)])
    return rows


@settings(max_examples=150, deadline=None)
@given(st.integers(3, 4000), st.integers(3, 4000), st.sampled_from(["square", "fit", "pad64"]), st.data())
def test_unmold_is_the_inverse_of_mold(height: int, width: int, mode: str, data: st.DataObject) -> None:
    spec = SPEC.replace(image_resize_mode=mode, image_min_dim=64)
    scale = resize_scale(height, width, spec)
    size = [max(1, round(side * scale)) for side in (height, width)]
    if min(size) < 2 or max(size) > 8192:  # no extent; no canvas
        return
    # Its sizes are all that unmold uses: no pixels needed.
    canvas = [128, 128] if mode == "square" else [-(-side // 64) * 64 for side in size]
    y, x = ((room - side) // 2 for room, side in zip(canvas, size, strict=True))
    window = np.array([y, x, y + size[0], x + size[1]], np.float32)
    molded = Molded(np.broadcast_to(np.uint8(0), (*canvas, 3)), window, scale, (height, width))
    y1, y2 = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    rois = np.array([[0, 0, height, width], [y1, x1, y2, x2]])
    masks = np.zeros((8, 28, 28), np.float32)
    masks[0] = 1
    found = unmold(rows_of(on_canvas(rois, molded)), masks, molded, spec)
    np.testing.assert_array_equal(found.rois, rois)
    assert found.image_size == (height, width)
    assert found.areas.tolist() == [height * width, 0]


def unmolded_plainly(mask: NDArray[np.float32], height: int, width: int) -> NDArray[np.float64]:
    """Weights of each mask value for each pixel, and two products: zeros outside the mask."""
    rows, columns = (
        np.clip(1 - np.abs(((np.arange(n) + 0.5) * (size / n) - 0.5)[:, None] - np.arange(size)), 0, 1)
        for n, size in zip((height, width), mask.shape, strict=True)
    )
    return rows @ mask @ columns.T


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hnp.arrays(np.float32, (6, 7), elements=st.floats(0, 1, width=32)) | st.just(np.full((28, 28), 0.75, np.float32)),
    st.integers(1, 90),
    st.integers(1, 90),
)
def test_masks_are_resized_with_zeros_around_them(mask: NDArray[np.float32], height: int, width: int) -> None:
    molded = mold(np.zeros((128, 128, 3), np.uint8), SPEC)
    roi = np.array([[5, 9, 5 + height, 9 + width]])
    (crop,) = unmold(rows_of(on_canvas(roi, molded), 1), mask[None], molded, SPEC).crops
    if mask.min() >= 0.5:
        assert crop.all()
        return
    values = unmolded_plainly(mask, height, width)
    clear = np.abs(values - 0.5) > 1e-5
    np.testing.assert_array_equal(crop[clear], (values >= 0.5)[clear])


def test_a_cut_off_mask_value_counts() -> None:
    molded = mold(np.zeros((128, 128, 3), np.uint8), SPEC)
    mask = np.full((1, 2, 2), 0.5, np.float32)
    mask[0, 0, 0] = 0.49
    (crop,) = unmold(rows_of(on_canvas(np.array([[0, 0, 2, 2]]), molded), 1), mask, molded, SPEC).crops
    assert crop.tolist() == [[False, True], [True, True]]


def test_boxes_without_area_are_dropped() -> None:
    molded = mold(picture(64, 128), SPEC)
    rois = np.array([[5, 5, 9, 9], [9, 5, 9, 9], [9, 5, 5, 9], [9, 9, 5, 5], [5, 9, 9, 9], [6, 5, 9, 9]])
    rows = rows_of(on_canvas(rois, molded))
    rows[:, 5] = np.arange(8) / 8
    found = unmold(rows, np.zeros((8, 28, 28), np.float32), molded, SPEC)
    assert found.rois.tolist() == [[5, 5, 9, 9], [6, 5, 9, 9]]
    assert found.scores.tolist() == [0, 0.625]


def test_boxes_that_stick_out_are_cut() -> None:
    molded = mold(picture(64, 128), SPEC)
    rows = rows_of(np.array([[-1, -3e9, 2, 1e30], [2, 2, 3, 3]], np.float32))
    assert unmold(rows, np.ones((8, 28, 28), np.float32), molded, SPEC).rois.tolist() == [[0, 0, 64, 128]]


def test_rows_end_at_the_first_of_class_zero() -> None:
    molded = mold(picture(64, 128), SPEC)
    rows = rows_of(on_canvas(np.array([[5, 5, 9, 9]] * 3), molded))
    rows[1] = 0
    assert len(unmold(rows, np.zeros((8, 28, 28), np.float32), molded, SPEC)) == 1
    nothing = unmold(rows[1:2], np.zeros((1, 28, 28), np.float32), molded, SPEC).to_dict()
    assert {name: (value.shape, value.dtype) for name, value in nothing.items()} == {
        "rois": ((0, 4), np.int32),
        "class_ids": ((0,), np.int32),
        "scores": ((0,), np.float32),
        "masks": ((64, 128, 0), np.bool_),
    }


def test_values_that_no_model_returns() -> None:
    molded = mold(picture(64, 128), SPEC)
    masks = np.zeros((1, 28, 28), np.float32)
    good = rows_of(on_canvas(np.array([[5, 5, 9, 9]]), molded), 1)
    assert len(unmold(good, masks, molded, SPEC)) == 1
    for column, value in ((0, np.nan), (3, np.inf), (4, 4), (4, -1), (4, 0.5), (5, np.nan)):
        rows = good.copy()
        rows[0, column] = value
        with pytest.raises(ModelFileError, match="row 0"):
            unmold(rows, masks, molded, SPEC)
    for rows, shape in ((good, (2, 28, 28)), (good, (28, 28)), (good, (1, 0, 28)), (good[0], (1, 28, 28))):
        with pytest.raises(ModelFileError, match="not \\[N, 6\\]"):
            unmold(rows, np.zeros(shape, np.float32), molded, SPEC)


def test_a_photo_one_pixel_high() -> None:
    molded = mold(np.full((1, 500, 3), 200, np.uint8), SPEC)
    assert molded.window.tolist() == [63, 0, 64, 128]
    assert (molded.canvas[63] == 200).all()
    found = unmold(rows_of(on_canvas(np.array([[0, 0, 1, 500]]), molded)), np.ones((8, 28, 28)), molded, SPEC)
    assert found.rois.tolist() == [[0, 0, 1, 500]]
