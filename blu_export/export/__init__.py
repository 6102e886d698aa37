"""From Keras weights to ONNX files, engines and Triton repositories.

onnx ── the whole of ``blu export onnx``      options ── what the file is to be
├─ learned, tidy ── the subnetworks through tf2onnx, made plain
└─ checked ── the graph with its checks, measured against Keras
engine, engine_graph ── an ONNX file to an engine and its sidecar
triton ── a model repository      triton_backend ── the Python model in it
"""
