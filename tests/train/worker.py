"""Trains the tiny model for a few steps under a distribution and prints the history: one process of a test."""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorflow as tf

KIND = sys.argv[1]
if KIND == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from shapes import shapes, tiny_config, tiny_model, tiny_spec  # noqa: E402  (the devices are fixed by now)

from blu_export.data.augment import AugmentConfig  # noqa: E402
from blu_export.train.distribute import is_chief, make_strategy  # noqa: E402
from blu_export.train.fit import Trainer  # noqa: E402

strategy = make_strategy(KIND)
with strategy.scope():
    model = tiny_model()
config = tiny_config(
    batch=4, epochs=2, steps_per_epoch=1, warmup_steps=0, optimizer="sgd", learning_rate=1e-2, ema=0.9, clip_norm=1.0,
    augment=AugmentConfig(),
)  # fmt: skip
kernel = model.learned_layers()["fpn_p2"].kernel
before = kernel.numpy()
history = Trainer(tiny_spec(), model, shapes(6), config, strategy=strategy).run()
moved = float(np.linalg.norm(kernel.numpy() - before))
print(
    json.dumps(
        {"chief": is_chief(strategy), "replicas": strategy.num_replicas_in_sync, "history": history, "moved": moved}
    )
)
