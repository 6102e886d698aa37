"""Data sets in a bucket: a real S3 server on loopback, and what goes wrong with one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from botocore.session import get_session
from tcp_line import Line

from blu_export.data.cache import DiskCache
from blu_export.data.load import has_split, load_dataset
from blu_export.data.storage import LocalStorage, RemoteStorage, join, open_storage, parent
from blu_export.errors import DatasetError, MissingDependencyError, UsageError

Upload = Callable[[Path], str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "things"
    (root / "below").mkdir(parents=True)
    (root / "b.txt").write_bytes(b"second")
    (root / "a.txt").write_bytes(bytes(range(256)) * 4000)
    (root / "below" / "c.txt").write_bytes(b"third")
    return root


@pytest.fixture
def remote(tmp_path: Path) -> Callable[..., RemoteStorage]:
    """A storage that gives up soon."""
    return lambda **options: RemoteStorage(
        "s3://any", DiskCache(tmp_path / "files", 10**8), **{"timeout": 5.0, "attempts": 2} | options
    )


def test_a_bucket_reads_like_a_folder(folder: Path, s3: Upload) -> None:
    local, url = LocalStorage(), s3(folder)
    bucket = open_storage(url)
    for name in ("a.txt", "below/c.txt"):
        here, there = join(str(folder), name), join(url, name)
        assert bucket.read(there) == local.read(here)
        assert bucket.read(there, 3) == local.read(here, 3)
        assert bucket.fetch(there) == local.fetch(here) == bucket.fetch(there)
        known = [storage.file(path) for storage, path in ((bucket, there), (local, here))]
        assert [(file.name, file.size) for file in known if file] == 2 * [(Path(name).name, len(local.read(here)))]
    for below in ("", "/", "/below"):
        lists = [storage.files(root + below) for storage, root in ((bucket, url), (local, str(folder)))]
        assert [file.name for file in lists[0]] == [file.name for file in lists[1]] != []
        assert all(file.version for files in lists for file in files)
        assert bucket.is_folder(url + below)
    for absent in ("d.txt", "below/d", "below"):
        assert bucket.file(join(url, absent)) is None
        assert local.file(join(str(folder), absent)) is None
    assert not bucket.is_folder(join(url, "absent"))
    assert not bucket.is_folder(join(url, "a.txt"))


def test_joining() -> None:
    assert join("s3://bucket/", "a/b.jpg") == "s3://bucket/a/b.jpg"
    assert join("folder", "/else/b.jpg") == "/else/b.jpg"
    assert join("folder", "s3://else/b.jpg") == "s3://else/b.jpg"
    assert [parent("s3://bucket/a.json"), parent("a.json"), parent("/a.json")] == ["s3://bucket", ".", "/"]


@pytest.mark.parametrize("layout", ["deepfashion2", "coco_folder"])
def test_the_same_records_from_disk_and_from_a_bucket(
    layout: str, s3: Upload, request: pytest.FixtureRequest, own_cache: Path
) -> None:
    folder: Path = request.getfixturevalue(layout)
    url = s3(folder)
    here, there = load_dataset(str(folder), "val"), load_dataset(url, "val")
    assert here.class_names == there.class_names
    assert len(here) == len(there) > 0
    for index, (one, other) in enumerate(zip(here.records, there.records, strict=True)):
        assert one.uri.removeprefix(str(folder)) == other.uri.removeprefix(url)
        assert (one.image_id, one.height, one.width) == (other.image_id, other.height, other.width)
        assert [(a.category, a.box, a.iscrowd) for a in one.annotations] == [
            (a.category, a.box, a.iscrowd) for a in other.annotations
        ]
        np.testing.assert_array_equal(here.load_masks(index), there.load_masks(index))
        np.testing.assert_array_equal(here.load_image(index), there.load_image(index))
    assert has_split(url, "val")
    assert has_split(url, "train") == has_split(str(folder), "train")
    assert (own_cache / "files").is_dir()


def test_photos_come_from_the_cache_the_second_time(coco_folder: Path, s3: Upload, line: Line) -> None:
    dataset = load_dataset(s3(coco_folder), "val")
    first = dataset.load_image(0)
    line.silent = True  # were it asked, it would not answer
    line.close()
    np.testing.assert_array_equal(dataset.load_image(0), first)


def test_changed_annotations_are_read_again(coco_folder: Path, s3: Upload) -> None:
    url = s3(coco_folder)
    assert len(load_dataset(url, "val")) == 2
    client = get_session().create_client("s3")
    client.put_object(
        Bucket=url.removeprefix("s3://"),
        Key="annotations/instances_val2017.json",
        Body=b'{"images": [], "annotations": [], "categories": []}',
    )
    assert len(load_dataset(url, "val")) == 0


def test_missing_keys_and_buckets(folder: Path, s3: Upload, line: Line) -> None:
    url = s3(folder)
    before = line.connections
    with pytest.raises(DatasetError, match=r"absent\.jpg cannot be read: it does not exist"):
        open_storage(url).read(join(url, "absent.jpg"))
    with pytest.raises(DatasetError, match="s3://no-such-bucket/a cannot be read: it does not exist"):
        open_storage(url).read("s3://no-such-bucket/a")
    assert line.connections - before <= 2  # asked once each
    with pytest.raises(DatasetError, match="not a data set with a part 'train'"):
        load_dataset(url, "train")
    with pytest.raises(DatasetError, match="no-such-bucket"):
        load_dataset("s3://no-such-bucket", "train")


def test_no_credentials(folder: Path, s3: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3(folder)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DatasetError, match=r"without credentials\. Set AWS_ACCESS_KEY_ID"):
        open_storage(url).read(join(url, "a.txt"))


@pytest.fixture
def strict_server(s3_server: int) -> Iterator[None]:
    """The server checks credentials, which it does not by default."""
    from urllib.request import Request, urlopen

    def set_free_requests(count: float) -> None:
        address = f"http://127.0.0.1:{s3_server}/moto-api/reset-auth"
        urlopen(Request(address, str(count).encode(), {"Content-Type": "text/plain"})).close()

    set_free_requests(0)
    yield
    set_free_requests(float("inf"))


def test_wrong_credentials(folder: Path, s3: Upload, request: pytest.FixtureRequest) -> None:
    url = s3(folder)
    request.getfixturevalue("strict_server")
    with pytest.raises(DatasetError, match=r"Access to s3://.*/a\.txt is refused: .*Check the credentials"):
        open_storage(url).read(join(url, "a.txt"))
    with pytest.raises(DatasetError, match="is refused"):
        load_dataset(url, "train")


@pytest.mark.parametrize("bytes_through", [0, 300, 100_000])
def test_a_dropped_connection_is_tried_again(
    bytes_through: int, folder: Path, s3: Upload, line: Line, remote: Callable[..., RemoteStorage]
) -> None:
    url = s3(folder)
    line.cut, line.bytes_through = 1, bytes_through
    assert remote().read(join(url, "a.txt")) == (folder / "a.txt").read_bytes()
    assert line.cut == 0


def test_connections_that_keep_dropping_are_given_up(
    folder: Path, s3: Upload, line: Line, remote: Callable[..., RemoteStorage]
) -> None:
    url = s3(folder)
    before, line.cut = line.connections, 1000
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read: .*Check the network and the endpoint"):
        remote(attempts=2).read(join(url, "a.txt"))
    # The HTTP library, too, repeats a request once if the line drops before any answer.
    assert 2 <= line.connections - before <= 4


def test_no_answer_is_given_up(folder: Path, s3: Upload, line: Line, remote: Callable[..., RemoteStorage]) -> None:
    url = s3(folder)
    line.silent = True
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read: .*(?i:time)"):
        remote(timeout=0.2, attempts=2).read(join(url, "a.txt"))


def test_a_slow_answer_is_waited_for(
    folder: Path, s3: Upload, line: Line, remote: Callable[..., RemoteStorage]
) -> None:
    url = s3(folder)
    line.silent = True
    storage = remote(timeout=0.2, attempts=8)
    pauses = []

    def resume(seconds: float) -> None:
        pauses.append(seconds)
        line.silent = len(pauses) < 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blu_export.data.storage.time.sleep", resume)
        assert storage.read(join(url, "below/c.txt")) == b"third"
    assert len(pauses) == 2
    assert pauses[1] > pauses[0]


def test_an_unreachable_server(
    remote: Callable[..., RemoteStorage], s3: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DatasetError, match="AWS_ENDPOINT_URL"):
        remote().file("s3://bucket/a.txt")


def test_an_endpoint_without_a_scheme(
    remote: Callable[..., RemoteStorage], s3: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9")
    message = r"s3://bucket/a\.txt cannot be read: Invalid endpoint: localhost:9\. AWS_ENDPOINT_URL needs a scheme"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blu_export.data.storage.time.sleep", lambda seconds: pytest.fail("it is tried again"))
        for ask in (remote().file, remote().read, remote().files):
            with pytest.raises(DatasetError, match=message):
                ask("s3://bucket/a.txt")


@pytest.mark.parametrize("url", ["s3://", "s3:///", "https://"])
def test_no_bucket(url: str) -> None:
    with pytest.raises(UsageError, match=f"{url} names no bucket"):
        open_storage(url)


def test_a_protocol_whose_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"gs:// needs a package .*install gcsfs"):
        open_storage("gs://bucket/folder")


def test_unknown_protocols() -> None:
    with pytest.raises(UsageError, match="no storage 's4://'"):
        open_storage("s4://bucket")


def test_other_protocols_of_fsspec(folder: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(folder), "/things", recursive=True)
    storage = open_storage("memory://things")
    assert storage.read("memory://things/b.txt") == b"second"
    assert [file.name for file in storage.files("memory://things")] == ["a.txt", "b.txt"]
