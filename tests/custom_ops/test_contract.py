"""What the native operators promise beyond their numbers: reproducibility, concurrency, errors that are sentences."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from emu.errors import InputError
from emu.reference.crossbar import crossbar_matmul, crossbar_matmul_dynamic, crossbar_matmul_quantized
from emu.runtime import library, library_path, session
from tests.custom_ops.one_node import controls, one_node_model, run_one_node
from tests.custom_ops.test_native_equals_twin import wide_case
from tests.reference.nodes import PLAIN_DYNAMIC, PLAIN_QUANTIZED, PLAIN_STORED

BOTH = pytest.mark.parametrize("stored", [True, False], ids=["stored", "dynamic"])


def op_of(stored: bool) -> str:
    return "CrossbarMatMul" if stored else "CrossbarMatMulDynamic"


def run(case: dict[str, Any], **session_options: Any) -> NDArray[np.float32]:
    return run_one_node(
        op_of(case["stored"]), case["attributes"], (case["left"], case["right"]), case["feeds"], **session_options
    )


@BOTH
def test_one_and_two_threads_give_the_same_bits(stored: bool) -> None:
    case = wide_case(stored)
    np.testing.assert_array_equal(run(case, threads=1), run(case, threads=2))


@BOTH
def test_another_seed_is_another_chip_and_the_same_seed_the_same(stored: bool) -> None:
    case = wide_case(stored)
    first = run(case)
    np.testing.assert_array_equal(first, run(case))
    case["feeds"] = {**case["feeds"], "seed": np.asarray(10)}
    assert not np.array_equal(first, run(case))


@BOTH
@pytest.mark.parametrize("effect", ["program or write", "output_noise", "weight_noise"])
def test_each_random_effect_follows_its_seeds(stored: bool, effect: str) -> None:
    case = wide_case(stored)
    names = case["attributes"]["entries"].split(",")
    keep = {"program or write": ("program.sigma", "write.sigma"), "output_noise": ("read.output_noise",),
            "weight_noise": ("read.weight_noise",)}[effect]  # fmt: skip
    random = ("program.sigma", "program.sigma_cycle", "write.sigma", "read.output_noise", "read.weight_noise")
    device = case["feeds"]["device"].copy()
    for index, name in enumerate(names):
        if name in random and name not in keep:
            device[index] = 0
    case["feeds"] |= {"device": device}
    first = run(case)
    case["feeds"] |= {"read_seed": np.asarray(5)}
    reread = run(case)
    fixed_with_the_chip = effect == "program or write" and stored
    assert np.array_equal(first, reread) == fixed_with_the_chip
    case["feeds"] |= {"seed": np.asarray(77)}
    assert not np.array_equal(reread, run(case))


@BOTH
@pytest.mark.parametrize("flat", [False, True])
def test_a_batch_split_in_two_meets_the_same_noise(stored: bool, flat: bool) -> None:
    case = wide_case(stored)
    whole = run({**case, "feeds": {**case["feeds"], "sample": np.asarray([100, 2])}})
    if flat:  # samples and the next dimension merged into one, as GPT-2 does with tokens and Swin with windows
        merged = {"left": case["left"].reshape(-1, *case["left"].shape[2:])}
        if not stored:
            merged["right"] = case["right"].reshape(-1, *case["right"].shape[2:])
        np.testing.assert_allclose(run({**case, **merged}).reshape(whole.shape), whole, rtol=0, atol=1e-5 * whole.max())
    for index in range(2):
        part = {**case, "left": case["left"][index : index + 1]}
        if not stored:
            part["right"] = case["right"][index : index + 1]
        if flat:
            part = {**part, "left": part["left"][0]}
            if not stored:
                part["right"] = part["right"][0]
        part["feeds"] = {**case["feeds"], "sample": np.asarray([100 + index, 1])}
        expected = whole[index] if flat else whole[index : index + 1]
        # Sums of a product may round differently; an ADC code would differ by a whole step, so noise is the same.
        np.testing.assert_allclose(run(part), expected, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_noise_differs_between_samples_tokens_and_sites() -> None:
    case = wide_case(True)
    names = case["attributes"]["entries"].split(",")
    device = case["feeds"]["device"].copy()
    device[names.index("program.sigma")] = device[names.index("program.sigma_cycle")] = 0
    same = np.broadcast_to(case["left"][:1, :1], case["left"].shape).copy()
    outputs = run({**case, "left": same, "feeds": {**case["feeds"], "device": device}})
    rows = outputs.reshape(-1, outputs.shape[-1])
    assert len(np.unique(rows, axis=0)) == len(rows)
    elsewhere = {**case["attributes"], "site": 1, "sites": 2}
    feeds = {
        **case["feeds"],
        "device": device,
        "strength": np.ones(2, np.float32),
        "ranges": np.ones((2, 4), np.float32),
    }
    other = run({**case, "left": same, "attributes": elsewhere, "feeds": feeds})
    assert not np.any(np.all(other.reshape(rows.shape) == rows, axis=1))


FRESH_PROCESS = """
import sys, numpy, onnxruntime
library, model, feeds, out = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
numpy.save(out, session.run(None, dict(numpy.load(feeds)))[0])
assert not any(name.split(".")[0] == "emu" for name in sys.modules)
"""


@BOTH
def test_a_fresh_process_with_nothing_but_onnxruntime_gives_the_same_bits(stored: bool, tmp_path: Any) -> None:
    case = wide_case(stored)
    names = ("X", "W") if stored else ("A", "B")
    operands = {names[0]: case["left"]} | ({} if stored else {names[1]: case["right"]})
    model = one_node_model(op_of(stored), case["attributes"], case["right"])
    onnx.save(model, tmp_path / "model.onnx")
    fed = {name: value for name, value in case["feeds"].items() if name != "faults"}
    np.savez(tmp_path / "feeds.npz", **operands, **fed)
    files = [str(tmp_path / name) for name in ("model.onnx", "feeds.npz", "out.npy")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(library_path()), *files], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), run(case))


@pytest.mark.parametrize("copies", [1, 3])
def test_four_threads_with_four_seeds_share_one_session(copies: int) -> None:
    case = wide_case(True)
    opened = session(one_node_model("CrossbarMatMul", case["attributes"], case["right"]), threads=1)

    def of_seed(seed: int) -> NDArray[np.float32]:
        feeds = {**case["feeds"], "seed": np.asarray(seed), "X": case["left"]}
        del feeds["faults"]
        return np.asarray(opened.run(None, feeds)[0])

    library.keep_programmed(copies)
    try:
        expected = {seed: of_seed(seed) for seed in range(4)}
        with ThreadPoolExecutor(4) as pool:
            for seed, result in pool.map(lambda i: (i % 4, of_seed(i % 4)), range(40)):
                np.testing.assert_array_equal(result, expected[seed])
    finally:
        library.keep_programmed(1)


def clean_product(left: Any, right: Any, constant: bool) -> Any:
    """MatMul as onnxruntime runs it by default, constant weights packed once."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["Y"])],
        "clean",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, None)]
        + ([] if constant else [helper.make_tensor_value_info("right", TensorProto.FLOAT, None)]),
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(right, "right")] if constant else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    clean = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return clean.run(None, {"left": left} | ({} if constant else {"right": right}))[0]


