"""Finding photos by the names that annotations give them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from blu_export.data.finder import PhotoFinder, name_parts
from blu_export.data.heads import is_turn_unknown, read_head
from blu_export.data.storage import LocalStorage
from blu_export.image import decode


def find(root: Path, *names: str, part: str = "", usual: str = "images") -> list[str | None]:
    """Where photos are, below the root."""
    finder = PhotoFinder(LocalStorage(), f"{root}/{usual}", str(root), part)
    return [uri and str(Path(uri).relative_to(root)) for uri in finder.locate(names)]


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "images/a.jpg",
        r"images\a.jpg",
        "./images//a.jpg",
        r"C:\Users\me\a.jpg",
        "/home/me/data/images/a.jpg",
        "https://labels.invalid/data/upload/1/a.jpg?token=1",
        "s3://bucket/a.jpg",
        "/data/local-files/?d=me/a.jpg",
        "A.JPG",
    ],
)
def test_names_are_reduced_to_what_is_there(tmp_path: Path, name: str) -> None:
    make(tmp_path, "images/a.jpg")
    assert find(tmp_path, name) == ["images/a.jpg"]


@pytest.mark.parametrize("folder", ["data", "img", "JPEGImages", "train", "images/default/deep"])
def test_photos_are_found_anywhere_below(tmp_path: Path, folder: str) -> None:
    make(tmp_path, f"{folder}/a.jpg", "annotations/x.json")
    assert find(tmp_path, "a.jpg", "b.jpg") == [f"{folder}/a.jpg", None]


def test_composed_and_decomposed_letters_are_the_same(tmp_path: Path) -> None:
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = tmp_path / form
        make(folder, "images/" + unicodedata.normalize(form, "caf\u00e9 %41#1.jpg"))
        assert find(folder, unicodedata.normalize(other, "caf\u00e9 %41#1.jpg"))[0] is not None


def test_folders_tell_photos_of_one_name_apart(tmp_path: Path) -> None:
    make(tmp_path, "cam1/0.jpg", "cam2/0.jpg", "images/train/1.jpg", "images/val/1.jpg")
    assert find(tmp_path, r"D:\x\cam1\0.jpg", "cam2/0.jpg", "0.jpg") == ["cam1/0.jpg", "cam2/0.jpg", None]
    assert find(tmp_path, "1.jpg", part="val", usual="nothing") == ["images/val/1.jpg"]


def test_two_names_are_never_the_same_photo(tmp_path: Path) -> None:
    make(tmp_path, "cam1/0.jpg", "images/2.jpg")
    assert find(tmp_path, "cam3/0.jpg", "cam4/0.jpg") == [None, None]
    assert find(tmp_path, "2.jpg", "elsewhere/2.jpg", "2.jpg") == ["images/2.jpg", None, "images/2.jpg"]


def test_the_places_are_named(tmp_path: Path) -> None:
    finder = PhotoFinder(LocalStorage(), f"{tmp_path}/images", str(tmp_path))
    assert finder.tried == f"{tmp_path}/images, {tmp_path}, all folders below {tmp_path}"


def test_name_parts() -> None:
    assert name_parts("https://x.invalid/a%20b/c.jpg?d=&e=1") == ("a b", "c.jpg")
    assert name_parts("") == ()


@pytest.mark.parametrize(
    ("orientation", "turned", "unknown"), [(1, (2, 4), False), (3, (2, 4), True), (6, (4, 2), False)]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_heads(tmp_path: Path, name: str, orientation: int, turned: tuple[int, int], unknown: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (4, 2)).save(tmp_path / name, exif=exif)
    content = (tmp_path / name).read_bytes()
    assert decode(content).shape[:2] == turned
    assert decode(content, turn=False).shape == (2, 4, 3)
    head = read_head(content)
    assert head is not None
    assert (head.turned, is_turn_unknown(head)) == (turned, unknown)
    assert read_head(b"no photo") is None
