"""TrainConfig: every choice of a training run, as frozen dataclasses that TOML files map onto."""

from __future__ import annotations

from dataclasses import dataclass, field

from blu_export.data.augment import AugmentConfig


@dataclass(frozen=True)
class TargetConfig:
    """How anchors and ROIs become training examples. Defaults are the original's."""

    rpn_anchors_per_image: int = 256
    """Anchors that enter the RPN's loss; at most half of them positive."""
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    proposals: int = 2000
    """ROIs kept from the RPN in training."""
    pre_nms_limit: int = 6000
    rois_per_image: int = 200
    """ROIs that enter the heads' losses."""
    roi_positive_share: float = 0.33
    roi_positive_iou: float = 0.5
    propose_ground_truth: bool = False
    """Add the annotated boxes to the proposals: the heads learn before the RPN is any good."""
    max_gt_instances: int = 100
    """Objects kept per photo; of more, a random choice."""
    mini_mask_shape: tuple[int, int] = (56, 56)
    """Masks are kept cropped to their boxes at this size, as the original does to save memory."""

    @property
    def positive_rois(self) -> int:
        """Most positive ROIs of an image."""
        return int(self.rois_per_image * self.roi_positive_share)


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    epochs: int = 30
    steps_per_epoch: int | None = None
    """Optimizer steps per epoch; None: one pass over the photos."""
    batch: int = 4
    """Photos per step, over all devices."""
    canvas: tuple[int, int] | None = None
    """(height, width) of the training crop, multiples of 64; None: the canvas of inference."""
    seed: int = 0

    optimizer: str = "sgd"
    """``sgd`` (momentum 0.9) or ``adamw``."""
    learning_rate: float = 0.01
    """At the end of the warm-up; falls to zero along a cosine."""
    backbone_rate: float = 1.0
    """The backbone's learning rate relative to that of the pyramid and the heads."""
    warmup_steps: int = 500
    weight_decay: float = 1e-4
    """Of kernels; biases and normalisation are exempt."""
    clip_norm: float = 5.0
    """Largest global norm of the gradient."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated and saved; 0: none."""
    layers: str = "all"
    """What is trained: ``heads``, ``5+``, ``4+``, ``3+`` or ``all``."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """Factors of the losses by name; 1 where absent."""

    targets: TargetConfig = field(default_factory=TargetConfig)
    balance: float = 0.0
    """See ``SampleConfig.balance``."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache_bytes: int = 4 << 30
    """Memory for decoded photos."""
    workers: int = 2
    """Samples made at a time."""
