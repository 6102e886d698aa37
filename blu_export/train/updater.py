"""What turns gradients into new weights: clipping, SGD or AdamW, the moving average."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.train.config import TrainConfig
from blu_export.train.schedule import PARTS, is_backbone, learns, part_of

_SUM = tf.distribute.ReduceOp.SUM


class Updater:
    """Updates the layers that learn.

    Each of the model's PARTS has an optimizer of its own: their learning rates differ, and a part that begins to
    learn later counts its own steps, by which AdamW corrects its first moments. Normalization layers of the
    backbone stay as they are, statistics, scale and offset.

    Args:
        model: the model; its layers become trainable or not.
        config: optimizer, clipping, decay, average.
        layers: what learns, one of LAYER_SETS.
        previous: the updater of the stage before: parts that learn on keep their moments and averages.
    """

    def __init__(self, model: MaskRCNN, config: TrainConfig, layers: str, previous: Updater | None = None) -> None:
        self.clip_norm, self.backbone_rate = config.clip_norm, config.backbone_rate
        variables: dict[str, list[Any]] = {part: [] for part in PARTS}
        for name, layer in model.learned_layers().items():
            fixed = is_backbone(name) and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = learns(name, layers) and not fixed
            variables[part_of(name)] += layer.trainable_variables
        kept = previous.groups if previous is not None else {}
        self.groups: dict[str, tuple[keras.optimizers.Optimizer, list[Any]]] = {
            part: kept[part] if part in kept else (_optimizer(config, group), group)
            for part, group in variables.items()
            if group
        }
        self.trained = [variable for _, group in self.groups.values() for variable in group]

    @property
    def variables(self) -> dict[str, Any]:
        """All state by ``<part>/<n>``: for checkpoints."""
        return {
            f"{part}/{n}": variable
            for part, (optimizer, _) in self.groups.items()
            for n, variable in enumerate(optimizer.variables)
        }

    @property
    def averages(self) -> dict[int, Any]:
        """The moving averages by the ``id`` of the weight; without those that have not made a step."""
        return {
            id(variable): average
            for optimizer, group in self.groups.values()
            if optimizer.use_ema and int(optimizer.iterations) > 0
            for variable, average in zip(group, optimizer._model_variables_moving_average, strict=True)
        }

    def set_rate(self, rate: float) -> None:
        """Learning rate of the next step."""
        for part, (optimizer, _) in self.groups.items():
            optimizer.learning_rate.assign(rate * (1.0 if part == "heads" else self.backbone_rate))

    def apply(self, gradients: list[Any]) -> Any:
        """Update ``trained`` with each replica's share of the gradients; returns their norm, unclipped.

        Where the norm is not finite the gradients count as zero.
        """
        replica = tf.distribute.get_replica_context()
        gradients = replica.all_reduce(_SUM, [tf.convert_to_tensor(g) for g in gradients])
        norm = tf.linalg.global_norm(gradients)
        # Keras adds the gradients of all replicas once more.
        factor = tf.minimum(1.0, self.clip_norm / norm) / replica.num_replicas_in_sync
        finite = tf.math.is_finite(norm)
        gradients = [tf.where(finite, g * factor, 0.0) for g in gradients]
        for optimizer, group in self.groups.values():
            optimizer.apply(gradients[: len(group)], group)
            gradients = gradients[len(group) :]
        return norm


def _optimizer(config: TrainConfig, variables: list[Any]) -> keras.optimizers.Optimizer:
    common = {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "use_ema": config.ema > 0,
        "ema_momentum": config.ema or 0.99,
    }
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**common)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, **common)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(variables)
    return optimizer
