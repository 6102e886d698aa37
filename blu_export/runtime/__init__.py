"""Runners: the same model in Keras, ONNX Runtime, OpenVINO and TensorRT.

load ── a model file and RunnerOptions to a Runner
├─ options ── what a caller may ask for
├─ choice ── which file and runtime, by a rule; tuning ── what was measured on this machine
├─ onnx_file ── an ONNX file read as bytes, before a runtime sees it
├─ converted ── Keras weights as ONNX; graph_cache ── optimized graphs (shape_names); both on disk
├─ cpu ── the processor, and how many threads suit it
├─ frequent ── networks compiled for the sizes of canvas that come most often
└─ keras, onnxruntime, openvino, tensorrt ── one Runner each (base)
"""

from blu_export.runtime.base import Runner
from blu_export.runtime.load import load_runner
from blu_export.runtime.options import PRECISIONS, RUNTIMES, RUNTIMES_BY_SUFFIX, WEIGHT_SUFFIXES, RunnerOptions

__all__ = ["PRECISIONS", "RUNTIMES", "RUNTIMES_BY_SUFFIX", "WEIGHT_SUFFIXES", "Runner", "RunnerOptions", "load_runner"]
