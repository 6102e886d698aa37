"""The whole graph: against the Keras model, and its two targets against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from blu_export.errors import UsageError
from blu_export.graph.checks import check_graph
from blu_export.graph.compose import compose
from blu_export.graph.split import split

Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


def windows(canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Photos that leave a border: every other one on the left and above."""
    height, width = canvases.shape[1:3]
    borders = [(0, 0, height, width), (16, 8, height - 16, width - 8)]
    return np.array([borders[i % 2] for i in range(len(canvases))], np.float32)


def run(session: Any, canvases: NDArray[np.uint8]) -> Outputs:
    found: Outputs = session.run(
        ["detections", "masks", "num_detections"], {"canvas": canvases, "window": windows(canvases)}
    )
    return found


def assert_same(a: Any, b: Any, counts: Any, rows: float = 2e-5, masks: float = 2e-4) -> None:
    """Equal to rounding, row by row; rows beyond the count are zero."""
    for image, count in enumerate(counts):
        np.testing.assert_allclose(a[0][image], b[0][image], rtol=0, atol=rows)
        np.testing.assert_allclose(a[1][image], b[1][image], rtol=0, atol=masks)
        assert (a[0][image, :count, 4] > 0).all()
        assert not a[0][image, count:].any()
        assert not a[1][image, count:].any()


@pytest.fixture(scope="module")
def portable(subnetworks: dict[str, onnx.ModelProto], small_model: Any, load: Any) -> Any:
    return load(compose(subnetworks, small_model.spec))


def test_finds_what_keras_finds(small_model: Any, portable: Any, canvases: NDArray[np.uint8]) -> None:
    detections, masks, _ = small_model.detect(canvases[:2], windows(canvases[:2]))
    found = run(portable, canvases[:2])
    assert found[2].min() > 5, "the model must find something for the comparison to mean anything"
    assert_same(found, (detections, masks), found[2])


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_tensorrt_form_finds_the_same(
    batch: int, subnetworks: dict[str, onnx.ModelProto], small_model: Any, portable: Any, load: Any, canvases: Any
) -> None:
    model = compose(subnetworks, small_model.spec, "tensorrt")
    onnx.checker.check_model(model, full_check=True)
    check_graph(model, "tensorrt")
    found, expected = run(load(model), canvases[:batch]), run(portable, canvases[:batch])
    np.testing.assert_array_equal(found[2], expected[2])
    assert_same(found, expected, expected[2])


def test_a_photo_gives_the_same_alone_and_in_a_batch(portable: Any, canvases: NDArray[np.uint8]) -> None:
    together = run(portable, canvases)
    for image in range(0, len(canvases), 2):  # whose windows are the whole canvas, as for one alone
        alone = run(portable, canvases[image : image + 1])
        np.testing.assert_array_equal(alone[2], together[2][image : image + 1])
        assert_same(alone, tuple(values[image : image + 1] for values in together), alone[2])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_box_head_sees_what_nms_left(
    batch: int, subnetworks: dict[str, onnx.ModelProto], small_model: Any, load: Any, canvases: Any
) -> None:
    """Unused rows are alike, and one of an image's stands for all: nothing changes, however few NMS leaves."""
    for threshold in (0.01, 0.7):
        spec = small_model.spec.replace(rpn_nms_threshold=threshold, post_nms_rois_inference=150)
        model = compose(subnetworks, spec)
        expected = run(load(compose(subnetworks, spec, "tensorrt")), canvases[:batch])
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in ("proposals/rois", "roi_align/pooled"))
        session = load(model)
        feed = {"canvas": canvases[:batch], "window": windows(canvases[:batch])}
        rois, pooled = session.run(["proposals/rois", "roi_align/pooled"], feed)
        used = rois.any(axis=2).sum(axis=1)
        assert len(pooled) == sum(min(n + 1, 150) for n in used)
        assert threshold > 0.1 or used.max() < 150
        found = run(session, canvases[:batch])
        np.testing.assert_array_equal(found[2], expected[2])
        assert_same(found, expected, expected[2])


def test_nothing_found_is_all_zeros(subnetworks: dict[str, onnx.ModelProto], small_model: Any, load: Any) -> None:
    spec = small_model.spec.replace(detection_min_confidence=1.0)
    for target in ("portable", "tensorrt"):
        found = run(load(compose(subnetworks, spec, target)), np.zeros((2, 128, 128, 3), np.uint8))
        assert found[0].shape == (2, 40, 6)
        assert found[1].shape == (2, 40, 28, 28)
        assert not any(values.any() for values in found)


@pytest.mark.parametrize(("mode", "limit"), [("fit", 6000), ("pad64", 500)])
def test_a_canvas_that_follows_the_photo(
    mode: str, limit: int, make_spec: Any, make_model: Any, load: Any, canvases: Any, eager: None
) -> None:
    """With more proposals than some of the canvases have anchors, and with fewer."""
    from blu_export.export.learned import subnetworks

    model = make_model(make_spec(image_resize_mode=mode, pre_nms_limit=limit))
    parts = subnetworks(model, 18)
    sessions = []
    for target in ("portable", "tensorrt"):
        graph = compose(parts, model.spec, target)
        onnx.checker.check_model(graph, full_check=True)
        check_graph(graph, target)
        sessions.append(load(graph))
    wide = np.concatenate([canvases[:1], canvases[1:2, :, :64]], axis=2)
    for canvas in (canvases[:2], wide, canvases[:1, :, :64], canvases[:1, :64, :64]):
        detections, masks, _ = model.detect(canvas, windows(canvas))
        for session in sessions:
            found = run(session, canvas)
            assert found[2].min() > 2
            assert_same(found, (detections, masks), found[2])


def test_fit_on_the_square_canvas_is_square(
    subnetworks: dict[str, onnx.ModelProto], small_model: Any, portable: Any, load: Any, canvases: Any
) -> None:
    for target in ("portable", "tensorrt"):
        fit = load(compose(subnetworks, small_model.spec.replace(image_resize_mode="fit"), target))
        found, expected = run(fit, canvases[:2]), run(portable, canvases[:2])
        np.testing.assert_array_equal(found[2], expected[2])
        assert_same(found, expected, expected[2])


def test_parts_taken_out_compose_to_the_same_graph(subnetworks: dict[str, onnx.ModelProto], small_model: Any) -> None:
    spec = small_model.spec
    whole = compose(subnetworks, spec)
    for target in ("portable", "tensorrt"):
        again = compose(split(whole, spec), spec, target)
        first = compose(subnetworks, spec, target)
        assert [n.SerializeToString() for n in again.graph.node] == [n.SerializeToString() for n in first.graph.node]


def test_impossible_targets_are_refused(subnetworks: dict[str, onnx.ModelProto], small_model: Any) -> None:
    with pytest.raises(UsageError, match="no target 'coreml'"):
        compose(subnetworks, small_model.spec, "coreml")
