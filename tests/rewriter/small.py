"""Small graphs, written in onnx's text form, and one-line ways to rewrite and run them."""

import numpy as np
import onnx
import onnx.parser

from emu.rewriter import rewrite

from .exported import run, with_plain_products


def model(
    body: str,
    inputs: str = "float[batch, 4] x",
    outputs: str = "float[batch, n] y",
    opset: int = 17,
    ir_version: int = 8,
    imports: str = "",
    functions: str = "",
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A model from the text of its nodes; node names are the names of their first outputs."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]>'
    proto = onnx.parser.parse_model(f"{head} small ({inputs}) => ({outputs}) {{ {body} }} {functions}")
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_same_results(original: onnx.ModelProto, *feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Rewrites a model, compares the results without disturbance, and gives the rewritten model."""
    rewritten = rewrite(original, device="ideal").model
    plain = with_plain_products(rewritten)
    for inputs in feeds:
        for expected, result in zip(run(original, inputs), run(plain, inputs), strict=True):
            assert result.shape == expected.shape
            np.testing.assert_allclose(result, expected, atol=1e-5)
    return rewritten


def crossbars(rewritten: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in rewritten.graph.node if node.domain == "emu"}


def attributes(node: onnx.NodeProto) -> dict[str, int | str]:
    return {a.name: a.s.decode() if a.type == onnx.AttributeProto.STRING else a.i for a in node.attribute}


def initializer(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return onnx.numpy_helper.to_array(next(each for each in proto.graph.initializer if each.name == name))


def transformer(
    layers: int = 1, batch: str = "batch", width: int = 8, heads: int = 2, tokens: int = 5
) -> onnx.ModelProto:
    """An encoder with its projections, FFNs and a classifier, named as `q0`, `scores0`, `up0`, ..., `classifier`."""
    weights: dict[str, np.ndarray] = {"shape": np.array([0, 0, heads, width // heads]), "flat": np.array([0, 0, width])}
    weights |= {"first": np.array(0)}
    body, x = "", "x"
    for i in range(layers):
        for place, name in enumerate("qkvo"):
            weights[f"w{name}{i}"] = values(width, width, seed=10 * i + place)
        weights[f"wup{i}"], weights[f"wdown{i}"] = values(width, 12, seed=5), values(12, width, seed=6)
        body += f"""
            q{i} = MatMul({x}, wq{i})  k{i} = MatMul({x}, wk{i})  v{i} = MatMul({x}, wv{i})
            qs{i} = Reshape(q{i}, shape)  ks{i} = Reshape(k{i}, shape)  vs{i} = Reshape(v{i}, shape)
            qh{i} = Transpose <perm = [0, 2, 1, 3]> (qs{i})  kh{i} = Transpose <perm = [0, 2, 3, 1]> (ks{i})
            vh{i} = Transpose <perm = [0, 2, 1, 3]> (vs{i})
            scores{i} = MatMul(qh{i}, kh{i})  weights{i} = Softmax <axis = -1> (scores{i})
            context{i} = MatMul(weights{i}, vh{i})
            merged{i} = Transpose <perm = [0, 2, 1, 3]> (context{i})  joined{i} = Reshape(merged{i}, flat)
            output{i} = MatMul(joined{i}, wo{i})  middle{i} = Add({x}, output{i})
            up{i} = MatMul(middle{i}, wup{i})  active{i} = Relu(up{i})  down{i} = MatMul(active{i}, wdown{i})
            x{i} = Add(middle{i}, down{i})
        """
        x = f"x{i}"
    body += f"token = Gather <axis = 1> ({x}, first)  classifier = Gemm <transB = 1> (token, wc)"
    return model(
        body,
        inputs=f"float[{batch}, {tokens}, {width}] x",
        outputs=f"float[{batch}, 3] classifier",
        wc=values(3, width, seed=7),
        **weights,
    )
