"""What follows from the canvas: its image tensor, its size, the shapes of its feature maps, its anchors.

With a canvas of one size all of it is constant; otherwise it is computed from the input's shape.
"""

from __future__ import annotations

import numpy as np

from blu_export.anchors import level_anchors, pyramid_anchors, pyramid_shapes
from blu_export.graph.builder import Graph, Value
from blu_export.spec import SIZE_MULTIPLE, ModelSpec

ROI_LEVELS = 4
"""ROIs are pooled from P2..P5; P6 serves only the RPN."""


class Canvas:
    """The canvas of a graph, as values.

    Attributes:
        pixels: uint8 [B, H, W, C], the graph's input.
        far: float32 [4], (H - 1, W - 1, H - 1, W - 1).
        area_root: float32 scalar, sqrt(H × W).
        heights, widths: int64 [5], shapes of P2..P6.
        anchor_starts: int64 [5], index of each level's first anchor.
        pyramid_starts: int64 [4], index of each level's first cell in the joined P2..P5.
        cells: int64 [1], number of cells of P2..P5.
        anchor_count: number of anchors, or None where it depends on the canvas.
        fewest_anchors: number of anchors of the smallest canvas there can be.
    """

    def __init__(self, graph: Graph, spec: ModelSpec) -> None:
        self.graph, self.spec = graph, spec
        self.pixels = graph.value("canvas")
        smallest = spec.canvas or (SIZE_MULTIPLE, SIZE_MULTIPLE)
        self.fewest_anchors = len(pyramid_anchors(spec, smallest))
        self.anchor_count = self.fewest_anchors if spec.canvas else None
        with graph.stage("canvas"):
            if spec.canvas:
                self._constant(spec.canvas)
            else:
                self._from_shape()

    def image(self) -> Value:
        """What the trunk sees: float32 [B, C, H, W], mean subtracted."""
        with self.graph.stage("preprocess"):
            mean = np.array(self.spec.mean_pixel, np.float32).reshape(-1, 1, 1)
            # Cast first: TensorRT takes uint8 at its inputs only.
            return self.pixels.cast(np.float32).transpose(0, 3, 1, 2) - self.graph.const(mean, "mean_pixel")

    def normalize(self, window: Value) -> Value:
        """Windows float32 [B, 4] from pixels to normalized coordinates (the original's ``norm_boxes``)."""
        return (window - np.array([0, 0, 1, 1], np.float32)) / self.far

    def anchors(self, index: Value) -> Value:
        """Normalized anchors float32 [B, k, 4] of anchor numbers int64 [B, k]."""
        if self.spec.canvas:
            table = self.graph.const(pyramid_anchors(self.spec, self.spec.canvas), "anchors")
            return table.rows(index)
        return self._computed_anchors(index)

    def _constant(self, canvas: tuple[int, int]) -> None:
        graph, spec = self.graph, self.spec
        height, width = canvas
        shapes = np.array(pyramid_shapes(spec, canvas), np.int64)
        sizes = shapes.prod(axis=1)
        anchor_cells = (-(-shapes // spec.rpn_anchor_stride)).prod(axis=1) * len(spec.rpn_anchor_ratios)
        self.far = graph.const(np.array([height - 1, width - 1] * 2, np.float32), "far")
        self.area_root = graph.const(np.sqrt(np.float32(height) * np.float32(width)), "area_root")
        self.heights = graph.const(shapes[:, 0], "heights")
        self.widths = graph.const(shapes[:, 1], "widths")
        self.anchor_starts = graph.const(np.cumsum(anchor_cells) - anchor_cells, "anchor_starts")
        self.pyramid_starts = graph.const((np.cumsum(sizes) - sizes)[:ROI_LEVELS], "pyramid_starts")
        self.cells = graph.const(sizes[:ROI_LEVELS].sum(keepdims=True), "cells")

    def _from_shape(self) -> None:
        graph, spec = self.graph, self.spec
        size = graph.op("Shape", self.pixels, start=1, end=3)
        pixels = size.cast(np.float32)
        self.far = graph.op("Tile", pixels - 1.0, np.array([2], np.int64))
        self.area_root = graph.op("Sqrt", graph.reduce("Prod", pixels, 0, keepdims=False))
        strides = graph.const(np.array(spec.backbone_strides, np.int64), "strides")
        height, width = size.split(1, 1, axis=0)
        self.heights = _ceil_div(height, strides)
        self.widths = _ceil_div(width, strides)
        stride = graph.const(np.array(spec.rpn_anchor_stride, np.int64), "anchor_stride")
        anchors = _ceil_div(self.heights, stride) * _ceil_div(self.widths, stride) * len(spec.rpn_anchor_ratios)
        self.anchor_starts = _starts(anchors, len(spec.backbone_strides))
        sizes = (self.heights * self.widths).slice(0, ROI_LEVELS, axis=0)
        self.pyramid_starts = _starts(sizes, ROI_LEVELS)
        self.cells = graph.reduce("Sum", sizes, 0)

    def _computed_anchors(self, index: Value) -> Value:
        """Anchor number to level, cell and ratio, and from there to its box."""
        graph, spec = self.graph, self.spec
        ratios, stride = len(spec.rpn_anchor_ratios), spec.rpn_anchor_stride
        later_starts = self.anchor_starts.slice(1, len(spec.backbone_strides), axis=0)
        level = graph.reduce(
            "Sum",
            (index.unsqueeze(2) >= later_starts).cast(np.int64),
            2,
            keepdims=False,
        )
        within = index - self.anchor_starts.rows(level)
        cell, ratio = within // ratios, within % ratios
        columns = _ceil_div(self.widths, graph.const(np.array(stride, np.int64), "anchor_stride")).rows(level)
        steps = graph.const(np.array(spec.backbone_strides, np.int64) * stride, "anchor_steps").rows(level)
        y, x = ((v * steps).cast(np.float32).unsqueeze(2) for v in (cell // columns, cell % columns))
        at_origin = [
            level_anchors(scale, spec.rpn_anchor_ratios, (1, 1), 1, 1) - [0, 0, 1, 1]
            for scale in spec.rpn_anchor_scales
        ]
        table = graph.const(np.concatenate(at_origin).astype(np.float32), "anchors_at_origin")
        boxes = table.rows(level * ratios + ratio)
        return (boxes + graph.concat([y, x, y, x], axis=2)) / self.far


def _ceil_div(value: Value, divisor: Value) -> Value:
    return (value + divisor - 1) // divisor


def _starts(sizes: Value, count: int) -> Value:
    """Sums of the sizes int64 [count] before each; of plain operations, which every builder of engines has."""
    before = np.tril(np.ones((count, count), np.int64), k=-1)
    return sizes.graph.reduce("Sum", sizes * before, 1, keepdims=False)
