"""One step: what learns, how parts of a batch add up, what happens when a loss is not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from shapes import SIDE, shapes, tiny_config, tiny_model, tiny_spec

from blu_export.data.pipeline import SampleConfig, SampleMaker
from blu_export.errors import CheckFailedError
from blu_export.train.config import LOSSES, TrainConfig

if TYPE_CHECKING:
    import tensorflow as tf

pytestmark = pytest.mark.usefixtures("eager")

CONFIG = tiny_config(optimizer="sgd", learning_rate=0.1, ema=0.9)


def weights(model: Any) -> dict[str, list[np.ndarray]]:
    return {name: layer.get_weights() for name, layer in model.learned_layers().items()}


@pytest.fixture(scope="module")
def batch() -> dict[str, tf.Tensor]:
    import tensorflow as tf

    from blu_export.train.targets import AnchorTargets

    canvas = (SIDE, SIDE)
    config = SampleConfig(canvas, max_gt_instances=CONFIG.targets.max_gt_instances)
    make = SampleMaker(shapes(4), tiny_spec(), config, AnchorTargets(tiny_spec(), canvas, CONFIG.targets))
    samples = [make(number) for number in range(4)]
    return {name: tf.constant(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def test_heads_learn_and_the_backbone_stays(batch: dict[str, tf.Tensor]) -> None:
    from blu_export.train.step import TrainStep

    model = tiny_model()
    before = weights(model)
    step = TrainStep(model, (SIDE, SIDE), CONFIG, "heads")
    values = step(batch, rate=0.1)
    changed = {
        name for name, old in before.items() for a, b in zip(old, weights(model)[name], strict=True) if (a != b).any()
    }
    assert all(np.isfinite(list(values.values())))
    assert values["loss"] == pytest.approx(sum(values[name] for name in LOSSES), rel=1e-5)
    assert {name.split("_")[0] for name in changed} == {"fpn", "rpn", "mrcnn"}
    assert set(step.updater.averages) == {id(variable) for variable in step.updater.trained}


def test_accumulated_losses_are_the_mean_of_the_parts(batch: dict[str, tf.Tensor]) -> None:
    from blu_export.train.step import TrainStep

    model = tiny_model()
    whole = TrainStep(model, (SIDE, SIDE), replace(CONFIG, batch=4, accumulate=2), "heads")
    part = TrainStep(model, (SIDE, SIDE), CONFIG, "heads")
    together = whole(batch, rate=0.0)
    halves = [part({k: v[i : i + 2] for k, v in batch.items()}, rate=0.0) for i in (0, 2)]
    for name in (*LOSSES, "loss"):
        assert together[name] == pytest.approx(np.mean([half[name] for half in halves]), rel=1e-4), name


def test_backbone_has_its_own_rate_and_fixed_normalization() -> None:
    from blu_export.train.updater import Updater

    model = tiny_model()
    updater = Updater(model, replace(CONFIG, backbone_rate=0.25), "3+")
    updater.set_rate(0.4)
    rates = {part: float(optimizer.learning_rate) for part, (optimizer, _) in updater.groups.items()}
    assert rates == pytest.approx({"heads": 0.4, "5": 0.1, "4": 0.1, "3": 0.1})
    trained = {id(v) for v in updater.trained}
    layers = model.learned_layers()
    assert not any(id(v) in trained for v in layers["block7_expand_bn"].weights)
    assert id(layers["mrcnn_mask_bn1"].gamma) in trained
    assert id(layers["block7_expand_conv"].kernel) in trained


@pytest.mark.parametrize(("fill", "learns"), [(False, False), (True, True)])
def test_heads_learn_from_photos_without_objects_where_asked(fill: bool, learns: bool) -> None:
    import tensorflow as tf

    from blu_export.train.step import TrainStep
    from blu_export.train.targets import AnchorTargets

    canvas, rules = (SIDE, SIDE), replace(CONFIG.targets, fill_negatives=fill, propose_ground_truth=False)
    dataset = shapes(2)
    bare = replace(dataset, records=tuple(replace(record, annotations=()) for record in dataset.records))
    make = SampleMaker(
        bare, tiny_spec(), SampleConfig(canvas, max_gt_instances=8), AnchorTargets(tiny_spec(), canvas, rules)
    )
    samples = [make(number) for number in range(2)]
    batch = {name: tf.constant(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    step = TrainStep(tiny_model(), canvas, replace(CONFIG, targets=rules), "heads")
    values = step(batch, rate=0.1)
    assert all(np.isfinite(list(values.values())))
    assert values["rpn_class"] > 0
    assert (values["mrcnn_class"] > 0) is learns
    assert values["rpn_bbox"] == values["mrcnn_bbox"] == values["mrcnn_mask"] == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_update_by_hand(optimizer: str) -> None:
    import tensorflow as tf

    from blu_export.train.updater import Updater

    model = tiny_model()
    config = replace(CONFIG, optimizer=optimizer, weight_decay=0.5, clip_norm=1e9, ema=0.75)
    updater = Updater(model, config, "heads")
    position = next(i for i, v in enumerate(updater.trained) if v.path.endswith("fpn_p2/kernel"))
    kernel, old = updater.trained[position], updater.trained[position].numpy()
    gradients = [tf.ones(v.shape) for v in updater.trained]
    updater.set_rate(0.1)
    norm = updater.apply(gradients)
    assert float(norm) == pytest.approx(np.sqrt(sum(np.prod(v.shape) for v in updater.trained)), rel=1e-4)
    first = old * (1 - 0.1 * 0.5) - 0.1  # AdamW's first step has length 1 too
    np.testing.assert_allclose(kernel.numpy(), first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updater.averages[id(kernel)].numpy(), first, rtol=1e-4, atol=1e-5)
    updater.apply(gradients)
    expected = 0.75 * first + 0.25 * kernel.numpy()
    np.testing.assert_allclose(updater.averages[id(kernel)].numpy(), expected, rtol=1e-4, atol=1e-5)
    bias = next(i for i, v in enumerate(updater.trained) if v.path.endswith("fpn_p2/bias"))
    steps = 0.1 + 0.1 * (1.9 if optimizer == "sgd" else 1.0)
    np.testing.assert_allclose(updater.trained[bias].numpy(), -steps, rtol=1e-3)  # no decay


def test_layers_that_learn_on_keep_their_moments_and_others_begin_anew() -> None:
    import tensorflow as tf

    from blu_export.train.updater import Updater

    model = tiny_model()
    config = replace(CONFIG, optimizer="adamw", weight_decay=0.0, clip_norm=1e9)
    heads = Updater(model, config, "heads")
    for _ in range(5):
        heads.set_rate(0.01)
        heads.apply([tf.ones(v.shape) for v in heads.trained])
    kept = {name: variable.numpy() for name, variable in heads.variables.items()}
    everything = Updater(model, config, "all", heads)
    for name, value in kept.items():
        np.testing.assert_array_equal(everything.variables[name].numpy(), value)
    assert [int(optimizer.iterations) for optimizer, _ in everything.groups.values()] == [5, 0, 0, 0, 0]
    assert set(everything.averages) == {id(variable) for variable in heads.trained}
    # Bias correction counts the steps of the part: the first step of a new layer has length 1, not 3.
    kernel = model.learned_layers()["block1_project_conv"].kernel
    before = kernel.numpy()
    everything.set_rate(0.01)
    everything.apply([tf.ones(v.shape) for v in everything.trained])
    np.testing.assert_allclose(before - kernel.numpy(), 0.01, rtol=1e-3)
    # A part that pauses begins anew.
    assert set(Updater(model, config, "heads", everything).groups) == {"heads"}


def test_gradients_are_clipped_and_broken_ones_ignored() -> None:
    import tensorflow as tf

    from blu_export.train.updater import Updater

    model = tiny_model()
    updater = Updater(model, replace(CONFIG, weight_decay=0.0, clip_norm=0.5), "heads")
    updater.set_rate(1.0)
    before = [v.numpy() for v in updater.trained]
    updater.apply([tf.ones(v.shape) for v in updater.trained])
    moved = np.sqrt(sum(((v.numpy() - b) ** 2).sum() for v, b in zip(updater.trained, before, strict=True)))
    assert moved == pytest.approx(0.5, rel=1e-3)
    updater = Updater(model, replace(CONFIG, weight_decay=0.0), "heads")
    before = [v.numpy() for v in updater.trained]
    norm = updater.apply([tf.fill(v.shape, np.nan) for v in updater.trained])
    assert not np.isfinite(float(norm))
    for variable, old in zip(updater.trained, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


def test_training_stops_when_a_loss_is_not_finite() -> None:
    from blu_export.train.fit import Trainer

    model = tiny_model()
    layer = model.learned_layers()["rpn_bbox_pred"]
    layer.set_weights([np.full_like(w, np.nan) for w in layer.get_weights()])
    trainer = Trainer(tiny_spec(), model, shapes(4), replace(CONFIG, epochs=1))
    with pytest.raises(CheckFailedError, match=r"diverged: rpn_bbox.* at step 1"):
        trainer.run()


def test_stages_change_what_learns_and_stop_early() -> None:
    from blu_export.train.fit import Trainer

    config = TrainConfig(
        **vars(CONFIG) | {"layers": "heads:1,all:3", "steps_per_epoch": 1, "patience": 1, "learning_rate": 1e-3}
    )
    results = iter([{"mask_ap": 0.5}, {"mask_ap": 0.4}, {"mask_ap": 0.9}])
    trainer = Trainer(tiny_spec(), tiny_model(), shapes(4), config, validate=lambda model, picture: next(results))
    learned = []
    history = trainer.run(lambda row: learned.append(len(trainer.step.updater.trained)))
    assert learned[0] < learned[1]
    assert [row["mask_ap"] for row in history] == [0.5, 0.4]  # the second was no better
    assert trainer.progress.best == 0.5


def test_the_box_head_as_products_is_the_box_head() -> None:
    import tensorflow as tf

    from blu_export.train.step import box_head_products

    model, rng = tiny_model(), np.random.default_rng(0)
    for name in ("mrcnn_class_bn1", "mrcnn_class_bn2"):
        norm = model.box_head.get_layer(name)
        norm.set_weights([rng.uniform(0.5, 2, w.shape) for w in norm.weights])
    pooled = tf.constant(rng.normal(size=(5, *model.box_head.input_shape[1:])), tf.float32)
    expected_logits, _, expected_deltas = model.box_head(pooled, training=False)
    logits, deltas = box_head_products(model.box_head, pooled)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deltas, tf.reshape(expected_deltas, deltas.shape), rtol=1e-4, atol=1e-5)
