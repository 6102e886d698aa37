"""Models to build engines of, with random weights: a small one, and the full-sized ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import small_models
from made import made

from blu_export.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
DEMO_PHOTO = ROOT / "models" / "demo" / "astronaut.jpg"

SMALL = small_models.SMALL | {"pre_nms_limit": 300, "post_nms_rois_inference": 60, "detection_max_instances": 20}


def garments_settings() -> dict[str, Any]:
    """Those of the embedded default model."""
    settings = tomllib.loads((ROOT / "models" / "garments-first.toml").read_text())["model"]
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()} | {
        "class_names": ("BG", *(f"garment {i}" for i in range(1, 10)))
    }


FULL_SIZED = {
    "resnet50": {"class_names": ("BG", *(f"c{i}" for i in range(1, 14))), "image_min_dim": 512, "image_max_dim": 512},
    "resnet101": {"class_names": ("BG", *(f"c{i}" for i in range(1, 81))), "image_min_dim": 800, "image_max_dim": 1024},
}
"""The golden configurations, by backbone."""


def specs() -> dict[str, ModelSpec]:
    """Every model by name."""
    found = {name: ModelSpec(backbone=name, **settings) for name, settings in FULL_SIZED.items()}
    four = {"image_channel_count": 4, "mean_pixel": (90.0, 100.0, 110.0, 120.0)}
    small = {"small": ModelSpec(**SMALL), "small-four": ModelSpec(**SMALL | four)}
    return found | {"garments": ModelSpec(**garments_settings())} | small


def export(spec: ModelSpec, path: Path) -> Path:
    """A portable file with random weights, as ``blu export onnx`` writes it."""
    small_models.save_export(small_models.random_model(spec), path)
    return path


def exported(name: str) -> Path:
    """The portable file of one of ``specs()``, made once."""
    return made(f"engine-{name}.onnx", lambda path: export(specs()[name], path))
