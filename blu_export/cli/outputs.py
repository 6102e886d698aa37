"""The files that ``blu infer`` writes: one class per format, whole or absent."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.detector import Photo
from blu_export.errors import ImageError
from blu_export.files import atomic_write
from blu_export.sources import Input
from blu_export.spec import ModelSpec

JPEG_QUALITY = 92
MAX_STEM_BYTES = 200


class Output(ABC):
    """Writes the detections of photos in one format."""

    for_people = False
    """Whether it is looked at rather than computed with: then doubtful detections are left out."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.written: list[Path] = []

    @abstractmethod
    def write(self, name: str, item: Input, photo: Photo) -> None:
        """Write one photo that has detections; ``name`` is its unique file stem."""

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the files that hold several photos; after an error they go."""


class JsonOutput(Output):
    """NAME.detections.json: classes, scores, boxes, masks as COCO RLE."""

    def write(self, name: str, item: Input, photo: Photo) -> None:
        """See Output.write."""
        path = self.folder / f"{_numbered(name, item)}.detections.json"
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(json_record(item, photo)) + "\n")
        self.written.append(path)


class NpzOutput(Output):
    """NAME.detections.npz: the original's dict; rois, class_ids, scores, masks [H, W, N]."""

    def write(self, name: str, item: Input, photo: Photo) -> None:
        """See Output.write."""
        path = self.folder / f"{_numbered(name, item)}.detections.npz"
        arrays: dict[str, Any] = photo.result().to_dict()
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **arrays)
        self.written.append(path)


class CocoOutput(Output):
    """detections.coco.json: one COCO file of all photos, annotations with scores."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        super().__init__(folder, spec)
        self._path = folder / "detections.coco.json"
        self._images: list[dict[str, Any]] = []
        self._annotations = 0
        with ExitStack() as stack:
            # Annotations are written as they come: those of many photos need not fit in memory.
            self._file = stack.enter_context(stack.enter_context(atomic_write(self._path)).open("w", encoding="utf-8"))
            self._file.write('{"annotations": [')
            self._stack = stack.pop_all()

    def write(self, name: str, item: Input, photo: Photo) -> None:
        """See Output.write."""
        found = photo.result()
        height, width = found.image_size
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": item.name, "height": height, "width": width})
        for annotation in found.to_coco(image_id):
            separator = "," if self._annotations else ""
            self._annotations += 1
            self._file.write(f"{separator}\n{json.dumps({**annotation, 'id': self._annotations, 'iscrowd': 0})}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Add the photos and the categories."""
        if kind is None:
            categories = [{"id": index, "name": name} for index, name in enumerate(self.spec.class_names) if index > 0]
            self._file.write(f'\n],\n"images": {json.dumps(self._images)},\n"categories": {json.dumps(categories)}}}\n')
            self.written.append(self._path)
        self._stack.__exit__(kind, error, trace)


class OverlayOutput(Output):
    """NAME.overlay.jpg with masks, boxes and labels; for the frames of a video NAME.overlay.mp4."""

    for_people = True

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        super().__init__(folder, spec)
        self._video: _VideoFile | None = None

    def write(self, name: str, item: Input, photo: Photo) -> None:
        """See Output.write."""
        from PIL import Image

        from blu_export.draw import overlay

        assert photo.image is not None
        drawn = overlay(photo.image, photo.result())
        if item.video is not None:
            self._add_frame(self.folder / f"{name}.overlay.mp4", item, drawn)
            return
        path = self.folder / f"{name}.overlay.jpg"
        with atomic_write(path) as temporary:
            Image.fromarray(drawn).save(temporary, "JPEG", quality=JPEG_QUALITY)
        self.written.append(path)

    def _add_frame(self, path: Path, item: Input, drawn: NDArray[np.uint8]) -> None:
        if self._video is not None and self._video.path != path:
            self._video.__exit__(None, None, None)
            self._video = None
        if self._video is None:
            self._video = _VideoFile(path, item.fps, drawn.shape[:2])
            self.written.append(path)
        self._video.add(drawn)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last video."""
        if self._video is not None:
            self._video.__exit__(kind, error, trace)


class _VideoFile:
    """An .mp4 file that grows frame by frame under a temporary name."""

    def __init__(self, path: Path, fps: float, size: tuple[int, ...]) -> None:
        import cv2

        self.path = path
        self._size = size
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(path))
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(os.fspath(temporary), cv2.CAP_FFMPEG, codec, fps, (size[1], size[0]))
            if not self._writer.isOpened():
                raise ImageError(f"OpenCV cannot write the video {path}.", "Leave out --format overlay for videos.")
            stack.callback(self._writer.release)
            self._stack = stack.pop_all()

    def add(self, image: NDArray[np.uint8]) -> None:
        import cv2

        if image.shape[:2] != self._size:
            raise ImageError(f"The frames for {self.path} change their size.", "Split the video where they do.")
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _numbered(name: str, item: Input) -> str:
    return name if item.video is None else f"{name}.{item.frame:06d}"


def json_record(item: Input, photo: Photo) -> dict[str, Any]:
    """One photo's detections as JSON values."""
    return {"image": item.name, **photo.result().to_json()}


FILE_FORMATS: dict[str, type[Output]] = {
    "json": JsonOutput,
    "coco": CocoOutput,
    "npz": NpzOutput,
    "overlay": OverlayOutput,
}


class Names:
    """Unique file stems: two photos of one name in different folders do not overwrite each other.

    A stem leaves room for a number and a suffix in the 255 bytes that a name may have.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._videos: dict[Path, str] = {}

    def name(self, item: Input) -> str:
        """A stem for a photo; the frames of one video share a stem."""
        if item.video is not None:
            if item.video not in self._videos:
                self._videos[item.video] = self._unique(item.video.stem)
            return self._videos[item.video]
        return self._unique(Path(item.name).stem or "photo")

    def _unique(self, stem: str) -> str:
        encoded = os.fsencode(stem)
        if len(encoded) > MAX_STEM_BYTES:
            stem = encoded[:MAX_STEM_BYTES].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in self._taken:  # casefold: some file systems ignore case
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name
