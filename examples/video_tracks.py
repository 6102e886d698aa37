"""What passes through a video, and from when to when.

pip install '.[cpu]'
python examples/video_tracks.py street.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

import blu_export
from blu_export.sources import read_video
from blu_export.tracks import Tracker

EVERY = 3
"""Frames from one that is looked at to the next; the numbers of things stay the same."""


def main(video: str) -> None:
    """Print a line for each thing: its number, its class, and the seconds in which it was seen."""
    detector = blu_export.load()
    tracker: Tracker | None = None
    seen: dict[int, tuple[str, float, float]] = {}
    for item in read_video(Path(video)):
        if item.frame % EVERY:
            continue
        tracker = tracker or Tracker(item.fps)
        time = item.frame / item.fps
        for each in tracker.update(detector(item.source), item.frame):
            if each.track_id is not None:
                first = seen.get(each.track_id, ("", time, time))[1]
                seen[each.track_id] = each.class_name, first, time
    for number, (name, first, last) in sorted(seen.items()):
        print(f"#{number} {name}: {first:.1f} to {last:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
