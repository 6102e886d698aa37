"""Photos from several threads of a program at once: one detector serves them all.

pip install '.[cpu]'
python examples/thread_pool.py a.jpg b.jpg c.jpg

A program that has its photos in a list is better off with detector.stream, which does this for you; this is for one
whose threads each bring a photo, like a web server's.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import blu_export


def main(*photos: str) -> None:
    """Print what is on each photo, in the order given."""
    # The network's own threads and the pool's share the cores: few of each are faster than many.
    detector = blu_export.load(threads=1)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for photo, found in zip(photos, pool.map(detector, photos), strict=True):
            print(photo, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
