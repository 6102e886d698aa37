"""GeoJSON: outlines with holes, in pixels of the photo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from blu_export.results.base import PhotoFormat, Result
from blu_export.results.outline import Ring, polygons


class PolygonsFormat(PhotoFormat):
    """NAME.geojson: a feature per instance; x to the right, y down, (0, 0) the photo's upper left corner."""

    suffix = ".geojson"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        height, width = result.found.image_size
        collection = {
            "type": "FeatureCollection",
            "image": result.name,
            "image_size": [height, width],
            "features": [_feature(result, index) for index in range(len(result.found))],
        }
        yield self.suffix, (json.dumps(collection) + "\n").encode()


def _feature(result: Result, index: int) -> dict[str, Any]:
    found = result.found
    class_id = int(found.class_ids[index])
    parts = polygons(found.crops[index], found.rois[index])
    properties: dict[str, Any] = {
        "instance": index + 1,
        "class": found.class_names[class_id],
        "class_id": class_id,
        "score": float(found.scores[index]),
    }
    if found.track_ids is not None:
        properties["track"] = int(found.track_ids[index])
    coordinates = [[_closed(ring) for ring in part] for part in parts]
    geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": coordinates}
    if len(coordinates) == 1:
        geometry = {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _closed(ring: Ring) -> list[list[int]]:
    points: list[list[int]] = np.concatenate([ring, ring[:1]]).tolist()
    return points
