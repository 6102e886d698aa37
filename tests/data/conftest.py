"""A real S3 server on loopback, a line to it that can be cut, and small data sets in both layouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tcp_line import Line

BUCKET = "photos"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for the test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BLU_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of moto's S3 server, a process of its own."""
    pytest.importorskip("moto", reason="needs moto, of the extra dev")
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 's3fs'")
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "Running on" in line)
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never blocks on its log
            yield int(line.rpartition(":")[2])
        finally:
            process.terminate()


@pytest.fixture
def s3(s3_server: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """``s3(folder)`` copies a folder into a bucket and returns the bucket's URL; boto's variables are set."""
    _set_up_boto(monkeypatch, s3_server)

    def upload(folder: Path) -> str:
        from botocore.session import get_session

        client = get_session().create_client("s3")
        bucket = f"{BUCKET}-{abs(hash(folder)):x}"
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=bucket, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
        client.close()
        return f"s3://{bucket}"

    return upload


def _set_up_boto(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def line(s3: object, s3_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A line to the server, and AWS_ENDPOINT_URL pointing at its near end."""
    made = Line(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    yield made
    made.close()


def square(x: int, y: int, side: int) -> list[float]:
    """A square as a polygon."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def deepfashion2(tmp_path: Path) -> Path:
    """Three training photos and one for validation, in DeepFashion2's layout."""
    root = tmp_path / "deepfashion2"
    for split, count in (("train", 3), ("validation", 1)):
        for folder in ("annos", "image"):
            (root / split / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / "image" / f"{number:06}.jpg")
            items = {
                # Not in order; two overlapping polygons; number 3 has one item only.
                "item2": _item(13, [square(40, 20, 8)], [40, 20, 48, 28]),
                "source": "user",
                "pair_id": number,
                "item1": _item(2, [square(10, 10, 20), square(20, 20, 20)], [10, 10, 40, 40]),
            }
            if number == 3:
                del items["item2"]
            (root / split / "annos" / f"{number:06}.json").write_text(json.dumps(items))
    return root


def _item(category: int, polygons: list[list[float]], box: list[int]) -> dict[str, object]:
    return {
        "segmentation": polygons,
        "bounding_box": box,
        "category_id": category,
        "category_name": "anything",
        "landmarks": [0, 0, 0],
        "scale": 1,
        "viewpoint": 2,
        "zoom_in": 1,
        "style": 0,
        "occlusion": 1,
    }


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Two photos in the layout of COCO's own archives, all of them for validation."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(root / "val2017" / f"{number}.png")
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "height": 60, "width": 80} for number in (1, 2)],
        "categories": [{"id": 5, "name": "kite"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], "segmentation": [square(10, 10, 20)]},
            {
                "id": 2,
                "image_id": 2,
                "category_id": 5,
                "bbox": [0, 0, 80, 60],
                "segmentation": {"size": [60, 80], "counts": [0, 4800]},
                "iscrowd": 1,
            },
        ],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root
