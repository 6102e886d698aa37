"""Tracks: the same number for the same thing on all frames of a video.

ByteTrack's two rounds (Zhang et al., ByteTrack, ECCV 2022): confident detections are matched with the tracks first, the
doubtful ones with the tracks that are left, so that a thing keeps its number while it is half hidden. Boxes are
predicted at constant velocity in real time, so frames may be left out, and compared with a margin around them (Yang et
al., C-BIoU, WACV 2023), so that what moved further than its own size between two frames is still found.

Written here since the libraries that do it bring OpenCV's desktop build, which replaces the headless one and does not
load on servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blu_export.boxes import iou
from blu_export.detections import Detections

Boxes = NDArray[np.float64]
CONFIDENT = 0.5
"""Score from which a detection may begin a track."""
MEMORY = 1.5
"""Seconds that a track is kept while nothing matches it; three frames at least."""
MARGIN = 0.3
"""Of a box, on each side, as a share of its size, when boxes are compared."""
SIMILAR = 0.2
"""IoU with margins from which a detection may belong to a track."""
SMOOTHING = 0.5
"""Weight of the newest step in a track's velocity."""


@dataclass
class _Track:
    number: int
    class_id: int
    box: Boxes
    velocity: Boxes
    """Of the box's corners, pixels a second."""
    time: float

    def at(self, time: float) -> Boxes:
        return self.box + self.velocity * (time - self.time)

    def move(self, box: Boxes, time: float) -> None:
        step = (box - self.box) / (time - self.time)
        # Both edges of an axis at one speed: a growing box would be predicted ever larger.
        step = np.tile((step[:2] + step[2:]) / 2, 2)
        weight = SMOOTHING if self.velocity.any() else 1.0
        self.velocity = (1 - weight) * self.velocity + weight * step
        self.box, self.time = box, time


class Tracker:
    """Follows things through the frames of one video.

    Args:
        fps: frames a second of the video, before any are left out.

        >>> tracker = Tracker(fps=25)
        >>> for number, photo in enumerate(detector.stream(frames)):
        ...     found = tracker.update(photo.result(), frame=number)
    """

    def __init__(self, fps: float = 25.0) -> None:
        self._fps = fps
        self._tracks: list[_Track] = []
        self._count = 0
        self._last = 0.0

    def update(self, found: Detections, frame: int | None = None) -> Detections:
        """The detections of the next frame with ``track_ids``: from 1, -1 for doubtful ones that no track claims.

        Args:
            found: what was found on it; of all scores that the model gives, if possible.
            frame: its number in the video, larger than the last one's; None: the one after the last.
        """
        time = self._last + 1 / self._fps if frame is None else frame / self._fps
        memory = max(MEMORY, 3 * (time - self._last))
        self._last = time
        self._tracks = [track for track in self._tracks if time - track.time <= memory]
        numbers = np.full(len(found), -1, np.int32)
        free = list(self._tracks)
        confident = found.scores >= CONFIDENT
        for chosen in (np.flatnonzero(confident), np.flatnonzero(~confident)):
            for index, track in self._match(found, chosen, free, time):
                numbers[index] = track.number
                track.move(found.rois[index].astype(float), time)
                free.remove(track)
        for index in np.flatnonzero(confident & (numbers < 0)).tolist():
            self._count += 1
            numbers[index] = self._count
            box = found.rois[index].astype(float)
            self._tracks.append(_Track(self._count, int(found.class_ids[index]), box, np.zeros(4), time))
        return found.with_tracks(numbers)

    def _match(
        self, found: Detections, chosen: NDArray[np.intp], tracks: list[_Track], time: float
    ) -> list[tuple[int, _Track]]:
        """Pairs of a detection and its track, the most similar first."""
        if not len(chosen) or not tracks:
            return []
        predicted = np.stack([track.at(time) for track in tracks])
        similarity = iou(_with_margin(found.rois[chosen].astype(float)), _with_margin(predicted))
        classes = np.array([track.class_id for track in tracks])
        similarity[found.class_ids[chosen][:, None] != classes] = 0
        pairs = []
        while similarity.max() >= SIMILAR:
            row, column = np.unravel_index(int(similarity.argmax()), similarity.shape)
            pairs.append((int(chosen[row]), tracks[column]))
            similarity[row], similarity[:, column] = 0, 0
        return pairs


def _with_margin(boxes: Boxes) -> Boxes:
    margin = MARGIN * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    grown: Boxes = boxes + margin * np.array([-1, -1, 1, 1])
    return grown
