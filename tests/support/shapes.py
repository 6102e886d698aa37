"""A tiny synthetic data set: colored shapes on noise."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.data.augment import AugmentConfig
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.spec import ModelSpec
from blu_export.train.config import TargetConfig, TrainConfig

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

CLASS_NAMES = ("BG", "box", "disc", "triangle")
SIDE = 128


def tiny_spec(**changes: object) -> ModelSpec:
    """The smallest model that has all parts."""
    fields: dict[str, object] = {
        "class_names": CLASS_NAMES,
        "backbone": "efficientnet_lite0",
        "image_min_dim": SIDE,
        "image_max_dim": SIDE,
        "mean_pixel": (127.0, 127.0, 127.0),
        "rpn_anchor_scales": (16, 32, 48, 64, 96),
        "post_nms_rois_inference": 50,
        "pre_nms_limit": 200,
        "detection_min_confidence": 0.05,
        "detection_max_instances": 10,
        "top_down_pyramid_size": 32,
        "rpn_channels": 32,
        "fpn_classif_fc_layers_size": 64,
        "mask_channels": 32,
    }
    return ModelSpec(**fields | changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shapes(Dataset):
    """Photos that are drawn, not read."""

    images: tuple[NDArray[np.uint8], ...] = field(default=())

    def load_image(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]


def shapes(count: int, seed: int = 0) -> Shapes:
    """``count`` photos of SIDE x SIDE pixels with one to three shapes that do not touch."""
    rng = np.random.default_rng(seed)
    records, images = [], []
    for number in range(count):
        image = rng.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        annotations = []
        cells = rng.permutation(4)[: rng.integers(1, 4)]
        for cell in cells:
            category, size = int(rng.integers(1, 4)), int(rng.integers(16, 28))
            y, x = (int(v) for v in np.array(divmod(cell, 2)) * SIDE // 2 + rng.integers(size, SIDE // 2 - size + 1, 2))
            outline = _outline(category, x, y, size)
            color = tuple(int(v) for v in rng.integers(120, 256, 3))
            cv2.fillPoly(image, [np.round(outline).astype(np.int32)], color)
            (x1, y1), (x2, y2) = outline.min(axis=0), outline.max(axis=0)
            annotations.append(Annotation(category, (y1, x1, y2, x2), [outline.ravel().tolist()]))
        images.append(image)
        records.append(Record(number + 1, f"{number}.png", SIDE, SIDE, tuple(annotations)))
    return Shapes(CLASS_NAMES, tuple(records), name="shapes", images=tuple(images))


def write_coco(dataset: Shapes, folder: Path) -> Path:
    """The shapes as a COCO file with PNG images."""
    (folder / "images").mkdir(parents=True)
    annotations = []
    for image, record in zip(dataset.images, dataset.records, strict=True):
        cv2.imwrite(str(folder / "images" / record.uri), image[..., ::-1])
        for a in record.annotations:
            y1, x1, y2, x2 = a.box
            annotations.append({"id": len(annotations) + 1, "image_id": record.image_id, "category_id": a.category,
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": a.segmentation})  # fmt: skip
    content = {
        "images": [{"id": r.image_id, "file_name": r.uri, "height": SIDE, "width": SIDE} for r in dataset.records],
        "categories": [{"id": i, "name": name} for i, name in enumerate(dataset.class_names) if i],
        "annotations": annotations,
    }
    path = folder / "instances_train.json"
    path.write_text(json.dumps(content))
    return path


def _outline(category: int, x: int, y: int, size: int) -> NDArray[np.float64]:
    corners = {1: 4, 2: 24, 3: 3}[category]
    angles = 2 * np.pi * np.arange(corners) / corners + (np.pi / 4 if category == 1 else -np.pi / 2)
    return np.stack([x + size * np.cos(angles), y + size * np.sin(angles)], axis=1)


def tiny_config(**changes: object) -> TrainConfig:
    """Settings for the tiny model; no augmentation."""
    fields: dict[str, object] = {
        "batch": 2,
        "warmup_steps": 10,
        "targets": TargetConfig(
            rpn_anchors_per_image=64,
            proposals=50,
            pre_nms_limit=200,
            rois_per_image=24,
            propose_ground_truth=True,
            max_gt_instances=8,
        ),
        "augment": AugmentConfig(0.0, (1.0, 1.0), 0.0, 0.0, 0.0, 0.0),
    }
    return TrainConfig(**fields | changes)  # type: ignore[arg-type]


def tiny_model(seed: int = 0, **changes: object) -> MaskRCNN:
    """An untrained model for training on the shapes, the same for the same seed; ``changes`` of the spec."""
    import keras

    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.start import calibrate
    from blu_export.train.step import initialize_outputs

    keras.utils.set_random_seed(seed)
    model = MaskRCNN(tiny_spec(**changes | {"image_resize_mode": "none"}))
    initialize_outputs(model, seed, set(model.learned_layers()))
    calibrate(model, shapes(8).images)
    return model