@BOTH
@pytest.mark.parametrize("after_a_chip", [False, True])
def test_strength_zero_is_bit_identical_to_the_clean_product(stored: bool, after_a_chip: bool) -> None:
    case = wide_case(stored)
    opened = session(one_node_model(op_of(stored), case["attributes"], *([case["right"]] if stored else [])))
    feeds = {**case["feeds"], **({"X": case["left"]} if stored else {"A": case["left"], "B": case["right"]})}
    feeds.pop("faults", None)
    exact = {**feeds, "strength": np.zeros(1, np.float32)}
    expected = clean_product(case["left"], case["right"], constant=stored)
    for some in [feeds, exact, exact] if after_a_chip else [exact, exact]:
        result = opened.run(None, some)[0]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("depth", [30, 256, 257, 900])
@pytest.mark.parametrize("columns", [1, 33, 200])
def test_exact_products_of_any_shape_are_onnxruntimes_to_the_bit(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    case = wide_case(True)
    case["left"] = rng.standard_normal((rows, depth), np.float32)
    case["right"] = rng.standard_normal((depth, columns), np.float32)
    case["feeds"] = {**case["feeds"], "strength": np.zeros(1, np.float32), "sample": np.asarray(0)}
    np.testing.assert_array_equal(run(case), clean_product(case["left"], case["right"], constant=True))


@BOTH
def test_an_empty_batch_gives_an_empty_output(stored: bool) -> None:
    case = wide_case(stored)
    case["left"] = case["left"][:0]
    if not stored:
        case["right"] = case["right"][:0]
    assert run(case).shape == (0, *case["left"].shape[1:-1], case["right"].shape[-1])


def set_entry(case: dict[str, Any], name: str, value: float) -> None:
    device = case["feeds"]["device"].copy()
    device[case["attributes"]["entries"].split(",").index(name)] = value
    case["feeds"]["device"] = device


BAD_CONTROLS: list[tuple[str, Any, str]] = [
    ("seed", np.asarray(-1), "input 'seed' is -1, expected 0 to 2^32 - 1."),
    ("seed", np.asarray(2**32), "input 'seed' is 4294967296, expected 0 to 2^32 - 1."),
    ("seed", np.asarray([1]), "input 'seed' has shape [1], expected [], one integer."),
    ("read_seed", np.asarray(-5), "input 'read_seed' is -5, expected 0"),
    ("sample", np.asarray(-1), "input 'sample' is -1, expected 0 to 2^32 - 1."),
    ("sample", np.asarray([1, 2, 3]), "input 'sample' has shape [3], expected [] or [2]."),
    ("sample", np.asarray([2**32 - 1, 2]), "'sample' is [4294967295, 2], expected 0 to 2^32 - 1 for every sample"),
    ("head", np.asarray(-2), "input 'head' is -2, expected -1 (all heads) or greater."),
    (
        "strength",
        np.asarray([-1], np.float32),
        "input 'strength' is -1 for this site, expected finite and 0 or greater.",
    ),
    ("strength", np.asarray([np.nan], np.float32), "input 'strength' is nan for this site"),
    ("strength", np.asarray([np.inf], np.float32), "input 'strength' is inf for this site"),
    (
        "strength",
        np.asarray([1, 1], np.float32),
        "input 'strength' has shape [2], expected [1], one number for each site.",
    ),
    ("device", np.asarray([0.1], np.float32), "input 'device' has shape [1], expected"),
]


@BOTH
@pytest.mark.parametrize(("name", "value", "sentence"), BAD_CONTROLS)
def test_a_bad_control_is_an_error_that_names_it(stored: bool, name: str, value: Any, sentence: str) -> None:
    case = wide_case(stored)
    case["feeds"] = {**case["feeds"], name: value}
    with pytest.raises(Exception) as caught:
        run(case)
    assert "emu: node 'the/node'" in str(caught.value)
    assert sentence in str(caught.value)


@BOTH
@pytest.mark.parametrize(
    ("entry", "value"),
    [("adc.bits", 1.0), ("adc.bits", 7.5), ("adc.bits", 17.0), ("dac.bound", 0.0), ("adc.bound", np.nan),
     ("read.output_noise", -0.1), ("read.weight_noise", np.inf), ("adc.max_bound_factor", 0.5)],
)  # fmt: skip
def test_a_bad_device_number_is_an_error_that_names_it(stored: bool, entry: str, value: float) -> None:
    case = wide_case(stored)
    set_entry(case, entry, value)
    with pytest.raises(Exception, match=f"node 'the/node', entry '{entry}' of input 'device' is .*, expected"):
        run(case)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "'format' is 2, expected 3; rewrite the model with this version."),
        ({"program": "lognormal_x"}, "attribute 'program' is 'lognormal_x', expected one of"),
        ({"site": 4}, "attribute 'site' is 4, expected 0 to"),
        ({"entries": "program.sigma"}, "lacks 'program.sigma_cycle'"),
        ({"entries": "a.b"}, "attribute 'entries' names 'a.b', expected names among"),
        (
            {"adc": "absmax"},
            "'bound_management' is 'iterative', expected 'none' because 'adc' is 'absmax', not 'fixed'.",
        ),
        ({"head_axis": "output"}, "'heads' is 0, expected 1 or greater because 'head_axis' is 'output'."),
        ({"tile_rows": -1}, "'tile_rows' is -1"),
    ],
)
def test_a_bad_attribute_is_refused_when_the_model_loads(change: dict[str, Any], sentence: str) -> None:
    case = wide_case(True)
    with pytest.raises(InputError) as caught:
        session(one_node_model("CrossbarMatMul", {**case["attributes"], **change}, case["right"]))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("axis", "leading"), [("matrix", ()), ("output", (2,)), ("input", (1,))])
