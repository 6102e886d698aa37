"""The binding to TensorRT and TensorRT-RTX: engines are built, described by a sidecar, checked, and run.

libraries ── finds and loads them      targets ── cards and compute capabilities
builder ── graph to engine             inspector ── what an engine says of its layers
sidecar ── the JSON beside an engine   cuda, lane ── memory, streams, one engine's execution
"""
