from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blu_export.errors import ModelFileError, UsageError
from blu_export.model import h5
from blu_export.model.given import Given
from blu_export.model.h5 import read_layers, write_layers
from blu_export.model.layers import original_block_names
from blu_export.model.nested import RPN_LAYERS
from blu_export.model.report import compare
from blu_export.model.weight_files import read_weight_file
from blu_export.model.weights import build_model, load_weights, read_weights, save_weights
from blu_export.spec import ModelSpec

SPEC = ModelSpec(
    class_names=("BG", "coat", "shoe"),
    backbone="efficientnet_lite0",
    image_min_dim=64,
    image_max_dim=64,
    top_down_pyramid_size=8,
    rpn_channels=8,
    fpn_classif_fc_layers_size=8,
    mask_channels=8,
    detection_min_confidence=0.25,
    provenance={"trained_on": "nothing"},
)


@pytest.fixture(scope="session")
def model() -> Any:
    """A small model with weights that are all different."""
    from blu_export.model.mask_rcnn import MaskRCNN

    made = MaskRCNN(SPEC)
    random = np.random.default_rng(0)
    for layer in made.learned_layers().values():
        layer.set_weights([random.random(weight.shape, np.float32) for weight in layer.weights])
    return made


@pytest.fixture(scope="session")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.h5"
    save_weights(model, path)
    return path


