"""TensorRT engines: built, described by a sidecar, and checked before they are loaded."""