def test_heads_of_a_matrix_and_of_a_stack_are_told_apart(axis: str, leading: tuple[int, ...]) -> None:
    operands = np.ones((3, 4), np.float32), np.ones((*leading, 4, 6), np.float32)
    with pytest.raises(Exception, match="attribute 'head_axis': W is .* for one matrix .*, matrix or none for a stack"):
        run_one_node("CrossbarMatMul", {**PLAIN_STORED, "head_axis": axis, "heads": 2}, operands, controls([]))


def test_heads_of_a_dynamic_product_are_matrices() -> None:
    with pytest.raises(InputError, match="'head_axis' is 'output', expected one of none, matrix."):
        session(one_node_model("CrossbarMatMulDynamic", {**PLAIN_DYNAMIC, "head_axis": "output", "heads": 2}))


def test_heads_that_do_not_divide_the_columns_are_an_error() -> None:
    case = wide_case(True)
    case["attributes"] |= {"head_axis": "output", "heads": 7}
    with pytest.raises(Exception, match="does not divide into 7 heads"):
        run(case)


@pytest.mark.parametrize("op", ["CrossbarMatMul", "FaultyWeight"])
def test_weights_must_be_constant(op: str) -> None:
    with pytest.raises(InputError, match="input '(W|faults)': it must be a constant of the graph"):
        session(one_node_model(op, wide_case(True)["attributes"], constant=False))


