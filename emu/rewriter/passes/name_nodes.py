"""Gives every node of the main graph a name of its own: manifests and selections speak of nodes by name."""

import onnx_ir as ir


class NameNodesPass(ir.passes.InPlacePass):
    """Names nodes without a name after their operator and first output; a repeated name gets a number."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Keeps every name that is unique already."""
        taken: set[str] = set()
        modified = False
        for node in model.graph:
            wanted = node.name or f"{node.op_type}:{node.outputs[0].name if node.outputs else ''}"
            name, number = wanted, 1
            while name in taken:
                number += 1
                name = f"{wanted}_{number}"
            taken.add(name)
            if name != node.name:
                node.name = name
                modified = True
        return ir.passes.PassResult(model, modified)
