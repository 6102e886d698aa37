"""Annotations as tools write them, one file per tool.

COCO's own reader repairs, finds and counts. The readers of other tools turn their files into COCO's three lists and
pass them on to it.
"""
