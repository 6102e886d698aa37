"""A row of a benchmark: everything that was measured of one candidate."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from blu_export.benchmark.timing import Timing


@dataclass
class Row:
    """Measurements of a candidate. Seconds unless said otherwise; None: not measured."""

    model: str
    runtime: str
    precision: str
    device: str
    ours: bool
    """False for a peer: what a user would have without this project."""
    detections: int
    """Instances on the photo."""
    end_to_end: Timing
    stages: dict[str, float]
    """Medians by stage: decode, mold, run, unmold."""
    around_large: float
    """Share of the time outside the network on a photo of 12 megapixels with 100 instances."""
    notes: dict[str, Any] = field(default_factory=dict)
    """More figures, by their heading."""
    flops_per_second: float | None = None
    share_of_peak: float | None = None
    """Of the machine's measured matrix peak in this precision, 0..1."""
    photos_per_second: dict[str, float] | None = None
    """By batch size, and with one photo a core."""
    onnx_stages: dict[str, float] | None = None
    """By stage of the graph."""
    fresh_process: dict[str, float] | None = None
    """From the start of a process."""

    def to_json(self) -> dict[str, Any]:
        """What was measured, as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["end_to_end"] = self.end_to_end.to_json()
        return {name: value for name, value in values.items() if value is not None}
