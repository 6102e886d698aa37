"""From a Keras model to an ONNX file."""
