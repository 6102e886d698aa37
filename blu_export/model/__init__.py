"""The Keras Mask R-CNN: its subnetworks, its box arithmetic, and its weights files.

mask_rcnn ── the model: photos to detections
├─ trunk ── backbone, feature pyramid, RPN      heads ── for each ROI
│    └─ backbones, normalization ── feature maps at four strides, batch norm at inference
└─ proposals, roi_align, detection, boxes ── the box arithmetic between them
weights ── a file becomes a checked model, and a model a file
├─ weight_files, h5, nested, keras_names, checkpoints ── files of unknown origin, read with limits
├─ layers, report ── which tensors there must be, and which there are
└─ given, config_file, config_classes, expressions, coco_classes ── what the file does not say
scores ── calibration: a constant on the logit of a class
direct ── the subnetworks as ONNX, from the tensors alone
"""
