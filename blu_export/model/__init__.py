"""The Keras Mask R-CNN: its learned layers, its fixed maths, and its weights files."""
