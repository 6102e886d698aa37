"""How good a model is on annotated photos.

coco ── average precision, as pycocotools computes it
files ── results, curves and pictures as files
canvases ── what a canvas that fits costs beside the square one
"""
