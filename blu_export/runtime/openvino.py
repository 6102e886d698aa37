"""OpenVINO: the portable file on Intel and ARM processors.

In bf16 the graph is split after the trunk, which holds nearly all of the work. On processors with bf16 units
OpenVINO puts a whole graph in bf16 or none of it, and boxes in bf16 lose most detections.

A model that is compiled for fixed sizes is faster than one with dynamic sizes. Where the file fixes the canvas, it is
compiled for one photo, and a batch runs photo by photo. Where canvases follow the photo, one model takes all sizes, and
those that come most often get their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.extras import import_extra
from blu_export.runtime.base import Runner, run_error
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.frequent import FREQUENT, FrequentSizes
from blu_export.runtime.onnx_file import OnnxFile, named, spec_of

TRUNK = "trunk/"
"""Begins the names of the trunk's tensors."""
MOST_BYTES = 64 * 2**20
"""Largest file whose frequent sizes are compiled. The default model (10 MB) takes 70 to 110 MB for each, and 0.9 of the
time; a ResNet-50 (180 MB) would take 550 MB, and 0.96 to 0.99 of the time (benchmarks/sizes.py)."""
SAME_BITS = {"SNIPPETS_MODE": "DISABLE"}
"""With it a model for fixed sizes computes what the one with dynamic sizes does, to the last bit, and as fast as
without. OpenVINO does not list this setting. Tried with AVX-512 and its bf16."""


class OpenVinoRunner(Runner):
    """Runs an exported .onnx file in OpenVINO.

    Args:
        model: path, or a file that was already read.
        device: ``cpu`` or None.
        threads: of one network; None takes the cores that this process may use.
        source: names a model that was already read in errors.
        bf16: compute the trunk of a float32 file in bf16.

    Raises:
        ModelFileError: corrupt, foreign, or refused by OpenVINO.
        MissingDependencyError: openvino is not installed, or the processor has no bf16 units.
        UsageError: another device, or bf16 of a file that is not float32.
    """

    runtime = "openvino"

    def __init__(
        self,
        model: str | os.PathLike[str] | OnnxFile,
        device: str | None = None,
        threads: int | None = None,
        source: str = "model",
        bf16: bool = False,
    ) -> None:
        file, source = named(model, source)
        self.spec, self.precision = spec_of(file, source), "bf16" if bf16 else file.precision
        if device not in (None, "cpu"):
            raise UsageError(f"The OpenVINO runner works on the processor, not on '{device}'.", "Use --device cpu.")
        if bf16 and file.precision != "float32":
            raise UsageError(f"{source} is {file.precision} and cannot run in bf16.", "Name the float32 file.")
        if bf16 and not has_bf16():
            raise MissingDependencyError(
                "This processor has no bf16 units (avx512_bf16, amx_bf16, or bf16 on ARM).",
                "Use --precision file, or int8: blu export onnx --int8.",
            )
        self.device = "CPU"
        openvino = import_extra("openvino")
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads or usable_cores()}
        try:
            core = openvino.Core()
            graph = core.read_model(file.data)
            batch, *sides = list(graph.input("canvas").partial_shape)[:3]
            follows_photo = any(side.is_dynamic for side in sides)
            self._one_by_one = batch.is_dynamic and not follows_photo
            if self._one_by_one:
                _fix_sizes(graph, *(side.get_length() for side in sides))
            self._network = _Network(core, graph, settings, bf16)
        except Exception as error:  # the native library raises RuntimeError and its own subclasses
            raise ModelFileError(
                f"OpenVINO {openvino.__version__} refuses {source}: {error}",
                "Export the model again, upgrade openvino, or use --runtime onnxruntime.",
            ) from error
        self._frequent: FrequentSizes[_Network] | None = None
        # Not int8: with its sizes fixed OpenVINO rounds elsewhere, so a photo's detections would depend on how many of
        # its size came before.
        if follows_photo and file.precision == "float32" and len(file.data) <= MOST_BYTES and _knows_same_bits():

            def compile_for(height: int, width: int) -> _Network:
                return _Network(core, _fix_sizes(graph.clone(), height, width), settings | SAME_BITS, bf16)

            self._frequent = FrequentSizes(self._network, compile_for)
            self.settles_after = FREQUENT

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        try:
            if self._one_by_one and len(canvas) > 1:
                photos = [self._network(canvas[i : i + 1], window[i : i + 1]) for i in range(len(canvas))]
                detections, masks = (np.concatenate(rows) for rows in zip(*photos, strict=True))
                return detections, masks
            if self._frequent is not None and len(canvas) == 1:
                return self._frequent.find(*canvas.shape[1:3])(canvas, window)
            return self._network(canvas, window)
        except Exception as error:  # as above
            raise run_error("OpenVINO", canvas, error) from error

    def close(self) -> None:
        """Give back the compiled models' memory."""
        self._frequent = None
        self._network.close()


