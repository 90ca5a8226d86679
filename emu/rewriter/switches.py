"""Numbers that a rewritten model uses only where a site is disturbed: a Where between them and what changes nothing."""

import onnx_ir as ir

SWITCH_KEY = "emu.switch"  # in the metadata of such a Where: the index of the site


def settle_switches(model: ir.Model, disturbed: frozenset[int]) -> None:
    """Puts what every switch chooses in its place, in place.

    Args:
        model: a rewritten model.
        disturbed: indices of the sites whose strength is not 0.

    """
    for node in list(model.graph):
        if SWITCH_KEY in node.metadata_props:
            chosen = node.inputs[1 if int(node.metadata_props[SWITCH_KEY]) in disturbed else 2]
            assert chosen is not None, "a Where has three inputs"
            node.outputs[0].replace_all_uses_with(chosen)
            model.graph.remove(node, safe=True)
