"""Data sets, augmentation and the input pipeline of training."""
