"""Layers with weights of a Mask R-CNN: their names and the shapes of their tensors, without Keras.

The names are Matterport's. The Keras model has the same layers, which a test holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blu_export.errors import ModelFileError
from blu_export.spec import ModelSpec, resnet_blocks

Shape = tuple[int, ...]
LayerShapes = dict[str, tuple[tuple[str, Shape], ...]]
"""Layer -> name and shape of each of its tensors, in Keras' order."""

RESNET_STAGES = (2, 3, 4, 5)
RESNET_WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
"""Channels of a bottleneck's output per channel inside."""
MASK_CONVS = 4


@dataclass(frozen=True)
class InvertedResidual:
    """One block of EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation)."""

    name: str
    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int

    @property
    def is_residual(self) -> bool:
        """Whether its input is added to its output."""
        return self.stride == 1 and self.inputs == self.outputs


def lite0_blocks() -> Iterator[InvertedResidual]:
    """The blocks of EfficientNet-Lite0, in order."""
    channels, number = LITE0_STEM, 0
    for kernel, first_stride, expansion, outputs, repeats in _LITE0_STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            yield InvertedResidual(f"block{number}", kernel, stride, expansion, channels, outputs)
            channels, number = outputs, number + 1


LITE0_STEM = 32
# Kernel, stride of the first, expansion, output channels, repeats.
_LITE0_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
                 (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))  # fmt: skip
LITE0_OUTPUTS = (2, 4, 10, 15)
"""Blocks whose output is C2, C3, C4, C5."""


def block_name(stage: int, block: int) -> str:
    """``4f`` for the sixth block of stage 4; after ``4z`` come ``4aa``, ``4ab``, …"""
    letters = ""
    while block >= 0:
        block, letter = divmod(block, 26)
        letters, block = chr(ord("a") + letter) + letters, block - 1
    return f"{stage}{letters}"


def layer_shapes(spec: ModelSpec) -> LayerShapes:
    """Every layer with weights, in the order of the data flow."""
    shapes: LayerShapes = {}
    shapes |= _resnet(spec) if resnet_blocks(spec.backbone) else _lite0(spec)
    channels, pyramid = backbone_channels(spec.backbone), spec.top_down_pyramid_size
    for level, inputs in zip((5, 4, 3, 2), channels[::-1], strict=True):
        shapes |= _conv(f"fpn_c{level}p{level}", 1, inputs, pyramid)
    for level in (2, 3, 4, 5):
        shapes |= _conv(f"fpn_p{level}", 3, pyramid, pyramid)
    anchors = len(spec.rpn_anchor_ratios)
    shapes |= _conv("rpn_conv_shared", 3, pyramid, spec.rpn_channels)
    shapes |= _conv("rpn_class_raw", 1, spec.rpn_channels, 2 * anchors)
    shapes |= _conv("rpn_bbox_pred", 1, spec.rpn_channels, 4 * anchors)
    hidden, classes = spec.fpn_classif_fc_layers_size, spec.num_classes
    shapes |= _conv("mrcnn_class_conv1", spec.pool_size, pyramid, hidden) | _norm("mrcnn_class_bn1", hidden)
    shapes |= _conv("mrcnn_class_conv2", 1, hidden, hidden) | _norm("mrcnn_class_bn2", hidden)
    shapes |= _dense("mrcnn_class_logits", hidden, classes) | _dense("mrcnn_bbox_fc", hidden, 4 * classes)
    channels_in = pyramid
    for i in range(1, MASK_CONVS + 1):
        shapes |= _conv(f"mrcnn_mask_conv{i}", 3, channels_in, spec.mask_channels)
        shapes |= _norm(f"mrcnn_mask_bn{i}", spec.mask_channels)
        channels_in = spec.mask_channels
    shapes |= _conv("mrcnn_mask_deconv", 2, spec.mask_channels, spec.mask_channels)
    return shapes | _conv("mrcnn_mask", 1, spec.mask_channels, classes)


def backbone_channels(backbone: str) -> tuple[int, ...]:
    """Channels of C2..C5."""
    if resnet_blocks(backbone):
        return tuple(EXPANSION * width for width in RESNET_WIDTHS)
    blocks = list(lite0_blocks())
    return tuple(blocks[index].outputs for index in LITE0_OUTPUTS)


def is_layer(name: str) -> bool:
    """Whether some Mask R-CNN of this program has a layer of that name."""
    return _NAMES.fullmatch(name) is not None


