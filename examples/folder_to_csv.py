"""Everything in a folder of photos as one table.

pip install '.[cpu]'
python examples/folder_to_csv.py photos/ found.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import blu_export
from blu_export.sources import find_images


def main(folder: str, table: str) -> None:
    """One line per instance; photos that cannot be read are named on stderr, and the rest goes on."""
    detector = blu_export.load()
    with Path(table).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["photo", "class", "score", "area"])
        for photo in detector.stream(find_images([folder])):
            if photo.error is not None:
                print(photo.error, file=sys.stderr)
                continue
            found = photo.result().filter(min_score=0.5)
            for each, area in zip(found, found.areas, strict=True):
                lines.writerow([photo.source, each.class_name, f"{each.score:.3f}", area])


if __name__ == "__main__":
    main(*sys.argv[1:])
