"""A web service of your own around a detector. `blu serve` has limits, batching and metrics; this has 20 lines.

pip install '.[cpu,serve]'
uvicorn --app-dir examples fastapi_app:app
curl -F photo=@street.jpg http://127.0.0.1:8000/count
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Annotated

from fastapi import FastAPI, File, HTTPException

import blu_export

MAX_BYTES = 20 * 2**20

app = FastAPI()


@cache
def detector() -> blu_export.Detector:
    """Loaded at the first request, and kept."""
    return blu_export.load()


@app.post("/count")
def count(photo: Annotated[bytes, File(max_length=MAX_BYTES)]) -> dict[str, int]:
    """How many of each class are on a photo. Not async: FastAPI gives each call a thread."""
    try:
        found = detector()(photo, min_score=0.5)
    except blu_export.ImageError as error:
        raise HTTPException(422, str(error)) from error
    return Counter(each.class_name for each in found)
