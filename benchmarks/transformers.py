"""Transformer encoders with random weights, built as exporters write them: what is timed, without PyTorch."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Shape:
    """Size of a vision transformer."""

    name: str
    width: int
    heads: int
    layers: int
    image: int = 224
    patch: int = 16
    classes: int = 1000

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2 + 1


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("deit-tiny", 192, 3, 12),
        Shape("deit-small", 384, 6, 12),
        Shape("vit-base", 768, 12, 12),
        Shape("vit-large", 1024, 16, 24),
        Shape("vit-huge", 1280, 16, 32, patch=14),
    )
}


class _Graph:
    """Collects nodes and weights under names like those that exporters give."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def weight(self, name: str, *shape: int, scale: float = 0.02) -> str:
        values = (self.random.standard_normal(shape, np.float32) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, name: str, values: object, dtype: type = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", rows, columns)], f"{name}/MatMul")
        return self.node("Add", [product, self.weight(f"{name}.bias", columns)], f"{name}/Add")

    def norm(self, x: str, name: str, width: int) -> str:
        scale = self.constant(f"{name}.weight", np.ones(width))
        bias = self.constant(f"{name}.bias", np.zeros(width))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-6)

    def gelu(self, x: str, name: str) -> str:
        root = self.constant(f"{name}.root", np.sqrt(2.0))
        one = self.constant(f"{name}.one", 1.0)
        half = self.constant(f"{name}.half", 0.5)
        erf = self.node("Erf", [self.node("Div", [x, root], f"{name}/Div")], f"{name}/Erf")
        product = self.node("Mul", [x, self.node("Add", [erf, one], f"{name}/Add")], f"{name}/Mul")
        return self.node("Mul", [product, half], f"{name}/Mul_1")


def vision_transformer(shape: Shape, seed: int = 0) -> onnx.ModelProto:
    """Return a ViT classifier: input `pixel_values` float32 `[batch, 3, image, image]`, output `logits`."""
    graph = _Graph(seed)
    width, heads = shape.width, shape.heads
    size = width // heads
    kernel = graph.weight("patch.weight", width, 3, shape.patch, shape.patch)
    patches = graph.node(
        "Conv",
        ["pixel_values", kernel, graph.weight("patch.bias", width)],
        "patch/Conv",
        kernel_shape=[shape.patch, shape.patch],
        strides=[shape.patch, shape.patch],
    )
    flat = graph.node("Reshape", [patches, graph.constant("flat", [0, width, -1], np.int64)], "flatten")
    tokens = graph.node("Transpose", [flat], "tokens", perm=[0, 2, 1])
    batch = graph.node("Shape", ["pixel_values"], "batch", start=0, end=1)
    target = graph.node("Concat", [batch, graph.constant("class_shape", [1, width], np.int64)], "class_target", axis=0)
    class_token = graph.node("Expand", [graph.weight("class_token", 1, 1, width), target], "class_expand")
    x = graph.node("Concat", [class_token, tokens], "with_class", axis=1)
    x = graph.node("Add", [x, graph.weight("positions", 1, shape.tokens, width)], "embedded")
    to_heads = graph.constant("to_heads", [0, 0, heads, size], np.int64)
    from_heads = graph.constant("from_heads", [0, 0, width], np.int64)
    scale = graph.constant("attention_scale", size**-0.5)
    for layer in range(shape.layers):
        name = f"layer.{layer}"
        normed = graph.norm(x, f"{name}/norm_1", width)

        def heads_of(part: str, permutation: list[int], source: str = normed, name: str = name) -> str:
            split = graph.node(
                "Reshape", [graph.linear(source, f"{name}/{part}", width, width), to_heads], f"{name}/{part}/Reshape"
            )
            return graph.node("Transpose", [split], f"{name}/{part}/Transpose", perm=permutation)

        query, key, value = (
            heads_of("query", [0, 2, 1, 3]),
            heads_of("key", [0, 2, 3, 1]),
            heads_of("value", [0, 2, 1, 3]),
        )
        scores = graph.node("Mul", [graph.node("MatMul", [query, key], f"{name}/scores"), scale], f"{name}/scale")
        attention = graph.node("Softmax", [scores], f"{name}/softmax", axis=-1)
        context = graph.node("MatMul", [attention, value], f"{name}/context")
        joined = graph.node("Transpose", [context], f"{name}/join", perm=[0, 2, 1, 3])
        joined = graph.node("Reshape", [joined, from_heads], f"{name}/join_heads")
        x = graph.node("Add", [graph.linear(joined, f"{name}/output", width, width), x], f"{name}/residual_1")
        hidden = graph.linear(graph.norm(x, f"{name}/norm_2", width), f"{name}/up", width, 4 * width)
        down = graph.linear(graph.gelu(hidden, f"{name}/gelu"), f"{name}/down", 4 * width, width)
        x = graph.node("Add", [down, x], f"{name}/residual_2")
    x = graph.norm(x, "norm", width)
    first = graph.node("Gather", [x, graph.constant("first", 0, np.int64)], "class_token_out", axis=1)
    weight = graph.weight("classifier.weight", shape.classes, width)
    bias = graph.weight("classifier.bias", shape.classes)
    graph.nodes.append(helper.make_node("Gemm", [first, weight, bias], ["logits"], name="classifier", transB=1))
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, shape.image, shape.image])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", shape.classes])
    body = helper.make_graph(graph.nodes, shape.name, [pixels], [logits], graph.weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
