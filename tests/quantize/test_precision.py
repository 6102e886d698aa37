"""Half and int8 of a small model's subnetworks: types, what stays better, and roundings that cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from blu_export.errors import UsageError
from blu_export.quantize.gptq import round_kernels, spread_errors
from blu_export.quantize.half import emulate, round_to_half, to_half
from blu_export.quantize.int8 import quantize
from blu_export.quantize.precision import (
    MOST_PHOTOS,
    apply_precision,
    compose_typed,
    leading_layers,
    predictors,
    spread,
    unfit_for_half,
)
from blu_export.quantize.sensitivity import (
    WEIGHTED,
    correct_biases,
    half_errors,
    output_error,
    outputs_of,
    sample_inputs,
)

Parts = dict[str, onnx.ModelProto]
WINDOW = np.float32([[0, 0, 128, 128]])
SEEN, OTHERS = slice(0, 4), slice(4, 8)
"""Canvases that roundings are chosen on, and those that they are judged on."""


@pytest.fixture
def samples(subnetworks: Parts, small_spec: Any, canvases: NDArray[np.uint8]) -> dict[str, list[NDArray[np.float32]]]:
    """Inputs of each part for eight canvases."""
    return sample_inputs(subnetworks, small_spec, [(canvas[None], WINDOW) for canvas in canvases])


def kernels(part: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Kernel of each layer."""
    tensors = {t.name: t for t in part.graph.initializer}
    layers = [node for node in part.graph.node if node.op_type in WEIGHTED]
    return {node.name: numpy_helper.to_array(tensors[node.input[1]]) for node in layers}


def with_kernels(part: onnx.ModelProto, change: Any) -> onnx.ModelProto:
    """The part with ``change(layer, kernel)`` in place of each kernel."""
    changed = onnx.ModelProto()
    changed.CopyFrom(part)
    layer_of = {node.input[1]: node.name for node in part.graph.node if node.op_type in WEIGHTED}
    for tensor in changed.graph.initializer:
        if tensor.name in layer_of:
            values = change(layer_of[tensor.name], numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), tensor.name))
    return changed


