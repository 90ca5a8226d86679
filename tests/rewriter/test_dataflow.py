"""What carries data, and what only steers."""

import onnx_ir as ir
import pytest

from emu.rewriter.dataflow import DataFlow

from .small import model, values


@pytest.mark.parametrize(
    "body",
    [
        "y = CastLike(w, x)",
        "s = Shape(x) y = Expand(w, s)",
        "s = Shape(x) z = ConstantOfShape(s) y = Add(z, w)",
        "y = EyeLike(x)",
    ],
)
def test_an_activation_that_gives_its_type_or_shape_alone_is_no_data(body):
    """So the scale of an attention, cast to the type of a hidden state, comes from no projection."""
    graph = ir.from_proto(model(body, inputs="float[4, 4] x", outputs="float[4, 4] y", w=values(4, 4))).graph
    assert graph.outputs[0] not in DataFlow(graph).depends_on_inputs
    graph = ir.from_proto(model("y = Add(x, w)", inputs="float[4, 4] x", w=values(4, 4))).graph
    assert graph.outputs[0] in DataFlow(graph).depends_on_inputs
