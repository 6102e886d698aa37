"""Annotations as tools write them, one file per tool.

coco ── COCO's own reader repairs, finds and counts
└─ coco_reading, coco_values, coco_photos ── entries, their values, the photos they are of
deepfashion2 ── 191,000 files with an index
others ── the tools below, turned into COCO's three lists and passed on to its reader
└─ cvat, darwin, labelme, masks, via, voc, yolo ── one tool each      parts ── what they share
"""
