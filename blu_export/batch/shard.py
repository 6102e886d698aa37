"""A shard's file: Parquet, one row per photo, with what made it in its metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blu_export.batch.plan import Shard
from blu_export.batch.sink import Sink
from blu_export.detections import Detections
from blu_export.errors import DatasetError
from blu_export.spec import ModelSpec

DETECTION = pa.struct(
    [
        ("class", pa.string()),
        ("class_id", pa.int32()),
        ("score", pa.float32()),
        ("box", pa.list_(pa.int32())),
        ("area", pa.int64()),
        ("mask", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
    ]
)
"""As in Detections.to_json: box (y1, x1, y2, x2) in pixels, mask in COCO's run lengths."""
COLUMNS = pa.schema(
    [
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("detections", pa.list_(DETECTION)),
        ("error", pa.string()),
        ("model_sha256", pa.string()),
    ]
)
"""A photo has either an error, or a size and detections (which may be none); see ``as_utf8`` for its name."""
METADATA_KEY = b"blu"


@dataclass(frozen=True)
class Summary:
    """What a shard's metadata say."""

    index: int
    photos: int
    failed: int
    detections: int
    seconds: float
    """From its start to its end."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds per stage, summed over its photos; stages overlap."""
    model: dict[str, str] = field(default_factory=dict)
    """sha256, runtime, device, precision."""
    spec: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Summary:
        """The inverse; raises ValueError or TypeError for other text."""
        return cls(**json.loads(text))

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class id."""
        return ModelSpec.from_json(self.spec).class_names


def row(photo: str, found: Detections | None, error: str | None, model_sha256: str) -> dict[str, Any]:
    """A photo's row; exactly one of ``found`` and ``error`` is given."""
    height, width = (None, None) if found is None else found.image_size
    return {
        "image": as_utf8(photo),
        "height": height,
        "width": width,
        "detections": None if found is None else found.to_json()["detections"],
        "error": None if error is None else as_utf8(error),
        "model_sha256": model_sha256,
    }


def as_utf8(text: str) -> str:
    r"""Text that Parquet can hold: a byte of a file name that is not UTF-8, such as E9, is written as ``\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encode(rows: Sequence[Mapping[str, Any]], summary: Summary) -> bytes:
    """The file's content.

    Raises:
        DatasetError: a value has no place in its column.
    """
    schema = COLUMNS.with_metadata({METADATA_KEY: summary.to_json().encode()})
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer, compression="zstd")
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's errors are ValueErrors and TypeErrors
        raise DatasetError(
            f"The rows of shard {summary.index} do not fit into Parquet: {error}.",
            "This is a bug of blu: please report it.",
        ) from error
    return buffer.getvalue()


def read_summary(sink: Sink, shard: Shard) -> Summary | None:
    """What a shard's file says of itself, from its footer; None where it is not that shard's, whole and readable."""
    try:
        with sink.open(shard.name) as file:
            metadata = pq.ParquetFile(file).metadata
            summary = Summary.from_json(metadata.metadata[METADATA_KEY])
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are ValueErrors
        return None
    whole = summary.index == shard.index and summary.photos == metadata.num_rows == len(shard.photos)
    return summary if whole else None


def read_rows(sink: Sink, shard: Shard) -> list[dict[str, Any]]:
    """All rows of a finished shard."""
    with sink.open(shard.name) as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
