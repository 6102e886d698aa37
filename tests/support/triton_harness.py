"""Runs a repository as Triton would, in a process of its own: ``triton_harness.py REPOSITORY NAME OUT PHOTO…``.

The Python model finds nothing of blu but what the repository holds. Networks run in ONNX Runtime. What comes
out is checked against config.pbtxt and saved as OUT: one array ``INDEX.OUTPUT`` per photo and output, or
``INDEX.error``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

NUMPY_TYPES = {
    "TYPE_INT32": np.int32,
    "TYPE_FP32": np.float32,
    "TYPE_UINT8": np.uint8,
    "TYPE_BOOL": np.bool_,
    "TYPE_STRING": np.object_,
}


def read_config(folder: Path) -> dict[str, Any]:
    message = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def check(tensors: dict[str, np.ndarray], declared: list[dict[str, Any]], batched: bool, partly: bool = False) -> None:
    by_name = {tensor["name"]: tensor for tensor in declared}
    assert set(tensors) <= set(by_name) and (partly or len(tensors) == len(by_name))
    for name, array in tensors.items():
        shape = by_name[name].get("reshape", {"shape": by_name[name]["dims"]}).get("shape", [])
        wanted = [-1] * batched + [int(side) for side in shape]
        assert array.dtype == NUMPY_TYPES[by_name[name]["data_type"]], name
        assert len(wanted) == array.ndim and all(a in (-1, b) for a, b in zip(wanted, array.shape, strict=True)), name


def network(folder: Path) -> Any:
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    config = read_config(folder)

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        check(inputs, config["input"], batched=True)
        assert len(inputs["canvas"]) <= config["max_batch_size"]
        names = [output["name"] for output in config["output"]]
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        check(outputs, config["output"], batched=True)
        return outputs

    return run


def main(repository: Path, name: str, out: Path, photos: list[Path]) -> None:
    for config in repository.glob("*/config.pbtxt"):
        if read_config(config.parent)["backend"] == "onnxruntime":
            pb_utils.NETWORKS[config.parent.name] = network(config.parent)
    spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = {part for part in sys.modules if part.partition(".")[0] == "blu_export"}
    assert all(Path(sys.modules[part].__file__).is_relative_to(repository) for part in loaded), loaded

    config = read_config(repository / name)
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})
    names = [output["name"] for output in config["output"]]
    requests = [
        pb_utils.InferenceRequest(
            inputs=[pb_utils.Tensor("image", np.array([photo.read_bytes()], np.object_))], requested_output_names=names
        )
        for photo in photos
    ]
    found: dict[str, Any] = {}
    for index, response in enumerate(model.execute(requests)):
        if response.has_error():
            found[f"{index}.error"] = np.array([response.error().message(), str(response.error().code)])
            continue
        tensors = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        check(tensors, config["output"], batched=False)
        tensors["masks_rle"] = np.array([text.decode() for text in tensors["masks_rle"]], np.str_)
        found |= {f"{index}.{key}": array for key, array in tensors.items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), [Path(each) for each in sys.argv[4:]])
