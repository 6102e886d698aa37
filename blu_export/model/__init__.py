"""The Keras Mask R-CNN: its learned layers, its box arithmetic, and its weights files."""
