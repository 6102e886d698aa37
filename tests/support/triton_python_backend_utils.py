"""Stands in for the module that Triton's Python backend gives to its models.

Strict where Triton is: tensors have the type, and shapes the sizes, that config.pbtxt declares; a network gets
what it takes and nothing else. ``NETWORKS[name] = function`` answers calls of other models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

TRITONSERVER_MEMORY_CPU = 0
NETWORKS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {}


class PreferredMemory:
    def __init__(self, kind: int, device: int) -> None:
        assert (kind, device) == (TRITONSERVER_MEMORY_CPU, 0)


class TritonError:
    INVALID_ARG = 2

    def __init__(self, text: str, code: int = 0) -> None:
        self.text, self.code = text, code

    def message(self) -> str:
        return self.text


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous, f"{name} is not a contiguous array"
        if array.dtype == np.object_:
            assert all(isinstance(each, bytes) for each in array.ravel()), f"{name} holds something else than bytes"
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.outputs = output_tensors or []
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self.outputs


class InferenceRequest:
    def __init__(
        self,
        model_name: str = "",
        inputs: list[Tensor] | None = None,
        requested_output_names: list[str] | None = None,
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        assert re.fullmatch(r"[\w.-]*", model_name)
        self.model_name, self.tensors, self._wanted = model_name, inputs or [], requested_output_names or []

    def inputs(self) -> list[Tensor]:
        return self.tensors

    def requested_output_names(self) -> set[str]:
        return set(self._wanted)

    def exec(self) -> InferenceResponse:
        try:
            answer = NETWORKS[self.model_name]({tensor.name(): tensor.as_numpy() for tensor in self.tensors})
        except Exception as error:  # as Triton does: the caller gets a response with an error
            return InferenceResponse(error=TritonError(str(error)))
        return InferenceResponse([Tensor(name, answer[name]) for name in self._wanted])


def get_input_tensor_by_name(request: Any, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: Any, name: str) -> Tensor | None:
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)
