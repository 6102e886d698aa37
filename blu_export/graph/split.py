"""The inverse of ``compose``: the subnetworks back out of a composed file.

Nothing but ``onnx`` is needed, so a portable file that was exported once can be typed anew, or composed
for another target, where TensorFlow is not installed.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from blu_export.contract import SUBNETWORKS
from blu_export.errors import ModelFileError
from blu_export.graph.compression import restore
from blu_export.spec import ModelSpec


def split(model: onnx.ModelProto, spec: ModelSpec) -> dict[str, onnx.ModelProto]:
    """The subnetworks of a composed model; see ``learned.subnetworks`` for what they compute.

    Weights are shared with ``model`` where protobuf allows it; treat it as given away.

    Raises:
        ModelFileError: the model lacks a part, or a part is not joined to the rest as ``compose`` does it.
    """
    model = restore(model)
    initializers = {t.name: t for t in model.graph.initializer}
    halves = {
        n.output[0]
        for n in model.graph.node
        if n.op_type == "Cast" and _attribute(n, "to") == TensorProto.FLOAT16
    }  # fmt: skip
    parts = {}
    for part, (input_name, output_names) in SUBNETWORKS.items():
        nodes = [n for n in model.graph.node if n.name.startswith(f"{part}/")]
        made = {name for node in nodes for name in node.output}
        used = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        inputs = [name for name in used if name not in initializers]
        if len(inputs) != 1 or not made.issuperset(output_names):
            raise ModelFileError(
                f"The graph has no {part} that can be taken out (it is fed by {', '.join(inputs) or 'nothing'}).",
                "Export the model again with blu export onnx.",
            )
        copies = [_fed_by(node, inputs[0], input_name) for node in nodes]
        kind = TensorProto.FLOAT16 if inputs[0] in halves else TensorProto.FLOAT
        graph = helper.make_graph(
            copies,
            part,
            [helper.make_tensor_value_info(input_name, kind, _input_shape(part, spec))],
            [onnx.ValueInfoProto(name=name) for name in output_names],
            [initializers[name] for name in used if name in initializers],
        )
        opsets = [helper.make_opsetid(o.domain, o.version) for o in model.opset_import]
        bare = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version, producer_name="blu")
        parts[part] = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
        del parts[part].graph.value_info[:]
    return parts


def _input_shape(part: str, spec: ModelSpec) -> list[int | str]:
    channels = spec.top_down_pyramid_size
    if part == "trunk":
        return ["batch", spec.image_channel_count, *(spec.canvas or ("height", "width"))]
    if part == "box_head":
        return ["batch", spec.pool_size**2 * channels]
    return ["batch", channels, spec.mask_pool_size, spec.mask_pool_size]


def _fed_by(node: onnx.NodeProto, old: str, name: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [name if n == old else n for n in node.input]
    return copy


def _attribute(node: onnx.NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