@pytest.mark.parametrize("op", ["CrossbarMatMul", "CrossbarMatMulQuantized", "FaultyWeight"])
def test_a_list_of_faults_must_be_constant(op: str) -> None:
    """What an array holds is kept, so a list that changes from run to run would be a stale one."""
    case = wide_case(True)
    constants = [np.ones((384, 300), np.int8), np.float32(1), np.float32(0)] if "Quantized" in op else [case["right"]]
    extra = {"code_bits": 8, "block_rows": 0} if "Quantized" in op else {}
    model = one_node_model(op, {**case["attributes"], **extra}, *constants)
    (faults,) = (tensor for tensor in model.graph.initializer if tensor.name == "faults")
    model.graph.initializer.remove(faults)
    model.graph.input.append(helper.make_tensor_value_info("faults", TensorProto.INT64, ["F"]))
    with pytest.raises(InputError, match="input 'faults': it must be a constant of the graph"):
        session(model)


TWO_TO_31 = 2**31


@pytest.mark.parametrize(
    "name",
    [
        "site", "array", "sites", "heads", "head_groups", "head_share", "tile_rows", "tile_columns", "table_times",
        "table_points", "adc_columns", "block_rows",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [TWO_TO_31, 2**32, 2**32 + 1, 2**63 - 1])
def test_every_count_has_a_largest_value(name: str, value: int) -> None:
    """Two of them multiplied overflow nothing, and a site or an array is not that of 2^32 less."""
    attributes = {**PLAIN_QUANTIZED, "sites": 1, name: value}
    operands = (np.ones((2, 4), np.float32), np.ones((4, 4), np.int8), np.float32(1), np.float32(0))
    model = one_node_model("CrossbarMatMulQuantized", attributes, *operands[1:])
    largest = {"table_times": 65536, "table_points": 65536, "site": 65535, "sites": 65536}.get(name, TWO_TO_31 - 1)
    with pytest.raises(
        InputError, match=rf"attribute '{name}' is {value}, expected a whole number from [01] to {largest}"
    ):
        session(model)
    with pytest.raises(
        InputError, match=rf"attribute '{name}' is {value}, expected a whole number from [01] to {largest}"
    ):
        crossbar_matmul_quantized(*operands, **controls([]), **attributes)


@pytest.mark.parametrize(
    "counts",
    [
        {"head_axis": "output", "heads": TWO_TO_31 - 1, "head_groups": TWO_TO_31 - 1},
        {"head_axis": "input", "heads": TWO_TO_31 - 1, "head_share": TWO_TO_31 - 1},
    ],
)
def test_the_largest_counts_of_heads_do_not_divide(counts: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="does not divide into"):
        run_one_node(
            "CrossbarMatMul",
            {**PLAIN_STORED, **counts},
            (np.ones((2, 4), np.float32), np.ones((4, 4), np.float32)),
            controls([], head=0),
        )


def test_the_largest_tiles_and_shared_converters_work() -> None:
    numbers = {"adc.bits": 8, "adc.steps": 0, "adc.gain_sigma": 0.1, "adc.offset_sigma": 0.1}
    largest = dict.fromkeys(("tile_rows", "tile_columns", "adc_columns"), TWO_TO_31 - 1)
    attributes = {**PLAIN_STORED, **largest, "adc": "absmax", "entries": ",".join(numbers)}
    y = run_one_node(
        "CrossbarMatMul",
        attributes,
        (np.ones((2, 4), np.float32), np.ones((4, 4), np.float32)),
        controls(list(numbers.values())),
    )
    assert np.isfinite(y).all()


def test_a_table_is_bounded_as_a_whole() -> None:
    attributes = {**PLAIN_STORED, "table_times": 257, "table_points": 256}
    sentence = "'table_points' is 256, expected at most 65536 together with 'table_times', which is 257"
    with pytest.raises(InputError, match=sentence):
        session(one_node_model("CrossbarMatMul", attributes, np.ones((4, 4), np.float32)))
    with pytest.raises(InputError, match=sentence):
        crossbar_matmul(np.ones((2, 4), np.float32), np.ones((4, 4), np.float32), **controls([]), **attributes)


def table_node(points: int) -> tuple[dict[str, Any], dict[str, float]]:
    """A device that was measured at so many conductances."""
    numbers = {"program.scale": 1.0, "mapping.g_min_us": 1.0, "mapping.g_max_us": 25.0, "program.table_time_s.0": 1.0}
    for i in range(points):
        target = 1 + 24 * i / points
        numbers |= {f"program.target_us.{i}": target, f"program.mean_us.0.{i}": target + 1}
        numbers[f"program.std_us.0.{i}"] = 0.1
    attributes = {**PLAIN_STORED, "encoding": "differential", "program": "table", "table_times": 1}
    return {**attributes, "table_points": points, "entries": ",".join(numbers)}, numbers


def test_a_large_table_works_in_time_that_grows_with_it() -> None:
    """The largest one loaded in a minute when names were looked up one by one; there is room for a slow machine."""
    attributes, numbers = table_node(65536)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 8), np.float32), rng.standard_normal((8, 5), np.float32)
    feeds = controls(list(numbers.values()), seed=3)
    start = time.process_time()
    opened = session(one_node_model("CrossbarMatMul", attributes, w), threads=1)
    fed = {"X": x, **{name: value for name, value in feeds.items() if name != "faults"}}
    (y,) = opened.run(None, fed)
    loaded = time.process_time()
    np.testing.assert_allclose(y, crossbar_matmul(x, w, **feeds, **attributes), rtol=1e-4, atol=1e-4)
    assert loaded - start < 10


