"""Distribution strategies: one device, several GPUs, several machines."""

from __future__ import annotations

import json
import os

import tensorflow as tf

from blu_export.errors import MissingDependencyError, UsageError

DISTRIBUTIONS = ("none", "mirrored", "workers")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy behind ``--distribute``.

    Args:
        name: ``none``; ``mirrored``: all GPUs of this machine; ``workers``: the machines that TensorFlow's
            environment variable TF_CONFIG lists, each of which runs the same command.

    Raises:
        UsageError: no such name, or no TF_CONFIG.
        MissingDependencyError: ``mirrored`` with fewer than two devices.
    """
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) < 2:
            raise MissingDependencyError(
                f"There is only one device here ({devices[0].name}).", "Leave out --distribute mirrored."
            )
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "workers":
        _read_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    raise UsageError(f"There is no distribution '{name}'.", f"Use one of {', '.join(DISTRIBUTIONS)}.")


def make_deterministic() -> None:
    """The same numbers in every run of this machine, as far as it goes: on processors.

    Several threads add up the gradient of ROI align; in no fixed order, and on many cores some of it
    gets lost, unless TensorFlow is told to be deterministic. On GPUs it has no such form of it, so
    runs agree to rounding there.
    """
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def check_same_epoch(strategy: tf.distribute.Strategy, epoch: int) -> None:
    """Refuse to go on where the workers' checkpoints differ. Each worker calls this with its own epoch.

    Raises:
        UsageError: another worker's epoch is not ``epoch``.
    """
    epochs = strategy.gather(tf.constant([epoch], tf.int64), axis=0).numpy().tolist()
    if len(set(epochs)) > 1:
        raise UsageError(
            f"The workers' newest checkpoints are of different epochs: {', '.join(map(str, epochs))}.",
            "Give all of them the same folder as --out.",
        )


def _read_tf_config() -> None:
    """Refuse a TF_CONFIG that TensorFlow would silently ignore."""
    text = os.environ.get("TF_CONFIG", "")
    fix = """Set TF_CONFIG to {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}."""
    try:
        config = json.loads(text)
        workers, index = config["cluster"]["worker"], config["task"]["index"]
        known = config["task"]["type"] == "worker" and 0 <= int(index) < len(workers)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"TF_CONFIG does not name the workers: {error!r}.", fix) from error
    if not known:
        raise UsageError(f"TF_CONFIG's task {config['task']} is not one of its {len(workers)} workers.", fix)
