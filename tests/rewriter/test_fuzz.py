"""Broken and odd graphs: the answer is always a rewritten model that onnxruntime loads, or one sentence.

Mutations are drawn from a seed, so that a failure can be run again: the test's parameter is the seed.
"""

import atexit
import functools
import random
import subprocess
import sys
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto

import emu
from emu.demo import MODELS, model_path
from emu.errors import InputError
from tests.rewriter.exported import exported_graphs, path_of

SEEDS_PER_RUN = 40
SEEDS_IN_SLOW_RUN = 500


def sources() -> list[bytes]:
    files = [model_path(name) for name in MODELS]
    files += [path_of(graph) for graph in exported_graphs()[::4]]
    return [path.read_bytes() for path in files if path.stat().st_size < 800_000]


SOURCES = sources()


def drop_node(graph: onnx.GraphProto, draw: random.Random) -> None:
    del graph.node[draw.randrange(len(graph.node))]


def duplicate_node(graph: onnx.GraphProto, draw: random.Random) -> None:
    graph.node.append(graph.node[draw.randrange(len(graph.node))])


def copy_node_under_a_new_name(graph: onnx.GraphProto, draw: random.Random) -> None:
    node = graph.node.add()
    node.CopyFrom(draw.choice(graph.node[:-1]))
    for index, name in enumerate(node.output):
        node.output[index] = f"{name}_copy"


def retype_node(graph: onnx.GraphProto, draw: random.Random) -> None:
    kinds = ["MatMul", "Gemm", "Conv", "Softmax", "Add", "Reshape", "Transpose", "If", "Nonsense", "Attention", "Split"]
    draw.choice(graph.node).op_type = draw.choice(kinds)


def change_domain(graph: onnx.GraphProto, draw: random.Random) -> None:
    draw.choice(graph.node).domain = draw.choice(["com.microsoft", "ai.onnx.ml", "emu", "my.domain"])


def rename_value(graph: onnx.GraphProto, draw: random.Random) -> None:
    node = draw.choice(graph.node)
    names = node.input if draw.random() < 0.5 and node.input else node.output
    if names:
        names[draw.randrange(len(names))] = draw.choice(["", "x", "emu.seed", "emu.device", names[0] + "'", "é" * 3])


def rewire_input(graph: onnx.GraphProto, draw: random.Random) -> None:
    values = [name for node in graph.node for name in node.output]
    values += [tensor.name for tensor in graph.initializer] + [value.name for value in graph.input]
    node = draw.choice([each for each in graph.node if each.input])
    node.input[draw.randrange(len(node.input))] = draw.choice(values)


def drop_input(graph: onnx.GraphProto, draw: random.Random) -> None:
    node = draw.choice([each for each in graph.node if each.input])
    del node.input[draw.randrange(len(node.input))]


def change_attribute(graph: onnx.GraphProto, draw: random.Random) -> None:
    attributes = [each for node in graph.node for each in node.attribute]
    if not attributes:
        return
    attribute = draw.choice(attributes)
    attribute.i = draw.choice([-1, 0, 1, 7, 2**40])
    attribute.f = draw.choice([0.0, float("nan"), 1e38])
    if attribute.ints:
        attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice([-1, 0, 1, 5, 2**40])


def change_weight(graph: onnx.GraphProto, draw: random.Random) -> None:
    if not graph.initializer:
        return
    tensor = draw.choice(graph.initializer)
    kind = draw.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice([0, 1, 3, -1, 2**33])
    elif kind == 1:
        kinds = [TensorProto.FLOAT16, TensorProto.INT8, TensorProto.STRING, TensorProto.DOUBLE, 99]
        tensor.data_type = draw.choice(kinds)
    elif kind == 2 and len(tensor.raw_data) > 0:
        tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data))]
    else:
        graph.initializer.remove(tensor)


def change_boundary(graph: onnx.GraphProto, draw: random.Random) -> None:
    boundary = draw.choice([graph.input, graph.output])
    kind = draw.randrange(3)
    if kind == 0:
        del boundary[:]
    elif not boundary:
        return
    elif kind == 1:
        boundary[draw.randrange(len(boundary))].name = "somewhere"
    else:
        boundary[0].type.tensor_type.elem_type = draw.choice([TensorProto.INT64, TensorProto.DOUBLE])


GRAPH_MUTATIONS: list[Callable[[onnx.GraphProto, random.Random], None]] = [
    drop_node, duplicate_node, copy_node_under_a_new_name, retype_node, change_domain, rename_value, rewire_input,
    rewire_input, drop_input, change_attribute, change_weight, change_boundary,
]  # fmt: skip


def corrupt_bytes(data: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(data)
    kind = draw.randrange(3)
    if kind == 0:
        return bytes(damaged[: draw.randrange(len(damaged))])
    # The graph's structure is near the start and the end, weights between.
    for _ in range(draw.choice([1, 3, 20])):
        place = draw.randrange(len(damaged)) if kind == 1 else draw.randrange(2000)
        damaged[place] = draw.randrange(256)
    return bytes(damaged)


def mutant(seed: int) -> bytes:
    draw = random.Random(seed)
    data = draw.choice(SOURCES)
    if draw.random() < 0.25:
        return corrupt_bytes(data, draw)
    model = onnx.load_model_from_string(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        draw.choice(GRAPH_MUTATIONS)(model.graph, draw)
        if not model.graph.node:
            break
    return model.SerializeToString()


# Imports once, and loads each model in a child of its own.
LOADER = """
import os, sys
import emu, emu.rewriter, emu.runtime
for line in sys.stdin:
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        code = 1
        try:
            emu.session(line.rstrip("\\n"), threads=1)
            code = 0
        finally:
            os._exit(code)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@functools.cache
def loader() -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def onnxruntime_loads(path: object) -> bool:
    """In a process of its own: onnxruntime 1.31 crashes on some mutants that onnx's strict checker accepts."""
    process = loader()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    return int(process.stdout.readline()) == 0


def check(seed: int, folder: object) -> str:
    path = folder / f"mutant_{seed}.onnx"  # type: ignore[operator]
    path.write_bytes(mutant(seed))
    target = folder / f"mutant_{seed}.out.onnx"  # type: ignore[operator]
    try:
        emu.rewrite(path, device="rram", only="*").save(target)
    except InputError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence and "Traceback" not in sentence, (seed, sentence)
        assert not target.exists(), seed
        return "refused"
    if not onnxruntime_loads(target):
        # Then the fault must be the original's: onnxruntime refuses that too, or crashes on it.
        assert not onnxruntime_loads(path), seed
        return "onnxruntime refuses the original too"
    return "rewritten"


def run_seeds(first: int, count: int, folder: object) -> dict[str, int]:
    results = [check(seed, folder) for seed in range(first, first + count)]
    return {result: results.count(result) for result in set(results)}


def test_mutants_are_rewritten_or_refused_in_one_sentence(tmp_path: object) -> None:
    results = run_seeds(0, SEEDS_PER_RUN, tmp_path)
    assert results.get("refused", 0) > 0 and results.get("rewritten", 0) > 0


@pytest.mark.slow
def test_many_mutants_are_rewritten_or_refused_in_one_sentence(tmp_path: object) -> None:
    run_seeds(1000, SEEDS_IN_SLOW_RUN, tmp_path)
