"""Data sets, augmentation and the input pipeline of training.

load ── a path or URL to a Dataset (dataset)
├─ layout, formats ── which file is which part, one reader per tool      options ── how they are read
├─ storage, cache, finder ── folders and buckets; where photos are     heads ── size and turn from the first bytes
├─ ids, json_text, segmentation ── ids, JSON and outlines as tools write them
└─ classes, problems ── classes matched by name, what is wrong
pipeline ── numbered samples, made in parallel
└─ photos, augment, scenes ── decoded and cached, moved, composed anew
check, split, write, pseudo ── a data set looked at, divided, written, labeled by a model
"""
