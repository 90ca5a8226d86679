"""Expands ONNX's own Attention operator (opset 23 and later) into the products that it stands for."""

import onnx.inliner
import onnx_ir as ir

from emu.rewriter.dataflow import is_standard


class ExpandAttentionPass(ir.passes.FunctionalPass):
    """Inlines the body that the ONNX standard defines for Attention.

    The nodes of a body are named after the Attention node and take over its metadata, so that names and scopes still
    say where a product belongs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Gives a new model; weights are shared with the old one and never copied."""
        attentions = [node for node in model.graph if is_standard(node) and node.op_type == "Attention"]
        if not attentions:
            return ir.passes.PassResult(model.clone(), modified=False)
        tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
        proto = _without_weights(model)
        proto = onnx.inliner.inline_selected_functions(
            proto, [("", "Attention")], exclude=False, inline_schema_functions=True
        )
        expanded = ir.from_proto(proto)
        _restore_weights(expanded, tensors)
        values = ir.convenience.create_value_mapping(expanded.graph)
        for attention in attentions:
            _name_body(attention, values)
        return ir.passes.PassResult(expanded, modified=True)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model's protobuf with initializers as inputs: the inliner copies what it is given, and is limited to 2 GB."""
    bare = model.clone()
    for value in list(bare.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)  # type: ignore[arg-type]
        bare.graph.initializers.pop(value.name or "")
        value.const_value = None
        bare.graph.inputs.append(value)
    return ir.to_proto(bare)


def _restore_weights(model: ir.Model, tensors: dict[str, ir.TensorProtocol | None]) -> None:
    weights = [value for value in model.graph.inputs if value.name in tensors]
    for value in weights:
        model.graph.inputs.remove(value)
        value.const_value = tensors[value.name or ""]
        model.graph.register_initializer(value)


def _name_body(attention: ir.Node, values: dict[str, ir.Value]) -> None:
    """Names the nodes between the inputs and outputs of what was `attention`."""
    edges = {values[value.name] for value in attention.inputs if value is not None and value.name in values}
    ends = {value.name for value in attention.outputs}
    pending = [values[value.name] for value in attention.outputs if value.name in values]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or value in edges or node.name:
            continue
        inner = next((output.name for output in node.outputs if output.name), "") or node.op_type
        label = node.op_type if inner in ends else inner.removesuffix("".join(_suffix(inner)))
        node.name = f"{attention.name}/{label}"
        node.metadata_props.update(attention.metadata_props)
        pending.extend(each for each in node.inputs if each is not None)


def _suffix(name: str) -> list[str]:
    """The inliner's mark at the end of a name that it made unique: two underscores and a number."""
    head, mark, number = name.rpartition("__")
    return [mark, number] if head and number.isdigit() else [""]
