"""Videos as people have them: rotated, damaged, cut off, in many containers; and videos written."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.errors import ImageError, UsageError
from blu_export.video import Video, VideoWriter, is_live

av = pytest.importorskip("av", reason="needs the extra video")


def frame(level: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """A red one, whose upper left quarter is blue: turns show."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0] = level
    image[: size[0] // 2, : size[1] // 2] = (0, 0, level)
    return image


def write(path: Path, levels: list[int], codec: str = "mpeg4", format: str | None = None, rotation: int = 0) -> Path:
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for level in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(level), format="rgb24")))
        container.mux(stream.encode())
    if rotation:
        data = bytearray(path.read_bytes())
        matrix = data.find(b"tkhd") + 4 + 40  # of ISO 14496-12, 8.3.2: version 0
        turned = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[rotation]
        for place, value in zip((0, 4, 12, 16), turned, strict=True):
            data[matrix + place : matrix + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
        path.write_bytes(data)
    return path


def levels_of(video: Video) -> list[tuple[int, int]]:
    return [(number, round(float(image[-4:, -4:, 0].mean()))) for number, image in video]


def test_frames_are_rgb_in_order(tmp_path: Path) -> None:
    with Video(write(tmp_path / "clip.mp4", [40, 120, 200])) as video:
        assert (video.fps, video.expected) == (10, 3)
        found = levels_of(video)
        assert [number for number, _ in found] == [1, 2, 3]
        np.testing.assert_allclose([level for _, level in found], [40, 120, 200], atol=12)
        assert (video.damaged, video.ended_early) == (0, False)


def test_a_stride_keeps_the_numbers(tmp_path: Path) -> None:
    with Video(write(tmp_path / "clip.mp4", [40] * 7), stride=3) as video:
        assert [number for number, _ in video] == [1, 4, 7]
        assert not video.ended_early
    with pytest.raises(UsageError, match="stride of 0"):
        Video(tmp_path / "clip.mp4", stride=0)


@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotated_videos_stand_upright(tmp_path: Path, degrees: int, corner: tuple[int, int]) -> None:
    with Video(write(tmp_path / "clip.mp4", [200], rotation=degrees)) as video:
        ((_, image),) = list(video)
    assert image.shape == ((48, 64, 3) if degrees == 180 else (64, 48, 3))
    assert image[corner][2] > 120, "the blue quarter"


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".avi", "mjpeg"), (".wmv", "wmv2"), (".flv", "flv"), (".ts", "mpeg2video"), (".mkv", "mpeg4")],
)
def test_containers(tmp_path: Path, suffix: str, codec: str) -> None:
    with Video(write(tmp_path / f"clip{suffix}", [200] * 3, codec)) as video:
        assert len(list(video)) == 3


def test_a_name_says_nothing_of_the_container(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.avi", [200] * 3, "mjpeg")
    with Video(path.rename(tmp_path / "clip.wmv")) as video:
        assert len(list(video)) == 3


def test_a_damaged_frame_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.avi", [200] * 8, "mjpeg")
    data = bytearray(path.read_bytes())
    chunk = data.find(b"00dc", data.find(b"movi"))
    for _ in range(3):
        chunk = data.find(b"00dc", chunk + 8)
    data[chunk + 8 : chunk + 8 + 600] = bytes(600)
    path.write_bytes(data)
    with Video(path) as video:
        found = [number for number, _ in video]
        assert len(found) + video.damaged == 8 and video.damaged == 1


def test_a_file_that_ends_early_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.avi", [200] * 20, "mjpeg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Video(path) as video:
        assert 4 < len(list(video)) < 16
        assert video.ended_early


def test_what_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no video"):
        Video(tmp_path / "none.mp4")
    for name, content in (("noise.mp4", bytes(1000)), ("empty.avi", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name} is not a video that can be read"):
            Video(tmp_path / name)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    clip = write(tmp_path / "secret.ts", [200] * 3, "mpeg2video")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(ImageError), Video(playlist) as video:
        list(video)


def test_streams_and_cameras_are_told_by_their_names() -> None:
    assert all(map(is_live, ("0", "12", "rtsp://camera/1", "udp://0.0.0.0:9000")))
    assert not any(map(is_live, ("clip.mp4", "./0", "https://a/b.mp4", "rtsp")))
    with pytest.raises(ImageError, match=r"rtsp://127\.0\.0\.1:1/x cannot be opened"):
        Video("rtsp://127.0.0.1:1/x")


@pytest.mark.parametrize("size", [(48, 64), (49, 63)])
def test_what_is_written_is_h264_that_reads_back(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 12.5) as writer:
        for level in (40, 120, 200):
            writer.add(frame(level, size))
    with av.open(str(path)) as container:
        assert (container.streams.video[0].codec_context.name, container.streams.video[0].pix_fmt) == (
            "h264",
            "yuv420p",
        )
    with Video(path) as video:
        assert video.fps == 12.5
        np.testing.assert_allclose([level for _, level in levels_of(video)], [40, 120, 200], atol=15)


def test_frames_of_another_size_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="change their size"), VideoWriter(tmp_path / "out.mp4", 10) as writer:
        writer.add(frame(40))
        writer.add(frame(40, (32, 32)))
    assert not list(tmp_path.iterdir())
