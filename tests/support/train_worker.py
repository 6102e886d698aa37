"""Trains the tiny model for one step under a distribution and saves all that it changed: one process of a test.

The step samples what does not depend on rounding: the RPN's outputs start at zero, so its proposals are the
anchors themselves, in their order, for any sums before them. Nor does it go back through the
backbone, whose many ReLUs turn rounding into jumps of the gradient.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorflow as tf

KIND, SAVED = sys.argv[1:]
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # longer than one step
if KIND == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from shapes import shapes, tiny_config, tiny_model, tiny_spec  # noqa: E402  (the devices are fixed by now)

from blu_export.data.augment import AugmentConfig  # noqa: E402
from blu_export.train.distribute import is_chief, make_deterministic, make_strategy  # noqa: E402
from blu_export.train.fit import Trainer  # noqa: E402

make_deterministic()
strategy = make_strategy(KIND)
with strategy.scope():
    model = tiny_model()
for name in ("rpn_class_raw", "rpn_bbox_pred"):
    layer = model.learned_layers()[name]
    layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
config = tiny_config(
    batch=4, epochs=1, steps_per_epoch=1, warmup_steps=0, optimizer="sgd", learning_rate=1e-2, ema=0.9, clip_norm=1.0,
    layers="heads", augment=AugmentConfig(),
)  # fmt: skip
trainer = Trainer(tiny_spec(), model, shapes(6), config, strategy=strategy)
updater = trainer.step.updater
before = [variable.numpy() for variable in updater.trained]
(row,) = trainer.run()
moved = [variable.numpy() - old for variable, old in zip(updater.trained, before, strict=True)]
np.savez(SAVED, *moved, *(variable.numpy() for variable in updater.variables.values()))
print(json.dumps({"chief": is_chief(strategy), "replicas": strategy.num_replicas_in_sync, "row": row}))
