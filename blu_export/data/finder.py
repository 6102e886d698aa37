"""Finding the photos that annotations name, and their sizes without decoding them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from blu_export.data.dataset import decode_photo
from blu_export.data.heads import PhotoHead, read_head
from blu_export.data.storage import Storage, join, parent
from blu_export.errors import DatasetError

HEAD_BYTES = 65_536
"""Enough of a photo to know its size and orientation, as a rule."""
PROBES = 4
"""Photos of a bucket that are looked for one by one; when they are where they should be, the others are taken to be."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

log = logging.getLogger(__name__)


def photo_head(storage: Storage, uri: str) -> PhotoHead:
    """Size and orientation of a photo, from its first bytes where they suffice.

    Raises:
        DatasetError: it cannot be read, or is not an image.
    """
    found = read_head(storage.read(uri, HEAD_BYTES))
    if found is None:
        content = storage.read(uri)
        found = read_head(content)
        if found is None:
            height, width, _ = decode_photo(content, uri).shape
            found = PhotoHead(height, width, 1)
    return found


@dataclass
class PhotoFinder:
    """Looks for photos by the names that annotations give them.

    A name may be a path of the machine where it was written (Windows or not), a URL, or relative to some folder: what
    agrees is its end. First comes the usual folder, then everything below ``root``: the file whose path agrees with the
    name for the most parts from the end. Letters may be composed or not (NFC, NFD), and of either case.
    """

    storage: Storage
    usual: str
    """The folder that names are relative to."""
    root: str
    """Below it photos are looked for where they are not in the usual folder."""
    part: str = ""
    """Where a name is in several folders, those of this part of the data set (``train``) come first."""
    _index: dict[str, list[tuple[str, ...]]] | None = field(default=None, repr=False)

    def locate(self, names: Sequence[str]) -> list[str | None]:
        """Path or URL of each photo; None for one that is not there, or for two names that would be one photo."""
        if not self._is_usual(names):
            return [join(self.usual, name) for name in names]
        found = [self._find(name) for name in names]
        # Two names that end alike, of which one photo is left: no one can tell whose it is.
        named: defaultdict[str, set[str]] = defaultdict(set)
        for name, uri in zip(names, found, strict=True):
            if uri is not None:
                named[uri].add(name)
        exact = {join(self.usual, name) for name in names}
        return [
            uri if uri is None or len(named[uri]) == 1 or (uri in exact and join(self.usual, name) == uri) else None
            for name, uri in zip(names, found, strict=True)
        ]

    @property
    def tried(self) -> str:
        """The places that were looked at, in words."""
        places = dict.fromkeys((self.usual, *([self.root, f"all folders below {self.root}"] if self.root else [])))
        return ", ".join(places)

    def _is_usual(self, names: Sequence[str]) -> bool:
        """False where nothing needs to be looked for: in a bucket, whose photos are in the usual folder."""
        if self.storage.parallel == 1 or not names:
            return True
        probes = names[:: max(1, len(names) // PROBES)][:PROBES]
        return not all(self.storage.file(join(self.usual, name)) for name in probes)

    def _find(self, name: str) -> str | None:
        local = self.storage.parallel == 1
        straight = join(self.usual, name)
        if name and local and self.storage.file(straight):
            return straight
        parts = name_parts(name)
        if not parts:
            return None
        if local:
            for start in range(len(parts)):
                path = join(self.usual, "/".join(parts[start:]))
                if self.storage.file(path):
                    return path
        return self._lookup(parts)

    def _lookup(self, parts: tuple[str, ...]) -> str | None:
        index = self._below()
        keys = [name_key(part) for part in parts]
        candidates = index.get(keys[-1], [])
        if not candidates and not keys[-1].endswith(IMAGE_SUFFIXES):
            candidates = [each for suffix in IMAGE_SUFFIXES for each in index.get(keys[-1] + suffix, [])]
        usual = tuple(_relative(self.usual, self.root))

        def rank(path: tuple[str, ...]) -> tuple[int, bool, bool, bool]:
            agreeing = 1
            for mine, theirs in zip(keys[-2::-1], path[-2::-1], strict=False):
                if mine != name_key(theirs):
                    break
                agreeing += 1
            in_part = bool(self.part) and any(self.part in re.split(r"[^a-z]+", each.lower()) for each in path[:-1])
            return agreeing, path[: len(usual)] == usual, in_part, path[-1] == parts[-1]

        if not candidates:
            return None
        ranks = {path: rank(path) for path in candidates}
        best = max(ranks.values())
        if Counter(ranks.values())[best] > 1:
            return None
        return join(self.root, "/".join(next(path for path, value in ranks.items() if value == best)))

    def _below(self) -> dict[str, list[tuple[str, ...]]]:
        """Files below the root by name: the parts of their paths."""
        if self._index is None:
            self._index = {}
            try:
                paths = self.storage.below(self.root) if self.root else []
            except DatasetError as error:
                log.info("%s", error)
                paths = []
            for path in paths:
                parts = tuple(path.split("/"))
                if MASK_FOLDERS & {part.lower() for part in parts[:-1]}:
                    continue
                self._index.setdefault(name_key(parts[-1]), []).append(parts)
        return self._index


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a photo's path of any system: ``C:\\a\\b.jpg``, ``https://x/a/b.jpg?d=1``, ``./a//b.jpg``."""
    if re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
        url = urlsplit(name)
        # Label Studio's local files: /data/local-files/?d=folder/b.jpg
        given = parse_qs(url.query).get("d", [""])[0]
        name = given or unquote(url.path)
    elif "local-files/?d=" in name:
        name = unquote(name.partition("?d=")[2])
    parts = re.split(r"[/\\]+", re.sub(r"^[A-Za-z]:", "", name))
    return tuple(part for part in parts if part not in ("", "."))


def name_key(name: str) -> str:
    """A name as names are compared: composed letters, without case."""
    return unicodedata.normalize("NFC", name).casefold()


def _relative(folder: str, root: str) -> list[str]:
    """The parts of a folder's path below the root."""
    if not folder.startswith(root):
        return ["/"]
    return [part for part in folder[len(root) :].split("/") if part not in ("", ".")]


def usual_folder(file: str, storage: Storage) -> tuple[str, str]:
    """(the folder that a COCO file's photos usually lie in, the data set's folder)."""
    folder = parent(file)
    stem = re.sub(r"\.json$", "", file.rpartition("/")[2], flags=re.IGNORECASE)
    name = folder.rstrip("/").rpartition("/")[2].lower()
    root = parent(folder) if name in ANNOTATION_FOLDERS and "/" in folder.rstrip("/") else folder
    part = stem.removeprefix("instances_")
    places = [join(folder, "images")]
    if root != folder:
        places = [join(root, part), *places, join(root, f"images/{part}")]
        places += [join(root, each) for each in PHOTO_FOLDERS]
    places += [join(folder, each) for each in PHOTO_FOLDERS[1:]]
    return next((place for place in places if storage.is_folder(place)), folder), root


ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "annos", "ann", "json", "coco")
MASK_FOLDERS = {"segmentationobject", "segmentationclass", "masks", "mask", "instances"}
"""Pictures in these are masks, of the same names as photos."""
PHOTO_FOLDERS = ("images", "data", "img", "imgs", "JPEGImages", "photos")
