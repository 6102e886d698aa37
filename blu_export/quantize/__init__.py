"""Reduced precision of the subnetworks; box arithmetic stays float32.

precision ── apply_precision: which layers, judged on photos
├─ half, gptq ── fp16: types, and kernels rounded so that a layer's errors cancel
├─ int8 ── Q/DQ around convolutions and products
└─ sensitivity ── what rounding costs each layer
"""