@pytest.fixture
def edited(saved: Path, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """``edited(change)``: the path of a copy of the saved file after ``change(open h5py.File)``."""

    def edit(change: Callable[[Any], None]) -> Path:
        path = tmp_path / "edited.h5"
        path.write_bytes(saved.read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return edit


def same_weights(a: Any, b: Any) -> bool:
    pairs = zip(a.learned_layers().items(), b.learned_layers().items(), strict=True)
    return all(
        name == other and all(map(np.array_equal, layer.get_weights(), twin.get_weights()))
        for (name, layer), (other, twin) in pairs
    )


def rename_group(file: Any, old: str, new: str) -> None:
    names = [new.encode() if name == old.encode() else name for name in file.attrs["layer_names"]]
    file.move(old, new)
    file.attrs["layer_names"] = np.asarray(names)


def test_what_is_saved_is_loaded(model: Any, saved: Path) -> None:
    loaded, report = build_model(saved)
    assert same_weights(model, loaded)
    assert report.complete
    assert not report.unexpected
    assert report.summary() == f"{len(report.loaded)} tensors loaded"
    assert len(report.loaded) == sum(len(layer.weights) for layer in model.learned_layers().values())
    assert loaded.spec.replace(provenance=SPEC.provenance) == SPEC
    assert loaded.spec.provenance["trained_on"] == "nothing"
    assert loaded.spec.provenance["weights_file"] == "small.h5"
    assert len(loaded.spec.provenance["weights_sha256"]) == 64


def test_layout_is_the_originals(saved: Path) -> None:
    with h5py.File(saved) as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert file.attrs["layer_names"].dtype.kind == "S"
        assert "rpn_model" in names
        assert not set(RPN_LAYERS) & set(names)
        inner = [name.decode() for name in file["rpn_model"].attrs["weight_names"]]
        assert inner == [f"{layer}/{kind}:0" for layer in RPN_LAYERS for kind in ("kernel", "bias")]
        assert file["fpn_p2/fpn_p2/kernel:0"].shape == (3, 3, 8, 8)
        names = [name.decode() for name in file["mrcnn_class_bn1"].attrs["weight_names"]]
        assert [name.split("/")[1] for name in names] == ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"]


def test_a_failed_save_leaves_the_old_file(model: Any, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    path.write_bytes(b"old")

    class Broken:
        spec = SPEC

        def learned_layers(self) -> Any:
            return {name: layer for name, layer in model.learned_layers().items() if name != "rpn_bbox_pred"}

    with pytest.raises(AssertionError):
        save_weights(Broken(), path)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_keras_2_whole_model_form(model: Any, edited: Any) -> None:
    def nest(file: Any) -> None:
        group = file.create_group("model_weights")
        for name in [name for name in file if name != "model_weights"]:
            file.move(name, f"model_weights/{name}")
        group.attrs["layer_names"] = file.attrs["layer_names"]
        del file.attrs["layer_names"]

    assert same_weights(model, build_model(edited(nest))[0])


def test_inner_names_do_not_matter(model: Any, edited: Any) -> None:
    """A second model in one session, or another nesting, gives tensors other names in the same order."""

    def rename(file: Any) -> None:
        for layer, prefix in (("rpn_model", "rpn_model_3/"), ("mrcnn_class_bn1", "outer/time/")):
            group, names = file[layer], []
            for name in group.attrs["weight_names"]:
                new = prefix + name.decode().replace("/", "_1/")
                group.move(name.decode(), new)
                names.append(new.encode())
            group.attrs["weight_names"] = np.asarray(names)

    assert same_weights(model, build_model(edited(rename))[0])


def test_long_lists_of_names_are_in_pieces(model: Any, edited: Any) -> None:
    def split(file: Any) -> None:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        for i, piece in enumerate(np.array_split(names, 3)):
            file.attrs[f"layer_names{i}"] = piece

    assert same_weights(model, build_model(edited(split))[0])


def test_many_layers_and_a_long_spec_survive(tmp_path: Path) -> None:
    layers = {f"{'layer' * 20}{i}": [(f"k{i}", np.full((1,), i, np.float32))] for i in range(1500)}
    spec = json.dumps("é" * 40_000)
    write_layers(tmp_path / "many.h5", layers, spec)
    found, text, *_ = read_layers(tmp_path / "many.h5", "many.h5")
    assert list(found) == list(layers)
    assert text == spec


def test_weightless_and_foreign_groups_of_a_training_graph(model: Any, edited: Any) -> None:
    def add(file: Any) -> None:
        for name, count in (("proposal_targets", 0), ("anchors", 1)):
            group = file.create_group(name)
            group.attrs["weight_names"] = np.asarray([b"anchors/Variable:0"] * count)
            if count:
                group.create_dataset("anchors/Variable:0", data=np.zeros((1, 5, 4), np.float32))
        file.attrs["layer_names"] = np.append(file.attrs["layer_names"], [b"proposal_targets", b"anchors"])

    loaded, report = build_model(edited(add))
    assert same_weights(model, loaded)
    assert report.leftover == ("anchors/anchors/Variable:0",)
    assert "1 left over from training" in report.summary()


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_files_of_keras_3(model: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    loaded, _ = build_model(path, settings=["image_min_dim=64", "image_max_dim=64"])
    assert same_weights(model, loaded)
    if suffix == ".keras":
        assert loaded.spec.class_names == SPEC.class_names


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_what_is_no_weight_of_a_keras_3_file_is_left_out(tmp_path: Path, suffix: str) -> None:
    import keras

    trained = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense"), keras.layers.Dropout(0.5)])
    trained.compile("adam", "mse")
    trained.optimizer.build(trained.trainable_variables)  # a counter of steps, and moments that look like weights
    path = tmp_path / f"trained{suffix}"
    (trained.save_weights if suffix == ".weights.h5" else trained.save)(path)
    layers = read_weight_file(path).layers
    assert {layer: [tensor.shape for _, tensor in tensors] for layer, tensors in layers.items()} == {
        "dense": [(3, 2), (2,)]
    }


def test_spec_follows_from_the_tensors(edited: Any) -> None:
    weights = read_weights(edited(lambda file: file.attrs.pop("blu_spec")))
    guess = weights.make_spec(
        Given.of(settings=["image_min_dim=64", "image_max_dim=64", "detection_min_confidence=0.25"])
    )
    assert guess.class_names == ("BG", "class_1", "class_2")
    assert guess.replace(class_names=SPEC.class_names, provenance=SPEC.provenance, assumed=()) == SPEC


def test_class_names(edited: Any, saved: Path) -> None:
    weights = read_weights(saved)
    assert weights.make_spec(Given.of(["a", "b"])).class_names == ("BG", "a", "b")
    assert weights.make_spec(Given.of(["none", "a", "b"])).class_names == ("none", "a", "b")
    with pytest.raises(UsageError, match="4 class names, and the weights have 3"):
        weights.make_spec(Given.of("abcd"))
    with pytest.raises(UsageError, match="3 anchors"):
        weights.make_spec(Given.of(settings=["rpn_anchor_ratios=1,2"]))


def test_a_missing_layer_is_an_error_that_names_it(edited: Any) -> None:
    def rename(file: Any) -> None:
        group = file["fpn_p3"]
        group.move("fpn_p3", "other")
        group.attrs["weight_names"] = np.asarray([b"other/kernel:0", b"other/bias:0"])
        rename_group(file, "fpn_p3", "fpn_p3_x")

    path = edited(rename)
    with pytest.raises(ModelFileError, match="2 missing, 2 unexpected") as caught:
        build_model(path)
    assert "missing: fpn_p3/kernel" in str(caught.value)
    assert "unexpected: fpn_p3_x/other/kernel:0" in str(caught.value)


def test_a_misshaped_tensor_is_an_error_and_nothing_is_set(model: Any, edited: Any) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN

    def reshape(file: Any) -> None:
        del file["fpn_p3/fpn_p3/kernel:0"]
        file["fpn_p3/fpn_p3/kernel:0"] = np.zeros((1, 1, 8, 8), np.float32)

    other = MaskRCNN(SPEC)
    before = other.learned_layers()["stem_conv"].get_weights()[0].copy()
    with pytest.raises(ModelFileError, match=r"fpn_p3/kernel is \[1, 1, 8, 8\], not \[3, 3, 8, 8\]"):
        load_weights(other, edited(reshape))
    assert np.array_equal(before, other.learned_layers()["stem_conv"].get_weights()[0])


def test_an_error_about_everything_stays_short() -> None:
    wanted = {f"layer{i}": [("kernel", (1,))] for i in range(500)}
    report = compare(wanted, {})
    assert len(report.missing) == 500
    assert report.details(limit=3).count("\n") == 3
    assert "and 497 more" in report.details(limit=3)


def test_too_many_tensors_in_a_layer_are_an_error() -> None:
    stored = [("a", np.zeros(1, np.float32)), ("b", np.zeros(1, np.float32))]
    report = compare({"layer": [("kernel", (1,))]}, {"layer": stored})
    assert not report.complete
    assert report.unexpected == ("layer/b",)


def test_a_backbone_alone_is_not_a_model(tmp_path: Path) -> None:
    write_layers(tmp_path / "notop.h5", {"conv1": [("k", np.zeros((7, 7, 3, 64), np.float32))]}, "{}")
    weights = read_weights(tmp_path / "notop.h5")
    assert list(weights.layers) == ["conv1"]
    with pytest.raises(ModelFileError, match="not a whole Mask R-CNN: layer mrcnn_class_logits"):
        _ = weights.spec


def test_a_spec_of_other_classes_than_the_tensors_is_refused(edited: Any) -> None:
    def lie(file: Any) -> None:
        file.attrs["blu_spec"] = SPEC.replace(class_names=("BG", "a")).to_json().encode()

    with pytest.raises(ModelFileError, match="names 2 classes, and its tensors have 3"):
        _ = read_weights(edited(lie)).spec


# ---- Nothing is dropped


def add_layer(file: Any, layer: str, **tensors: Any) -> None:
    group = file.create_group(layer)
    for name, value in tensors.items():
        group[f"{name}:0"] = value
    group.attrs["weight_names"] = np.asarray([f"{name}:0".encode() for name in tensors])
    file.attrs["layer_names"] = np.append(file.attrs["layer_names"], [layer.encode()])


def test_a_layer_that_the_model_lacks_is_an_error_unless_it_is_ignored(model: Any, edited: Any) -> None:
    path = edited(lambda file: add_layer(file, "mask_attention", kernel=np.ones((1, 1, 8, 8), np.float32)))
    with pytest.raises(ModelFileError, match=r"does not have: mask_attention\..*--ignore-layers mask_attention"):
        build_model(path)
    loaded, report = build_model(path, ignore_layers=["mask_att*"])
    assert same_weights(model, loaded)
    assert report.leftover == ("mask_attention/kernel:0",)
    with pytest.raises(UsageError, match="no layer mask_x"):
        build_model(path, ignore_layers=["mask_attention", "mask_x"])
    with pytest.raises(UsageError, match="fpn_p2 is a layer of the model"):
        build_model(path, ignore_layers=["mask_attention", "fpn_p2"])


@pytest.mark.parametrize(
    ("layer", "tensor", "value"),
    [
        ("anchors", "Variable", np.zeros((2, 7, 4), np.float32)),
        ("counters", "steps_seen", np.int64(3)),
        ("lambda_1", "global_step", np.float32(3)),
        ("training", "vhat_0", np.zeros((8,), np.float32)),
        ("words", "table", np.asarray([b"a", b"b"])),
    ],
)
def test_what_training_leaves_is_left_over(edited: Any, layer: str, tensor: str, value: Any) -> None:
    report = build_model(edited(lambda file: add_layer(file, layer, **{tensor: value})))[1]
    assert report.complete
    assert report.leftover == (f"{layer}/{tensor}:0",)


def test_integers_in_a_layer_of_the_model_are_refused(edited: Any) -> None:
    with pytest.raises(ModelFileError, match="fpn_p3/fpn_p3/kernel:0 holds int64 values"):
        build_model(edited(replace_kernel(data=[1, 2])))


def test_a_model_that_is_one_nested_layer_is_split_by_names(model: Any, saved: Path, tmp_path: Path) -> None:
    stored = read_layers(saved, "saved")
    flat = [tensor for tensors in stored.layers.values() for tensor in tensors]
    np.random.default_rng(0).shuffle(flat)
    write_layers(tmp_path / "wrapped.h5", {"mask_rcnn": flat}, stored.spec or "")
    assert same_weights(model, build_model(tmp_path / "wrapped.h5")[0])


def test_the_rpn_is_read_by_names_in_any_order(model: Any, saved: Path, tmp_path: Path) -> None:
    layers, spec, *_ = read_layers(saved, "saved")
    layers["rpn_model"] = [layers["rpn_model"][i] for i in (5, 2, 0, 4, 3, 1)]
    write_layers(tmp_path / "rpn.h5", layers, spec or "")
    assert same_weights(model, build_model(tmp_path / "rpn.h5")[0])


def test_normalization_is_read_by_names_in_any_order(model: Any, saved: Path, tmp_path: Path) -> None:
    layers, spec, *_ = read_layers(saved, "saved")
    layers["mrcnn_class_bn1"] = layers["mrcnn_class_bn1"][::-1]
    write_layers(tmp_path / "norm.h5", layers, spec or "")
    assert same_weights(model, build_model(tmp_path / "norm.h5")[0])


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_heads_in_time_distributed_layers(tmp_path: Path, suffix: str) -> None:
    import keras
    from keras import layers as kl

    rois = kl.Input((2, 7, 7, 3))
    x = kl.TimeDistributed(kl.Conv2D(4, 7), name="mrcnn_class_conv1")(rois)
    x = kl.TimeDistributed(kl.BatchNormalization(), name="mrcnn_class_bn1")(x)
    ported = keras.Model(rois, kl.Dense(3, name="mrcnn_class_logits")(kl.Reshape((2, 4))(x)))
    path = tmp_path / f"port{suffix}"
    (ported.save_weights if suffix == ".weights.h5" else ported.save)(path)
    found = read_weights(path).layers
    for name in ("mrcnn_class_conv1", "mrcnn_class_bn1", "mrcnn_class_logits"):
        wanted = ported.get_layer(name).get_weights()
        assert all(np.array_equal(a, b) for (_, a), b in zip(found.pop(name), wanted, strict=True))
    assert not found


def without_names(path: Path, edit: Callable[[dict[str, Any]], None] = lambda config: None) -> Path:
    """An archive as Keras before 3.6 writes it: its layers have no names."""
    with zipfile.ZipFile(path) as old:
        weights, config = io.BytesIO(old.read("model.weights.h5")), json.loads(old.read("config.json"))
    with h5py.File(weights, "r+") as file:
        groups: list[Any] = []
        file.visititems(lambda _, group: groups.append(group))
        for group in groups:
            group.attrs.pop("name", None)
    edit(config)
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("config.json", json.dumps(config))
        new.writestr("model.weights.h5", weights.getvalue())
    return path


def port(path: Path) -> Any:
    """A part of a Mask R-CNN as a port has it: layers of one shape, a model within, wrapped layers."""
    import keras
    from keras import layers as kl

    image, rois = kl.Input((8, 8, 4)), kl.Input((2, 7, 7, 4))
    inner = kl.Input((None, None, 4))
    rpn = keras.Model(inner, kl.Conv2D(6, 1, name="rpn_class_raw")(kl.Conv2D(4, 3, name="rpn_conv_shared")(inner)))
    levels = [kl.Conv2D(4, 3, padding="same", name=f"fpn_p{level}")(image) for level in (5, 3, 2, 4)]
    x = kl.TimeDistributed(kl.Conv2D(4, 7), name="mrcnn_class_conv1")(rois)
    x = kl.TimeDistributed(kl.BatchNormalization(), name="mrcnn_class_bn1")(x)
    made = keras.Model([image, rois], [rpn(levels[0]), *levels, x])
    for weight in made.weights:
        weight.assign(np.random.default_rng(len(weight.path)).random(weight.shape))
    for number, level in enumerate(levels):
        made.get_layer(level._keras_history.operation.name).set_weights(
            [np.full((3, 3, 4, 4), number), np.full(4, number)]
        )
    made.save(path)
    return made


def test_layers_without_names_are_named_by_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "old.keras"
    made = port(path)
    wanted = read_weights(path).layers
    assert set(wanted) == {
        "fpn_p2", "fpn_p3", "fpn_p4", "fpn_p5", "rpn_conv_shared", "rpn_class_raw", "mrcnn_class_conv1",
        "mrcnn_class_bn1",
    }  # fmt: skip
    found = read_weights(without_names(path))
    assert "named by their order in its configuration" in found.note
    assert set(found.layers) == set(wanted)
    for name, tensors in found.layers.items():
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(tensors, wanted[name], strict=True)), name
    assert (found.layers["fpn_p3"][1][1] == made.get_layer("fpn_p3").get_weights()[1]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["config"]["layers"].pop(),
        lambda config: config["config"]["layers"].append(config["config"]["layers"][-1]),
        lambda config: config.clear(),
        lambda config: config["config"]["layers"].__setitem__(0, 3),
    ],
    ids=["one less", "one twice", "none", "a number"],
)
def test_layers_that_the_configuration_does_not_tell_apart_are_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "old.keras"
    port(path)
    with pytest.raises(ModelFileError, match="its configuration does not tell which is which"):
        read_weights(without_names(path, change))


def test_a_format_without_layer_names_says_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(ModelFileError, match="does not name its layers"):
        read_weights(tmp_path / "old.weights.h5")


def test_shapes_without_keras_are_the_models() -> None:
    from blu_export.model.layers import layer_shapes
    from blu_export.model.mask_rcnn import MaskRCNN

    for backbone in ("efficientnet_lite0", "resnet50", "resnet-1-2-28-1"):
        spec = SPEC.replace(backbone=backbone, rpn_anchor_ratios=(1,))
        learned = MaskRCNN(spec).learned_layers()
        wanted = {n: [(w.name, tuple(w.shape)) for w in layer.weights] for n, layer in learned.items()}
        assert {name: list(tensors) for name, tensors in layer_shapes(spec).items()} == wanted


@pytest.mark.parametrize("naming", ["characters", "letters", "caffe"])
def test_any_depth_of_resnet_is_read_from_its_blocks(naming: str) -> None:
    label = {
        "characters": lambda i: chr(97 + i),
        "letters": lambda i: "abcdefghijklmnopqrstuvwxyz"[i] if i < 26 else "a" + chr(97 + i - 26),
        "caffe": lambda i: f"b{i}" if i else "a",
    }[naming]
    counts = (1, 2, 28, 3)
    layers = [
        f"{kind}{stage}{label(i)}_branch2a"
        for stage, count in zip((2, 3, 4, 5), counts, strict=True)
        for i in range(count)
        for kind in ("res", "bn")
    ]
    blocks, names = original_block_names(layers, "a file")
    assert blocks == counts
    assert (names[f"bn4{label(27)}_branch2a"], names["res2a_branch2a"]) == ("bn4ab_branch2a", "res2a_branch2a")
    with pytest.raises(ModelFileError, match="Stage 4 .* one is missing"):
        original_block_names([name for name in layers if name[3:] != f"4{label(2)}_branch2a"
                              and name[2:] != f"4{label(2)}_branch2a"], "a file")  # fmt: skip


def test_a_folder_is_its_last_checkpoint(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no weights"):
        read_weights(tmp_path)
    for name in ("mask_rcnn_hats_0009.h5", "mask_rcnn_hats_0010.h5", "mask_rcnn_hats_0002.h5"):
        (tmp_path / name).write_bytes(saved.read_bytes())
    weights = read_weights(tmp_path)
    assert weights.path.name == "mask_rcnn_hats_0010.h5"
    assert "the last of 3" in weights.note
    (tmp_path / "best.h5").write_bytes(saved.read_bytes())
    assert read_weights(tmp_path).path.name == "best.h5"


@pytest.mark.parametrize(
    ("file", "message"), [("saved_model.pb", "is a SavedModel"), ("model.ckpt-9.index", "TensorFlow checkpoint")]
)
def test_other_formats_of_tensorflow_have_a_sentence(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ModelFileError, match=message):
        read_weights(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x.h5").touch()
    if "index" in file:
        with pytest.raises(ModelFileError, match=message):
            read_weights(tmp_path / "model.ckpt-9")


# ---- Hostile files


def replace_kernel(**how: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file["fpn_p3/fpn_p3/kernel:0"]
        file["fpn_p3/fpn_p3"].create_dataset("kernel:0", **how)

    return change


def external(file: Any) -> None:
    del file["fpn_p3"]
    file["fpn_p3"] = h5py.ExternalLink("other.h5", "/fpn_p3")


def soft(file: Any) -> None:
    del file["fpn_p3"]
    file["fpn_p3"] = h5py.SoftLink("/fpn_p2")


def soft_below(file: Any) -> None:
    del file["fpn_p3/fpn_p3"]
    file["fpn_p3"]["fpn_p3"] = h5py.SoftLink("/fpn_p2/fpn_p2")


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3, 3, 8, 8), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 3, 8, 8))
    del file["fpn_p3/fpn_p3/kernel:0"]
    file["fpn_p3/fpn_p3"].create_virtual_dataset("kernel:0", layout)


def not_finite(file: Any) -> None:
    file["fpn_p3/fpn_p3/kernel:0"][0, 0, 0, 0] = np.nan


HOSTILE = {
    "external link": (external, "link to elsewhere"),
    "soft link": (soft, "link to elsewhere"),
    "soft link below a layer": (soft_below, "link to elsewhere"),
    "virtual data set": (virtual, "in other files"),
    "external storage": (
        replace_kernel(shape=(4,), dtype="f4", external=[("other.bin", 0, 16)]),
        "in other files",
    ),
    "a shape without data": (replace_kernel(shape=(10**6, 10**5), dtype="f4"), "far larger than the file"),
    "a compressed bomb": (
        replace_kernel(shape=(2**31,), dtype="f4", compression="gzip", chunks=(2**20,)),
        "far larger than the file",
    ),
    "a giant chunk": (
        replace_kernel(shape=(4,), maxshape=(None,), dtype="f4", compression="gzip", chunks=(2**29,)),
        "far larger than the file",
    ),
    "an uncommon filter": (replace_kernel(shape=(4, 4), dtype="f4", scaleoffset=2), "uncommon filter"),
    "no shape": (replace_kernel(data=h5py.Empty("f4")), "no proper shape"),
    "not a number": (not_finite, "not finite"),
    "beyond half": (replace_kernel(data=np.full((3, 3), np.inf, np.float16)), "not finite.*float16 ends at 65,504"),
    "a layer named twice": (
        lambda file: file.attrs.__setitem__("layer_names", np.asarray([b"fpn_p2", b"fpn_p2"])),
        "twice",
    ),
    "names that are numbers": (lambda file: file.attrs.__setitem__("layer_names", np.arange(3)), "not text"),
    "a layer that is absent": (lambda file: file.attrs.__setitem__("layer_names", np.asarray([b"x"])), "link"),
    "a group for a tensor": (
        lambda file: (
            file.__delitem__("fpn_p3/fpn_p3/kernel:0"),
            file.create_group("fpn_p3/fpn_p3/kernel:0"),
        ),
        "not what the layout has",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused(edited: Any, change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_layers(edited(change), "edited.h5")


def test_groups_in_a_circle_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        group = file.create_group("layers")
        group["layers"] = group
    with pytest.raises(ModelFileError, match="nested too deep"):
        read_layers(tmp_path / "circle.h5", "circle.h5")


def test_too_many_groups_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layers(tmp_path / "a.h5", {f"l{i}": [("k", np.zeros(1, np.float32))] for i in range(20)}, "{}")
    monkeypatch.setattr(h5, "MAX_GROUPS", 30)
    with pytest.raises(ModelFileError, match="more than 30 members"):
        read_layers(tmp_path / "a.h5", "a.h5")


@pytest.mark.parametrize("how", [{"compression": "gzip", "shuffle": True, "fletcher32": True}, {"compression": "lzf"}])
def test_common_compression_is_read(model: Any, edited: Any, how: dict[str, Any]) -> None:
    def compress(file: Any) -> None:
        data = file["fpn_p3/fpn_p3/kernel:0"][()]
        replace_kernel(data=data, **how)(file)

    assert same_weights(model, build_model(edited(compress))[0])


def archive(tmp_path: Path, **members: bytes) -> Path:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)
    return path


def test_archives_are_bounded(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blu_export.model import weight_files

    content = saved.read_bytes()
    members = {"config__json": b"{}", "model__weights__h5": content}
    assert read_weight_file(archive(tmp_path, **members))[1] is None
    monkeypatch.setattr(weight_files, "MAX_FILE_BYTES", len(content) - 1)
    with pytest.raises(ModelFileError, match="too large"):
        read_weight_file(archive(tmp_path, **members))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"no model"], ids=["empty", "zip", "hdf5", "text"]
)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_foreign_files_are_a_clear_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="foreign"):
        read_weights(path)


def test_an_absent_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        read_weights(tmp_path / "absent.h5")


def tiny_file() -> bytes:
    content = io.BytesIO()
    write_layers(content, {"a": [("a/k:0", np.ones((2, 3), np.float32)), ("a/b:0", np.ones(3, np.float32))]}, "{}")
    return content.getvalue()


@given(
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=20),
    cut=st.none() | st.integers(0, 2**13),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_raise_nothing_else(tmp_path: Path, changes: list[tuple[int, int]], cut: int | None) -> None:
    """Files that make the HDF5 library crash or loop count as damaged too: it runs in a process of its own."""
    content = bytearray(tiny_file())
    for position, value in changes:
        content[position % len(content)] = value
    path = tmp_path / "damaged.h5"
    path.write_bytes(content[:cut])
    try:
        layers = read_weight_file(path).layers
    except ModelFileError as error:
        assert "damaged.h5" in str(error)
    else:
        assert isinstance(layers, dict)


FAKE_H5PY = """
import os
class h5z:
    FILTER_DEFLATE = FILTER_SHUFFLE = FILTER_FLETCHER32 = FILTER_LZF = 1
def File(*args, **kwargs):
    {action}
"""


@pytest.mark.parametrize("action", ["os.abort()", "while True: pass"], ids=["crash", "endless loop"])
def test_a_library_that_fails_is_a_damaged_file(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """The reader's process, with an HDF5 library that does not return."""
    from blu_export.model import weight_files

    (tmp_path / "h5py.py").write_text(FAKE_H5PY.format(action=action))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(weight_files, "BASE_SECONDS", 1)
    with pytest.raises(ModelFileError, match="damaged"):
        read_weight_file(saved)


def test_half_is_half_the_size_and_rounds_kernels_only(model: Any, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.h5"
    save_weights(model, path, half=True)
    assert path.stat().st_size < 0.65 * saved.stat().st_size  # vectors stay whole, and this model is mostly headers
    stored = read_weights(path).layers
    for layer, tensors in read_weights(saved).layers.items():
        for (_, whole), (_, half) in zip(tensors, stored[layer], strict=True):
            assert half.dtype == np.float32
            np.testing.assert_array_equal(half, whole.astype(np.float16 if whole.ndim > 1 else np.float32))
