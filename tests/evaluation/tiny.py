"""Models, tokenizers and image processors small enough to know by heart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "dog",
    "ran",
    "red",
    "blue",
    "sky",
    "is",
    "what",
    "where",
    "?",
    ".",
    ":",
]
WORDS += ["Question", "Answer"]
ID = {word: index for index, word in enumerate(WORDS)}


def token_model(
    table: np.ndarray,
    weights: Sequence[np.ndarray],
    outputs: Sequence[str],
    *,
    mean: bool = False,
    length: int | str = "tokens",
    batch: int | str = "rows",
    extra_inputs: Sequence[str] = (),
) -> onnx.ModelProto:
    """A row of `table` for each token (their mean over tokens, if `mean`), times each of `weights`: one output each.

    A weight of one axis gives an output without that axis. Extra inputs are taken and not used.
    """
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["looked_up"])]
    hidden, rank = "looked_up", 3
    if mean:
        nodes.append(helper.make_node("ReduceMean", [hidden], ["mean"], axes=[1], keepdims=0))
        hidden, rank = "mean", 2
    constants = [numpy_helper.from_array(table.astype(np.float32), "table")]
    results = []
    for name, weight in zip(outputs, weights, strict=True):
        matrix = weight.reshape(len(weight), -1).astype(np.float32)
        constants.append(numpy_helper.from_array(matrix, f"weight_{name}"))
        product = name if weight.ndim == 2 else f"{name}_column"
        nodes.append(helper.make_node("MatMul", [hidden, f"weight_{name}"], [product], name=f"/{name}/MatMul"))
        if weight.ndim == 1:
            constants.append(numpy_helper.from_array(np.array([-1]), f"axis_{name}"))
            nodes.append(helper.make_node("Squeeze", [product, f"axis_{name}"], [name]))
        shape = [batch, *([length] if rank == 3 else []), *([weight.shape[1]] if weight.ndim == 2 else [])]
        results.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    for name in extra_inputs:  # an input that feeds no node is dropped by onnxruntime: use it without an effect
        nodes.append(helper.make_node("Identity", [name], [f"{name}_seen"]))
        results.append(helper.make_tensor_value_info(f"{name}_seen", TensorProto.INT64, [batch, length]))
    names = ["input_ids", *extra_inputs]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, length]) for name in names]
    graph = helper.make_graph(nodes, "tiny", inputs, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def image_model(channels: int, size: int, classes: int, name: str = "pixel_values") -> onnx.ModelProto:
    """Class scores: class 0 where the first channel is brightest, class 1 for the next, and so on."""
    weight = np.zeros((channels * size * size, classes), np.float32)
    for channel in range(min(channels, classes)):
        weight[channel * size * size : (channel + 1) * size * size, channel] = 1
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"], name="/head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_image",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save_tokenizer(folder: Path, **options: Any) -> None:
    """A tokenizer of `WORDS`, with [CLS] and [SEP] as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": text for name, text in names.items()}, **options
    ).save_pretrained(folder)


def save_image_processor(folder: Path, size: int, channels: int = 3) -> None:
    """Scales to `size` and to 0 to 1."""
    from transformers import ViTImageProcessor

    means = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels}
    ViTImageProcessor(size={"height": size, "width": size}, **means).save_pretrained(folder)
