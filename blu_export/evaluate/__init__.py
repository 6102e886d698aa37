"""How good a model is on annotated photos.

detect ── what a model finds on the photos      results ── the same as a COCO results file
coco ── average precision, as pycocotools computes it      confusion ── what is confused with what
files ── curves and pictures as files
canvases ── what a canvas that fits costs beside the square one
"""