LAST = 2**32 - 1


@pytest.mark.parametrize(
    ("op", "shapes", "sample", "axis"),
    [
        ("CrossbarMatMul", ((3, 4), (4, 4)), LAST - 1, 0),  # the number of samples is not given
        ("CrossbarMatMul", ((3, 4), (4, 4)), [LAST - 1, 2], 0),  # 3 rows are no multiple of 2: each is a sample
        ("CrossbarMatMul", ((1, 3, 4), (4, 4)), LAST - 1, 1),
        ("CrossbarMatMulDynamic", ((3, 2, 4), (3, 4, 4)), LAST - 1, 0),
        ("CrossbarMatMulDynamic", ((2, 4), (3, 4, 4)), LAST - 1, 0),
        ("CrossbarMatMulDynamic", ((1, 2, 4), (3, 4, 4)), [LAST - 1, 2], 0),
    ],
)
def test_samples_do_not_wrap_around(op: str, shapes: Any, sample: Any, axis: int) -> None:
    stored = op == "CrossbarMatMul"
    numbers = {"read.output_noise": 0.1}
    attributes = {**(PLAIN_STORED if stored else PLAIN_DYNAMIC), "sample_axis": axis, "entries": ",".join(numbers)}
    operands = tuple(np.ones(shape, np.float32) for shape in shapes)
    feeds = controls(list(numbers.values()), sample=sample)
    twin_feeds = {name: value for name, value in feeds.items() if stored or name != "faults"}
    with pytest.raises(Exception, match="'sample'.* the last sample is 4294967296, expected at most"):
        run_one_node(op, attributes, operands, feeds)
    with pytest.raises(InputError, match="'sample'.* the last sample is 4294967296, expected at most"):
        (crossbar_matmul if stored else crossbar_matmul_dynamic)(*operands, **twin_feeds, **attributes)
    feeds["sample"] = np.asarray(sample) - (1 if isinstance(sample, int) else np.asarray([1, 0]))
    run_one_node(op, attributes, operands, feeds)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"codes": np.full((384, 300), 9, np.int8)}, "input 'codes': 9 needs more than 4 bits"),
        ({"scale": np.ones(299, np.float32)}, r"do not fit codes \[384, 300\]; expected \[300\]"),
        ({"zero_point": np.zeros((), np.float32)}, "do not fit codes"),
        ({"block_rows": 32}, r"expected \[12, 300\]"),
        ({"code_bits": 5}, "'code_bits' is 5, expected 2, 4, 8 or 16"),
        ({"code_bits": 2, "codes": np.full((384, 300), -3, np.int8)}, "input 'codes': -3 needs more than 2 bits"),
        ({"code_bits": 16}, r"has shape \[384, 300\]; expected \[K, N, 2\] or \[G, K, N, 2\], the two bytes of every"),
        (
            {"code_bits": 16, "codes": np.ones((384, 300, 1), np.int8)},
            r"has shape \[384, 300, 1\]; expected \[K, N, 2\]",
        ),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_an_error(change: dict[str, Any], sentence: str) -> None:
    case = wide_case(True)
    given = {"codes": np.ones((384, 300), np.int8), "scale": np.ones(300, np.float32)}
    given |= {"zero_point": np.zeros(300, np.float32), "code_bits": 4, "block_rows": 0, **change}
    attributes = {**case["attributes"], "code_bits": given["code_bits"], "block_rows": given["block_rows"]}
    operands = (case["left"], given["codes"], given["scale"], given["zero_point"])
    with pytest.raises(Exception, match=sentence):
        run_one_node("CrossbarMatMulQuantized", attributes, operands, case["feeds"])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_weights_that_are_no_numbers_are_an_error(value: float) -> None:
    case = wide_case(True)
    case["right"][3, 4] = value
    with pytest.raises(Exception, match="input 'W': it holds an infinite value or a NaN"):
        run(case)
    for strength in (0.0, 1.0):
        feeds = {**case["feeds"], "strength": np.asarray([strength], np.float32)}
        with pytest.raises(Exception, match="input 'W': it holds an infinite value or a NaN"):
            run_one_node("FaultyWeight", case["attributes"], (case["right"],), feeds)


def test_operands_that_do_not_fit_are_an_error() -> None:
    case = wide_case(True)
    case["left"] = case["left"][..., :-1]
    with pytest.raises(Exception, match="cannot be multiplied"):
        run(case)


def test_a_missing_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_OPS_LIBRARY", "/nowhere/libemu_ops.so")
    with pytest.raises(InputError, match="EMU_OPS_LIBRARY names '/nowhere/libemu_ops.so', which is no file"):
        session(one_node_model("CrossbarMatMul", wide_case(True)["attributes"], wide_case(True)["right"]))


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be used here"):
        library.use_instruction_set("sse9")
