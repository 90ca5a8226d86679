"""Models whose attributes ask for the impossible: a sentence, and neither a hang nor all of the memory."""

import numpy as np
import onnx
import pytest

from emu.errors import InputError
from emu.rewriter import rewrite

from .small import assert_same_results, crossbars, model, values

HUGE = 2**60


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("big = Tile(w, sizes)", {"sizes": np.array([1, 2**62])}),
        ("big = Expand(w, sizes)", {"sizes": np.array([HUGE, 4, 6])}),
        ("c = ConstantOfShape(sizes) big = Add(w, c)", {"sizes": np.array([2**31, 4, 6])}),
        (
            "k = Range(zero, sizes, one) f = Cast <to = 1> (k) big = Add(w, f)",
            {"zero": np.array(0), "sizes": np.array(HUGE), "one": np.array(1)},
        ),
        ("big = Pad(w, sizes)", {"sizes": np.array([0, 0, 0, HUGE])}),
    ],
)
def test_a_weight_that_no_memory_holds_is_refused(body, constants):
    with pytest.raises(InputError, match="too large|no matrix product"):
        rewrite(model(f"{body} y = MatMul(x, big)", w=values(4, 6), **constants), only="*")


def test_an_equation_that_is_none_is_refused_before_anything_infers_shapes_from_it():
    broken = model("y = Einsum <equation = 'b'> (x, w)".replace("'", '"'), w=values(4, 6))
    broken.graph.node[0].attribute[0].s = b"b.d,de->be"
    with pytest.raises(InputError, match=r"the equation 'b\.d,de->be' of node 'y' \(Einsum\) is none"):
        rewrite(broken, only="*")


def test_heads_of_an_attention_must_divide_its_width():
    att = model(
        "y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x)",
        inputs="float[batch, 5, 4] x",
        outputs="float[a, b, c] y",
        opset=23,
        ir_version=11,
    )
    att.graph.node[0].attribute[0].i = HUGE
    with pytest.raises(InputError, match="q_num_heads is 1152921504606846976, expected a divisor of the width"):
        rewrite(att, only="*")


def test_a_constant_that_is_used_many_times_over_is_computed_once():
    doubled = model("y = MatMul(x, w30)", w=values(4, 6))
    for i in range(30):
        before = f"w{i}" if i else "w"
        doubled.graph.node.insert(i, onnx.helper.make_node("Add", [before, before], [f"w{i + 1}"]))
    doubled.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values(4, 6) / 2**30, "w"))
    assert_same_results(doubled, {"x": values(3, 4, seed=1)})


def test_a_long_chain_of_constants_is_followed():
    chain = model("y = MatMul(x, w3000)", w=values(4, 6))
    for i in range(3000):
        chain.graph.node.insert(i, onnx.helper.make_node("Neg", [f"w{i}" if i else "w"], [f"w{i + 1}"]))
    assert len(crossbars(rewrite(chain, device="ideal").model)) == 1


def test_what_is_wrong_with_a_value_is_said_and_not_where_the_reader_was():
    twice = model("a = MatMul(x, w) y = Relu(a)", w=values(4, 6))
    twice.graph.node[1].output[0] = "a"
    with pytest.raises(InputError) as refusal:
        rewrite(twice, only="*")
    assert "'a'" in str(refusal.value)
    assert "_deserialize" not in str(refusal.value)


@pytest.mark.parametrize("kind", [0, 999])
def test_an_element_type_that_onnx_does_not_have_is_refused(kind):
    strange = model("y = MatMul(x, w)", w=values(4, 6))
    strange.graph.initializer[0].data_type = kind
    with pytest.raises(InputError, match=f"tensor 'w' is of the element type {kind}"):
        rewrite(strange, only="*")


def _sparse(sizes: list[int], indices: list[int]) -> onnx.SparseTensorProto:
    numbers = onnx.numpy_helper.from_array(np.ones(len(indices), dtype=np.float32), "w")
    places = onnx.numpy_helper.from_array(np.array(indices, dtype=np.int64), "places")
    sparse = onnx.helper.make_sparse_tensor(numbers, places, [4, 6])
    del sparse.dims[:]
    sparse.dims.extend(sizes)
    return sparse


@pytest.mark.parametrize("sizes", [[HUGE], [2**30, 2**30], [4, -6]])
def test_a_sparse_tensor_that_cannot_be_written_out_is_refused(sizes):
    large = model("y = MatMul(x, w)")
    large.graph.sparse_initializer.append(_sparse(sizes, [1, 2]))
    with pytest.raises(InputError, match="sparse tensor 'w' has the shape"):
        rewrite(large, only="*")


def test_a_sparse_constant_is_written_out():
    constant = model("y = MatMul(x, w)")
    constant.graph.node.insert(
        0, onnx.helper.make_node("Constant", [], ["w"], sparse_value=_sparse([4, 6], [1, 5, 20]))
    )
    assert_same_results(constant, {"x": values(3, 4)})


def test_codes_that_a_subgraph_captures_stay_for_it():
    shared = model(
        """
        wide = DequantizeLinear <axis = 1> (codes, scale)  m = MatMul(x, wide)
        y = If (flag) <
            then_branch = one () => (float[p, q] t) { t = Relu(m) },
            else_branch = two () => (float[p, q] e) { e = MatMul(x, wide) }
        >
        """,
        inputs="float[batch, 4] x, bool flag",
        codes=np.arange(24, dtype=np.int8).reshape(4, 6),
        scale=np.full(6, 0.02, np.float32),
    )
    assert_same_results(shared, *({"x": values(3, 4), "flag": np.array(flag)} for flag in (True, False)))


def test_functions_that_stand_for_more_nodes_than_memory_holds_are_refused():
    opsets = '<domain: "own", opset_import: ["" : 17, "own" : 1]>'
    functions = f"{opsets} F0 (a) => (r) {{ r = Relu(a) }}"
    for i in range(1, 24):
        functions += f"{opsets} F{i} (a) => (r) {{ b = own.F{i - 1}(a) r = own.F{i - 1}(b) }}"
    doubled = model("h = MatMul(x, w) y = own.F23(h)", imports=', "own" : 1', functions=functions, w=values(4, 3))
    with pytest.raises(InputError, match="8388609 nodes with its functions written out"):
        rewrite(doubled, only="*")
