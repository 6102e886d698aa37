"""OpenVINO: the portable file on Intel and ARM processors.

In bf16 the graph is split after the trunk, which holds nearly all of the work. On processors with bf16 units
OpenVINO puts a whole graph in bf16 or none of it, and boxes in bf16 lose most detections.
"""

from __future__ import annotations

import os
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.extras import import_extra
from blu_export.runtime.base import Runner, run_error
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.onnx_file import OnnxFile, named, spec_of

TRUNK = "trunk/"
"""Begins the names of the trunk's tensors."""


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
            graphs = [(graph, "f32")]  # under which quantized convolutions stay int8
            if bf16:
                trunk, rest = split_after_trunk(graph)
                graphs = [(trunk, "bf16"), (rest, "f32")]
            self._compiled = [
                core.compile_model(part, "CPU", settings | {"INFERENCE_PRECISION_HINT": hint}) for part, hint in graphs
            ]
        except Exception as error:  # the native library raises RuntimeError and its own subclasses
            raise ModelFileError(
                f"OpenVINO {openvino.__version__} refuses {source}: {error}",
                "Export the model again, upgrade openvino, or use --runtime onnxruntime.",
            ) from error
        # Requests hold the buffers of one call: as many are made as threads call at once.
        self._idle: SimpleQueue[list[Any]] = SimpleQueue()

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        try:
            requests = self._idle.get_nowait()
        except Empty:
            requests = [compiled.create_infer_request() for compiled in self._compiled]
        try:
            found: dict[str, Any] = {"canvas": canvas, "window": window}
            for compiled, request in zip(self._compiled, requests, strict=True):
                request.infer({i.any_name: found[i.any_name] for i in compiled.inputs}, share_inputs=True)
                found |= {name: request.get_tensor(o).data for o in compiled.outputs for name in o.names}
            # Copies: the request's own buffers are written again by the next call.
            detections, masks = found["detections"].copy(), found["masks"].copy()
        except Exception as error:  # as above
            raise run_error("OpenVINO", canvas, error) from error
        self._idle.put(requests)
        return detections, masks

    def close(self) -> None:
        """Give back the compiled model's memory."""
        self._idle = SimpleQueue()
        self._compiled = []


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