@given(seed=st.integers(0, 2**16), blocks=st.integers(1, 3), columns=st.integers(16, 80))
@settings(max_examples=30, deadline=None)
def test_errors_of_inputs_that_resemble_each_other_cancel(seed: int, blocks: int, columns: int) -> None:
    """Over many outputs: of a single one the nearest numbers may happen to be better."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(blocks, 64, columns))
    inputs = 1 + 0.1 * random.normal(size=(blocks, 400, columns))
    moments = inputs.transpose(0, 2, 1) @ inputs / 400
    rounded = spread_errors(weights, moments)
    np.testing.assert_array_equal(rounded, round_to_half(rounded))
    np.testing.assert_allclose(rounded, weights, rtol=0.02, atol=0.02)

    def error(found: NDArray[np.float64]) -> float:
        return float(np.square(inputs @ (found - weights).transpose(0, 2, 1)).sum())

    assert error(rounded) < 0.2 * error(round_to_half(weights).astype(float))


def test_errors_of_unrelated_inputs_are_left_alone() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 5, 40))
    moments = np.tile(np.eye(40) * 3, (2, 1, 1))
    np.testing.assert_array_equal(spread_errors(weights, moments), round_to_half(weights))


def test_an_input_that_is_always_zero_costs_nothing() -> None:
    weights = np.random.default_rng(0).normal(size=(1, 3, 8))
    np.testing.assert_array_equal(spread_errors(weights, np.zeros((1, 8, 8))), round_to_half(weights))


@pytest.mark.parametrize("name", ["trunk", "box_head", "mask_head"])
def test_kernels_rounded_together_move_the_outputs_less(name: str, subnetworks: Parts, samples: Any) -> None:
    part = subnetworks[name]
    rounded = round_kernels(part, samples[name][SEEN])
    for kernel in kernels(rounded).values():
        np.testing.assert_array_equal(kernel, round_to_half(kernel).astype(np.float32))
    nearest = with_kernels(part, lambda layer, kernel: round_to_half(kernel))
    exact = outputs_of(part, samples[name][OTHERS])
    together, alone = (output_error(exact, outputs_of(p, samples[name][OTHERS])) for p in (rounded, nearest))
    assert 0 < together < 0.9 * alone


def test_kernels_that_are_kept_stay(subnetworks: Parts, samples: Any) -> None:
    part = subnetworks["trunk"]
    before = kernels(part)
    kept = [name for name in before if "stem" in name or "rpn" in name]
    assert kept
    after = kernels(round_kernels(part, samples["trunk"][:1], kept))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(before) - set(kept)


def test_half_types_every_layer(subnetworks: Parts, small_spec: Any, canvases: NDArray[np.uint8]) -> None:
    typed = apply_precision(subnetworks, small_spec, "fp16", "tensorrt", [(canvases[:1], WINDOW)])
    assert not typed.fallback_layers
    assert typed.notes() == ["every layer is in fp16", "measured on 1 photo"]
    for part in typed.parts.values():
        assert {kernel.dtype for kernel in kernels(part).values()} == {np.dtype(np.float16)}
    onnx.checker.check_model(compose_typed(typed, small_spec), full_check=True)


def test_a_layer_that_overflows_half_is_kept_and_named(subnetworks: Parts, samples: Any) -> None:
    part = with_kernels(
        subnetworks["box_head"],
        lambda layer, kernel: kernel * (1e6 if layer.endswith("mrcnn_class_conv1") else 1),
    )
    kept = unfit_for_half(part, samples["box_head"][:1])
    layers = {name.rpartition("/")[2] for name in kept}
    assert "mrcnn_class_conv1" in layers
    assert any("numbers up to" in reason for reason in kept.values())
    typed = to_half(part, kept)
    dtypes = {name.rpartition("/")[2]: kernel.dtype for name, kernel in kernels(typed).items()}
    assert dtypes["mrcnn_class_conv1"] == np.float32
    [found] = outputs_of(emulate(typed), samples["box_head"][:1])
    assert all(np.isfinite(array).all() for array in found)


def test_a_emulation_rounds_every_result(subnetworks: Parts, samples: Any) -> None:
    part = to_half(subnetworks["mask_head"])
    emulation = emulate(part)
    assert {i.type.tensor_type.elem_type for i in (*emulation.graph.input, *emulation.graph.output)} == {
        TensorProto.FLOAT
    }
    for array in outputs_of(emulation, samples["mask_head"][:1])[0]:
        np.testing.assert_array_equal(array, round_to_half(array).astype(np.float32))


def test_int8_for_processors_fits_into_their_sixteen_bit_sums(subnetworks: Parts, samples: Any) -> None:
    part = quantize(subnetworks["box_head"], samples["box_head"], "portable")
    tensors = {t.name: numpy_helper.to_array(t) for t in part.graph.initializer}
    weights = [
        tensors[n.input[0]] for n in part.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in tensors
    ]
    kernels8 = [w for w in weights if w.dtype == np.int8]
    assert kernels8
    # Two products of an unsigned activation and a weight, added in 16 bits.
    assert all(2 * 255 * np.abs(w.astype(int)).max() < 2**15 for w in kernels8)


def test_int8_for_tensorrt_is_symmetric(subnetworks: Parts, samples: Any) -> None:
    part = quantize(subnetworks["box_head"], samples["box_head"], "tensorrt")
    tensors = {t.name: numpy_helper.to_array(t) for t in part.graph.initializer}
    zeros = [tensors[n.input[2]] for n in part.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_the_scale_of_a_dead_channel_is_not_zero_in_half(subnetworks: Parts, samples: Any) -> None:
    def dying(layer: str, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
        kernel = kernel.copy()
        if kernel.ndim == 4:
            kernel[0] *= 1e-9 / np.abs(kernel[0]).max()
        return kernel

    part = with_kernels(subnetworks["trunk"], dying)
    typed = to_half(quantize(part, samples["trunk"][:2], "tensorrt"))
    tensors = {t.name: numpy_helper.to_array(t) for t in typed.graph.initializer}
    scales = [tensors[n.input[1]] for n in typed.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert any(scale.ndim for scale in scales)
    assert all((scale > 0).all() for scale in scales)


@pytest.mark.parametrize("target", ["portable", "tensorrt"])
def test_int8_parts_are_near_the_exact_ones(
    target: str, subnetworks: Parts, small_spec: Any, canvases: NDArray[np.uint8], samples: Any
) -> None:
    photos = [(canvas[None], WINDOW) for canvas in canvases[SEEN]]
    typed = apply_precision(subnetworks, small_spec, "int8", target, photos)
    onnx.checker.check_model(compose_typed(typed, small_spec), full_check=True)
    for name, part in typed.emulation().items():
        found = outputs_of(part, samples[name][SEEN])
        assert output_error(outputs_of(subnetworks[name], samples[name][SEEN]), found) < 0.3


@pytest.mark.parametrize(
    ("part", "layers"),
    [
        ("trunk", set()),
        ("box_head", {"mrcnn_class_logits", "mrcnn_bbox_fc"}),
        ("mask_head", {"mrcnn_mask"}),
    ],
)
def test_predictors_are_the_heads_last_layers(part: str, layers: set[str], subnetworks: Parts) -> None:
    assert {name.removeprefix(f"{part}/") for name in predictors(subnetworks[part])} == layers


def test_results_have_more_than_eight_bits(
    subnetworks: Parts, small_spec: Any, canvases: NDArray[np.uint8], samples: Any
) -> None:
    photos = [(canvas[None], WINDOW) for canvas in canvases[SEEN]]
    typed = apply_precision(subnetworks, small_spec, "int8", "portable", photos)
    assert set(predictors(subnetworks["box_head"])) <= set(typed.fallback_layers)
    for arrays in zip(*outputs_of(typed.parts["box_head"], samples["box_head"]), strict=True):
        assert len(np.unique(np.concatenate(arrays))) > 256


def test_the_mean_error_goes_into_the_bias(subnetworks: Parts, samples: Any) -> None:
    part = subnetworks["mask_head"]
    coarse = with_kernels(part, lambda layer, kernel: np.round(kernel * 16) / 16)
    shifts = {cost.name: cost.shift for cost in half_errors(part, samples["mask_head"])}
    layer = next(node for node in part.graph.node if node.op_type == "Conv")
    moved = correct_biases(part, {layer.name: np.arange(len(shifts[layer.name]), dtype=float)})
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in p.graph.initializer}[layer.input[2]] for p in (part, moved)
    )
    np.testing.assert_allclose(after, before - np.arange(len(before)), rtol=1e-5)
    others = {t.name for t in part.graph.initializer} - {layer.input[2]}
    for tensor in moved.graph.initializer:
        if tensor.name in others:
            assert tensor in part.graph.initializer
    assert all(np.isfinite(shift).all() for shift in shifts.values())
    assert output_error(outputs_of(part, samples["mask_head"]), outputs_of(coarse, samples["mask_head"])) > 0


class Chain:
    """Stands for a part and its typing: layers in a row, of which the first few lose a tenth unless they are kept."""

    LAYERS = 12

    def __init__(self, lossy: int) -> None:
        random = np.random.default_rng(0)
        turns = [np.linalg.qr(random.normal(size=(16, 16)))[0] for _ in range(self.LAYERS)]
        tensors = [numpy_helper.from_array(turn.astype(np.float32), f"w{i}") for i, turn in enumerate(turns)]
        nodes = [helper.make_node("Gemm", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"layer{i}") for i in range(self.LAYERS)]
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 16]) for name in ("x0", f"x{self.LAYERS}")
        ]
        graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
        self.part = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        self.samples = [random.normal(size=(8, 16)).astype(np.float32)]
        self.lossy = [f"layer{i}" for i in range(lossy)]
        self.calls = 0

    def typed_but(self, kept: Sequence[str]) -> onnx.ModelProto:
        self.calls += 1
        random = np.random.default_rng(1)

        def noisy(layer: str, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
            noise = 0.1 * kernel.std() * random.normal(size=kernel.shape)
            return kernel + noise if layer in self.lossy and layer not in kept else kernel

        return with_kernels(self.part, noisy)


@pytest.mark.parametrize("lossy", [1, 2, 3, 4])
def test_as_many_leading_layers_are_kept_as_the_outputs_need(lossy: int) -> None:
    chain = Chain(lossy)
    assert leading_layers(chain.part, chain.samples, chain.typed_but) == chain.lossy
    assert chain.calls <= 5, "found by bisection"


def test_no_layer_is_kept_where_nothing_is_lost() -> None:
    chain = Chain(0)
    assert leading_layers(chain.part, chain.samples, chain.typed_but) == []
    assert chain.calls == 1


def test_no_layer_is_kept_where_the_front_is_not_the_cause() -> None:
    chain = Chain(Chain.LAYERS)
    assert leading_layers(chain.part, chain.samples, chain.typed_but) == []


@pytest.mark.parametrize("count", [0, 1, 32, 33, 63, 1000])
def test_photos_are_spread_over_all(count: int) -> None:
    chosen = spread(range(count))
    assert len(chosen) == min(count, MOST_PHOTOS)
    gaps = np.diff([*chosen, count])
    assert not count or (chosen[0] == 0 and gaps.max() - gaps.min() <= 1)


@pytest.mark.parametrize(("precision", "method"), [("fp8", "minmax"), ("int8", "guess"), ("int8", "minmax")])
def test_what_cannot_be_is_refused(precision: str, method: str, subnetworks: Parts, small_spec: Any) -> None:
    with pytest.raises(UsageError):
        apply_precision(subnetworks, small_spec, precision, "portable", [], method)
