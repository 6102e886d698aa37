"""Each object on a photo cut out on its own: PNG files with transparency.

pip install '.[cpu]'
python examples/cutouts.py street.jpg coat dress
"""

from __future__ import annotations

import sys
from pathlib import Path

import blu_export


def main(photo: str, *classes: str) -> None:
    """Write PHOTO.cutout.png and a file per instance beside the photo; of some classes or of all."""
    found = blu_export.load()(photo, min_score=0.5, classes=classes or None)
    for file in found.save(Path(photo).with_suffix(".cutout.png")):
        print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
