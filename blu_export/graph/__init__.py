"""The ONNX graph, written by hand around the subnetworks; it mirrors ``model``.

compose ── subnetworks and box arithmetic become one model        split ── its inverse
├─ canvas ── inputs, anchors, normalized coordinates
├─ boxes, proposals, roi_align, detection, masks ── one stage each, named as the Keras layers
└─ nms, topk ── exact, with and without the operators that TensorRT lacks
builder ── nodes as Python values     checks ── what a file must not hold     compression ── kernels in 16 bits
"""
