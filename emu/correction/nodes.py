"""Writes corrections into a rewritten model, as plain ONNX nodes behind the sites.

They act where the site is disturbed: at strength 0, or where a run disturbs a single head, outputs stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.contract.site import Site
from emu.correction.fit import Correction
from emu.rewriter.builder import GraphBuilder
from emu.rewriter.load import DOMAIN
from emu.rewriter.switches import SWITCH_KEY


def write_corrections(
    model: ir.Model, sites: Mapping[str, Site], corrections: Mapping[str, Correction], name: str
) -> None:
    """Adds the corrections of sites, by the names of their nodes, to a rewritten model, in place."""
    builder = GraphBuilder(model.graph, name)
    values = {value.name: value for value in model.graph.inputs}
    zero, none = builder.constant("emu.zero", np.array(0, np.float32)), builder.constant("emu.no_head", np.array(0))
    whole = builder.node("Less", [values["emu.head"], none], "emu.all_heads")
    builder.insert_first()
    nodes = {node.name: node for node in model.graph if node.domain == DOMAIN}
    for node_name, correction in corrections.items():
        node, site = nodes[node_name], sites[node_name]
        _Writer(builder, node, site, correction).write(values["emu.strength"], zero, whole)


def channel_shape(site: Site, array: NDArray[Any]) -> NDArray[Any]:
    """Numbers of columns in the shape in which they meet the site's output."""
    axes = len(site.window.split(";")) if site.window else 0
    if axes:
        return array.reshape(-1, *([1] * axes))
    return array.reshape(site.stack, 1, -1) if site.stack > 1 else array


class _Writer:
    def __init__(self, builder: GraphBuilder, node: ir.Node, site: Site, correction: Correction) -> None:
        self.builder, self.node, self.site, self.correction = builder, node, site, correction
        self.name = f"{node.name}.repair"

    def write(self, strength: ir.Value, zero: ir.Value, whole: ir.Value) -> None:
        builder, correction = self.builder, self.correction
        raw = self.node.outputs[0]
        uses, is_output = list(raw.uses()), raw.is_graph_output()
        index = builder.constant(f"{self.name}.site", np.array(self.site.index))
        own = builder.node("Gather", [strength, index], f"{self.name}.strength", axis=0)
        disturbed = builder.node("Greater", [own, zero], f"{self.name}.disturbed")
        self.acts = builder.node("And", [disturbed, whole], f"{self.name}.acts")
        y = raw
        if correction.low is not None and correction.high is not None:
            y = builder.node("Where", [builder.node("IsNaN", [y], f"{self.name}.nan"), zero, y], f"{self.name}.number")
            y = builder.node("Max", [y, self._numbers("low", correction.low, -np.inf)], f"{self.name}.above")
            y = builder.node("Min", [y, self._numbers("high", correction.high, np.inf)], f"{self.name}.within")
        if correction.gain is not None:
            y = builder.node("Mul", [y, self._numbers("gain", correction.gain, 1.0)], f"{self.name}.scaled")
        if correction.left is not None and correction.right is not None:
            left = builder.constant(f"{self.name}.left", correction.left)
            right = self._switched("right", correction.right, 0.0)
            x = self.node.inputs[0]
            path = builder.node(
                "MatMul", [builder.node("MatMul", [x, left], f"{self.name}.low"), right], f"{self.name}.path"
            )
            y = builder.node("Add", [y, path], f"{self.name}.with_path")
        if correction.bias is not None:
            y = builder.node("Add", [y, self._numbers("bias", correction.bias, 0.0)], f"{self.name}.shifted")
        y.type, y.shape = raw.type, raw.shape
        builder.insert_after(self.node)
        if is_output:
            raw.name, y.name = y.name, raw.name
            for place, output in enumerate(self.builder.graph.outputs):
                if output is raw:
                    self.builder.graph.outputs[place] = y
        for user, place in uses:
            user.replace_input_with(place, y)

    def _numbers(self, what: str, array: NDArray[Any], off: float) -> ir.Value:
        return self._switched(what, channel_shape(self.site, array), off)

    def _switched(self, what: str, array: NDArray[Any], off: float) -> ir.Value:
        """Numbers while the correction acts, else what changes nothing."""
        builder = self.builder
        given = builder.constant(f"{self.name}.{what}", array)
        instead = builder.constant(f"{self.name}.{what}.off", np.array(off, np.float32))
        value = builder.node("Where", [self.acts, given, instead], f"{self.name}.{what}.now")
        node = value.producer()
        assert node is not None, "it was made just now"
        node.metadata_props[SWITCH_KEY] = str(self.site.index)
        return value
