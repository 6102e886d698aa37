"""Find objects on photos with a running ``blu serve``, several at once.

pip install '.[client]'
blu serve
python examples/client.py street.jpg market.jpg
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from blu_export.client import AsyncClient
from blu_export.detections import Detections
from blu_export.errors import BluError


async def detect(url: str, photos: list[Path]) -> list[Detections]:
    """What is on each photo. The server makes batches of what comes at the same time."""
    async with AsyncClient(url, os.environ.get("BLU_API_KEY")) as client:
        return await asyncio.gather(*map(client.predict, photos))


def main() -> None:
    """Print one line per object; what goes wrong is one line on stderr, and the exit code is 1."""
    parser = argparse.ArgumentParser(description="Find objects on photos.")
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    try:
        found = asyncio.run(detect(options.url, options.photos))
    except BluError as error:
        sys.exit(f"error: {error}")
    for photo, detections in zip(options.photos, found, strict=True):
        for each in detections:
            y1, x1, y2, x2 = each.roi.tolist()
            print(f"{photo}  {each.class_name}  {each.score:.3f}  x {x1}..{x2}  y {y1}..{y2}")


if __name__ == "__main__":
    main()