class _Network:
    """A graph, compiled; in bf16 its two parts, one after the other."""

    def __init__(self, core: Any, graph: Any, settings: Mapping[str, Any], bf16: bool) -> None:
        parts = [(graph, "f32")]  # under which quantized convolutions stay int8
        if bf16:
            trunk, rest = split_after_trunk(graph)
            parts = [(trunk, "bf16"), (rest, "f32")]
        self.parts = [
            core.compile_model(part, "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint}) for part, hint in parts
        ]
        # Requests hold the buffers of one call: as many are made as threads call at once.
        self._idle: SimpleQueue[list[Any]] = SimpleQueue()

    def __call__(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        try:
            requests = self._idle.get_nowait()
        except Empty:
            requests = [part.create_infer_request() for part in self.parts]
        found: dict[str, Any] = {"canvas": canvas, "window": window}
        for part, request in zip(self.parts, requests, strict=True):
            request.infer({i.any_name: found[i.any_name] for i in part.inputs}, share_inputs=True)
            found |= {name: request.get_tensor(o).data for o in part.outputs for name in o.names}
        # Copies: the request's own buffers are written again by the next call.
        detections, masks = found["detections"].copy(), found["masks"].copy()
        self._idle.put(requests)
        return detections, masks

    def close(self) -> None:
        """Give back the memory."""
        self.parts, self._idle = [], SimpleQueue()


def _fix_sizes(graph: Any, height: int, width: int) -> Any:
    """Change a graph to take one canvas of this size alone; returns it."""
    channels = graph.input("canvas").partial_shape[3]
    graph.reshape({"canvas": [1, height, width, channels], "window": [1, 4]})
    return graph


@cache
def _knows_same_bits() -> bool:
    """Whether this OpenVINO has SAME_BITS."""
    core = import_extra("openvino").Core()
    try:
        core.set_property("CPU", SAME_BITS)
        core.get_property("CPU", "FULL_DEVICE_NAME")  # settings are read when the device is first asked
    except RuntimeError:
        return False
    return True


def has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this processor."""
    core = import_extra("openvino").Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def split_after_trunk(graph: Any) -> tuple[Any, Any]:
    """An OpenVINO model as two, one after the other: up to the trunk's outputs, and what follows.

    The second takes the first's outputs under their own names, and whichever of the model's inputs it needs.
    """
    import openvino
    from openvino import opset13

    before, after = graph, graph.clone()
    boundaries = [output for output, _ in _boundaries(before)]
    trunk = openvino.Model(boundaries, before.get_parameters(), "trunk")
    parameters = []
    for output, readers in _boundaries(after):
        parameter = opset13.parameter(output.get_partial_shape(), output.get_element_type())
        parameter.output(0).set_names({min(output.get_names())})
        for reader in readers:
            reader.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    results = after.get_results()
    needed = _ancestors([result.output(0) for result in results])
    given = [parameter for parameter in after.get_parameters() if parameter.get_friendly_name() in needed]
    return trunk, openvino.Model(results, [*given, *parameters], "rest")


def _boundaries(graph: Any) -> list[tuple[Any, list[Any]]]:
    """(output, inputs that read it from outside) of everything that the trunk's tensors are made from."""
    ends = [
        o for op in graph.get_ordered_ops() for o in op.outputs() if any(n.startswith(TRUNK) for n in o.get_names())
    ]
    inside = _ancestors(ends)
    boundaries = []
    for op in graph.get_ordered_ops():
        if op.get_friendly_name() not in inside or op.get_type_name() in ("Constant", "Parameter"):
            continue
        for output in op.outputs():
            readers = [r for r in output.get_target_inputs() if r.get_node().get_friendly_name() not in inside]
            if readers:
                boundaries.append((output, readers))
    return boundaries


def _ancestors(outputs: list[Any]) -> set[str]:
    """Names of the operations that outputs are made by, directly or not."""
    found: set[str] = set()
    waiting = [output.get_node() for output in outputs]
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in found:
            found.add(op.get_friendly_name())
            waiting += [source.get_source_output().get_node() for source in op.inputs()]
    return found
