"""Transformer encoders with random weights, built as exporters write them: what is timed, without PyTorch."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Shape:
    """Size of a transformer encoder: of images, or of texts of `words` tokens each."""

    name: str
    width: int
    heads: int
    layers: int
    image: int = 224
    patch: int = 16
    words: int = 0
    vocabulary: int = 30522
    classes: int = 1000

    @property
    def tokens(self) -> int:
        return self.words or (self.image // self.patch) ** 2 + 1

    def inputs(self, batch: int) -> dict[str, np.ndarray]:
        """Return random samples."""
        random = np.random.default_rng(0)
        if self.words:
            ids = random.integers(0, self.vocabulary, (batch, self.words))
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return {"pixel_values": random.standard_normal((batch, 3, self.image, self.image), np.float32)}


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("deit-tiny", 192, 3, 12),
        Shape("deit-small", 384, 6, 12),
        Shape("vit-base", 768, 12, 12),
        Shape("bert-base", 768, 12, 12, words=128, classes=2),
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


def transformer(shape: Shape, seed: int = 0) -> onnx.ModelProto:
    """Return a classifier: a ViT, or a BERT where the shape is one of texts; its output is `logits`."""
    graph = _Graph(seed)
    if shape.words:
        x, mask = _embedded_words(graph, shape)
        x = _post_norm_blocks(graph, shape, x, mask)
    else:
        x = _pre_norm_blocks(graph, shape, _embedded_patches(graph, shape))
    first = graph.node("Gather", [x, graph.constant("first", 0, np.int64)], "class_token_out", axis=1)
    weight = graph.weight("classifier.weight", shape.classes, shape.width)
    bias = graph.weight("classifier.bias", shape.classes)
    graph.nodes.append(helper.make_node("Gemm", [first, weight, bias], ["logits"], name="classifier", transB=1))
    image = ["batch", 3, shape.image, shape.image]
    inputs = (
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "words"]) for name in _TEXT_INPUTS]
        if shape.words
        else [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, image)]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", shape.classes])
    body = helper.make_graph(graph.nodes, shape.name, inputs, [logits], graph.weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


_TEXT_INPUTS = ("input_ids", "attention_mask")


def _embedded_patches(graph: _Graph, shape: Shape) -> str:
    width = shape.width
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
    return graph.node("Add", [x, graph.weight("positions", 1, shape.tokens, width)], "embedded")


def _embedded_words(graph: _Graph, shape: Shape) -> tuple[str, str]:
    """Return the embedded tokens, and what is added to attention scores."""
    table = graph.weight("words", shape.vocabulary, shape.width)
    x = graph.node("Gather", [table, "input_ids"], "word_embedding", axis=0)
    x = graph.node("Add", [x, graph.weight("positions", 1, shape.words, shape.width)], "embedded")
    x = graph.norm(x, "embedding_norm", shape.width)
    mask = graph.node("Cast", ["attention_mask"], "mask/Cast", to=TensorProto.FLOAT)
    mask = graph.node("Unsqueeze", [mask, graph.constant("mask_axes", [1, 2], np.int64)], "mask/Unsqueeze")
    absent = graph.node("Sub", [graph.constant("present", 1.0), mask], "mask/Sub")
    return x, graph.node("Mul", [absent, graph.constant("never", -1e4)], "mask/Mul")


def _attention(graph: _Graph, shape: Shape, x: str, name: str, mask: str | None = None) -> str:
    width, heads = shape.width, shape.heads
    size = width // heads
    to_heads = graph.constant(f"{name}/to_heads", [0, 0, heads, size], np.int64)

    def heads_of(part: str, permutation: list[int]) -> str:
        split = graph.node(
            "Reshape", [graph.linear(x, f"{name}/{part}", width, width), to_heads], f"{name}/{part}/Reshape"
        )
        return graph.node("Transpose", [split], f"{name}/{part}/Transpose", perm=permutation)

    query, key, value = (
        heads_of("query", [0, 2, 1, 3]),
        heads_of("key", [0, 2, 3, 1]),
        heads_of("value", [0, 2, 1, 3]),
    )
    scores = graph.node("MatMul", [query, key], f"{name}/scores")
    scores = graph.node("Mul", [scores, graph.constant(f"{name}/size", size**-0.5)], f"{name}/scale")
    if mask is not None:
        scores = graph.node("Add", [scores, mask], f"{name}/mask")
    attention = graph.node("Softmax", [scores], f"{name}/softmax", axis=-1)
    context = graph.node("MatMul", [attention, value], f"{name}/context")
    joined = graph.node("Transpose", [context], f"{name}/join", perm=[0, 2, 1, 3])
    from_heads = graph.constant(f"{name}/from_heads", [0, 0, width], np.int64)
    joined = graph.node("Reshape", [joined, from_heads], f"{name}/join_heads")
    return graph.linear(joined, f"{name}/output", width, width)


def _feed_forward(graph: _Graph, shape: Shape, x: str, name: str) -> str:
    hidden = graph.gelu(graph.linear(x, f"{name}/up", shape.width, 4 * shape.width), f"{name}/gelu")
    return graph.linear(hidden, f"{name}/down", 4 * shape.width, shape.width)


def _pre_norm_blocks(graph: _Graph, shape: Shape, x: str) -> str:
    for layer in range(shape.layers):
        name = f"layer.{layer}"
        attended = _attention(graph, shape, graph.norm(x, f"{name}/norm_1", shape.width), name)
        x = graph.node("Add", [attended, x], f"{name}/residual_1")
        fed = _feed_forward(graph, shape, graph.norm(x, f"{name}/norm_2", shape.width), name)
        x = graph.node("Add", [fed, x], f"{name}/residual_2")
    return graph.norm(x, "norm", shape.width)


def _post_norm_blocks(graph: _Graph, shape: Shape, x: str, mask: str) -> str:
    for layer in range(shape.layers):
        name = f"layer.{layer}"
        x = graph.node("Add", [_attention(graph, shape, x, name, mask), x], f"{name}/residual_1")
        x = graph.norm(x, f"{name}/norm_1", shape.width)
        x = graph.node("Add", [_feed_forward(graph, shape, x, name), x], f"{name}/residual_2")
        x = graph.norm(x, f"{name}/norm_2", shape.width)
    return x