_NAMES = re.compile(
    r"conv1|bn_conv1|(res|bn)[2-5][^/_]+_branch(1|2[abc])|stem_(conv|bn)"
    r"|block\d+_(expand|depthwise|project)_(conv|bn)"
    r"|fpn_c[2-5]p[2-5]|fpn_p[2-5]|rpn_(conv_shared|class_raw|bbox_pred)"
    r"|mrcnn_(class_(conv|bn)[12]|class_logits|bbox_fc|mask_(conv|bn)[1-4]|mask_deconv|mask)"
)
_BLOCK = re.compile(r"(res|bn)([2-5])([^/_]+)_branch(1|2[abc])")


def original_block_names(layers: Sequence[str], source: str) -> tuple[tuple[int, ...], dict[str, str]]:
    """Blocks of stages 2 to 5 of a ResNet, and what each layer is called here.

    Blocks are named a, b, c, … as the original's (which continues after z in character order),
    a, …, z, aa, …, or a, b1, b2, … as Caffe's deep ResNets.

    Raises:
        ModelFileError: a stage has no blocks, or one is missing in between.
    """
    found: dict[int, set[str]] = {stage: set() for stage in RESNET_STAGES}
    matches = [match for match in map(_BLOCK.fullmatch, layers) if match]
    for match in matches:
        found[int(match[2])].add(match[3])
    ours: dict[tuple[int, str], str] = {}
    for stage, labels in found.items():
        namings = ([each(stage, i)[1:] for i in range(len(labels))] for each in _NAMINGS)
        naming = next((names for names in namings if set(names) == labels), None)
        if not labels or naming is None:
            raise ModelFileError(
                f"Stage {stage} of the ResNet in {source} has the blocks {', '.join(sorted(labels)) or 'none'}: "
                "one is missing, or they are named in another way.",
                "Blocks are named as in the original: a, b, c and so on.",
            )
        ours |= {(stage, label): block_name(stage, i) for i, label in enumerate(naming)}
    names = {match[0]: f"{match[1]}{ours[int(match[2]), match[3]]}_branch{match[4]}" for match in matches}
    return tuple(len(found[stage]) for stage in RESNET_STAGES), names


def _character(stage: int, block: int) -> str:
    return f"{stage}{chr(ord('a') + block)}"


def _caffe(stage: int, block: int) -> str:
    return f"{stage}b{block}" if block else f"{stage}a"


_NAMINGS = (_character, block_name, _caffe)


def _resnet(spec: ModelSpec) -> LayerShapes:
    blocks = resnet_blocks(spec.backbone)
    assert blocks is not None
    shapes = _conv("conv1", 7, spec.image_channel_count, 64) | _norm("bn_conv1", 64)
    inputs = 64
    for stage, width, count in zip(RESNET_STAGES, RESNET_WIDTHS, blocks, strict=True):
        for block in range(count):
            branch, outputs = f"{block_name(stage, block)}_branch", EXPANSION * width
            sides = [("2a", 1, inputs, width), ("2b", 3, width, width), ("2c", 1, width, outputs)]
            for part, kernel, before, after in [*sides, *([("1", 1, inputs, outputs)] if block == 0 else [])]:
                shapes |= _conv(f"res{branch}{part}", kernel, before, after) | _norm(f"bn{branch}{part}", after)
            inputs = outputs
    return shapes


def _lite0(spec: ModelSpec) -> LayerShapes:
    shapes = _conv("stem_conv", 3, spec.image_channel_count, LITE0_STEM, bias=False) | _norm("stem_bn", LITE0_STEM)
    for block in lite0_blocks():
        wide = block.expansion * block.inputs
        if block.expansion > 1:
            shapes |= _conv(f"{block.name}_expand_conv", 1, block.inputs, wide, bias=False)
            shapes |= _norm(f"{block.name}_expand_bn", wide)
        shapes[f"{block.name}_depthwise_conv"] = (("kernel", (block.kernel, block.kernel, wide, 1)),)
        shapes |= _norm(f"{block.name}_depthwise_bn", wide)
        shapes |= _conv(f"{block.name}_project_conv", 1, wide, block.outputs, bias=False)
        shapes |= _norm(f"{block.name}_project_bn", block.outputs)
    return shapes


def _conv(name: str, kernel: int, inputs: int, outputs: int, bias: bool = True) -> LayerShapes:
    """A convolution; of the one transposed convolution, inputs and outputs are equal."""
    tensors: list[tuple[str, Shape]] = [("kernel", (kernel, kernel, inputs, outputs))]
    return {name: (*tensors, ("bias", (outputs,))) if bias else tuple(tensors)}


def _dense(name: str, inputs: int, outputs: int) -> LayerShapes:
    return {name: (("kernel", (inputs, outputs)), ("bias", (outputs,)))}


def _norm(name: str, channels: int) -> LayerShapes:
    return {name: tuple((tensor, (channels,)) for tensor in ("gamma", "beta", "moving_mean", "moving_variance"))}
