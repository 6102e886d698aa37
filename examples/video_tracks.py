"""What passes through a video, and from when to when.

pip install '.[cpu,video]'
python examples/video_tracks.py street.mp4
"""

from __future__ import annotations

import sys

import blu_export
from blu_export.tracks import Tracker
from blu_export.video import Video

EVERY = 3
"""Frames from one that is looked at to the next; the numbers of things stay the same."""


def main(video: str) -> None:
    """Print a line for each thing: its number, its class, and the seconds in which it was seen."""
    detector = blu_export.load()
    seen: dict[int, tuple[str, float, float]] = {}
    with Video(video, stride=EVERY) as frames:
        tracker = Tracker(frames.fps)
        for number, image in frames:
            time = number / frames.fps
            for each in tracker.update(detector(image), number):
                if each.track_id is not None:
                    first = seen.get(each.track_id, ("", time, time))[1]
                    seen[each.track_id] = each.class_name, first, time
    for number, (name, first, last) in sorted(seen.items()):
        print(f"#{number} {name}: {first:.1f} to {last:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
