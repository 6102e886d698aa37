"""Box coding and overlap against cases computed by hand, and the three implementations against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blu_export.boxes import decode, encode, iou

STD_DEV = (0.1, 0.1, 0.2, 0.2)


def boxes(*rows: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_iou_by_hand() -> None:
    a = boxes((0, 0, 10, 10), (0, 0, 4, 4), (3, 3, 3, 3))
    b = boxes((0, 0, 10, 10), (5, 5, 15, 15), (20, 20, 30, 30))
    found = iou(a, b)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, 25 / 175, 0], [0.16, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert iou(a.astype(int), b.astype(int)).dtype == np.float64
    assert iou(boxes(), b).shape == (0, 3)


def test_deltas_by_hand() -> None:
    # From a 10 x 20 box centered at (5, 10) to a 20 x 20 box centered at (10, 15).
    deltas = encode(boxes((0, 5, 20, 25)), boxes((0, 0, 10, 20)))
    np.testing.assert_allclose(deltas, [[0.5, 0.25, math.log(2), 0]], atol=1e-6)
    scaled = encode(boxes((0, 5, 20, 25)), boxes((0, 0, 10, 20)), STD_DEV)
    np.testing.assert_allclose(scaled, [[5, 2.5, 5 * math.log(2), 0]], atol=1e-5)


any_box = st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(1, 100)] * 2).map(
    lambda v: boxes((v[0], v[1], v[0] + v[2], v[1] + v[3]))
)
any_deltas = st.tuples(*[st.floats(-8, 8)] * 4).map(lambda row: boxes(row))


@given(any_deltas, any_box)
def test_encode_is_the_inverse_of_decode(deltas: NDArray[np.float32], box: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(encode(decode(deltas, box, STD_DEV), box, STD_DEV), deltas, atol=0.02)


@given(any_box, any_box)
def test_decode_is_the_inverse_of_encode(box: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(decode(encode(target, box, STD_DEV), box, STD_DEV), target, rtol=1e-3, atol=1e-3)


def test_tensorflow_agrees() -> None:
    pytest.importorskip("tensorflow", reason="needs the extra train")
    from blu_export.model import boxes as tensors

    random = np.random.default_rng(0)
    near = random.uniform(0, 50, (2, 40, 2))
    box, target = np.concatenate([near, near + random.uniform(1, 50, (2, 40, 2))], axis=2).astype(np.float32)
    deltas = encode(target, box, STD_DEV)
    np.testing.assert_allclose(tensors.encode(target, box, STD_DEV), deltas, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tensors.decode(deltas, box, STD_DEV), target, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tensors.iou(box, target), iou(box, target), atol=1e-6)
    nothing = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(tensors.encode(nothing, nothing, STD_DEV), nothing)
