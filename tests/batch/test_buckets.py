"""Photos from a bucket, results into a bucket: moto's S3 server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch_jobs import rows, run

from blu_export.batch.photos import list_photos
from blu_export.errors import DatasetError


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """An S3 server with the bucket ``photos``; boto's variables point to it."""
    pytest.importorskip("moto", reason="needs moto, of the extra dev")
    pytest.importorskip("s3fs", reason="needs the extra batch")
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "Running on" in line)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never blocks on its log
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ACCESS_KEY_ID", "tester")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{int(line.rpartition(':')[2])}")
            try:
                yield
            finally:
                process.terminate()


def test_a_bucket_to_a_bucket(s3: None, photos: Callable[..., Path], model: Path) -> None:
    from botocore.session import get_session

    client = get_session().create_client("s3")
    client.create_bucket(Bucket="photos")
    for path in photos(10, 20, 30).iterdir():
        client.put_object(Bucket="photos", Key=f"in/{path.name}", Body=path.read_bytes())
    client.put_object(Bucket="photos", Key="in/broken.jpg", Body=b"no photo")
    client.put_object(Bucket="photos", Key="in/notes.txt", Body=b"00.png\nhttps")
    assert list_photos("s3://photos/in/*0.png") == ["s3://photos/in/00.png"]
    report = run(source="s3://photos/in", sink="s3://photos/out", model=model, shard_size=2, format="coco")
    assert (report.photos, report.failed, report.coco) == (4, 1, "s3://photos/out/_detections.coco.json")
    found = rows("s3://photos/out")
    assert [row["detections"][0]["score"] for row in found.values() if row["error"] is None] == pytest.approx(
        [10 / 255, 20 / 255, 30 / 255]
    )
    client.delete_object(Bucket="photos", Key="out/part-00001.parquet")
    assert run(source="s3://photos/in", sink="s3://photos/out", model=model).ran == 2
    assert rows("s3://photos/out") == found
    client.close()


def test_a_bucket_that_is_not_there(s3: None) -> None:
    with pytest.raises(DatasetError, match="s3://nowhere"):
        list_photos("s3://nowhere/photos")
