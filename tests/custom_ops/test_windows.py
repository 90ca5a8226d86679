"""Convolutions: rows that a window cuts out of images."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from emu.errors import InputError
from emu.reference.crossbar import crossbar_matmul, crossbar_matmul_quantized
from emu.reference.periphery import Trace
from emu.runtime import library, session
from tests.custom_ops.devices import stored_devices
from tests.custom_ops.one_node import controls, one_node_model, random_ranges, run_one_node
from tests.custom_ops.test_native_equals_twin import INSTRUCTION_SETS, assert_agree, available, wide_case, words
from tests.reference.nodes import PLAIN_STORED

AVAILABLE = tuple(filter(available, INSTRUCTION_SETS))
Axis = tuple[int, int, int, int, int]


def text_of(window: list[Axis]) -> str:
    return ";".join(",".join(map(str, axis)) for axis in window)


def convolution(x: Any, kernel: Any, window: list[Axis], groups: int) -> Any:
    """onnxruntime's own Conv of kernel [groups * N, C, sizes]."""
    sizes, strides, dilations, before, after = (list(each) for each in zip(*window, strict=True))
    conv = helper.make_node(
        "Conv", ["x", "w"], ["y"], kernel_shape=sizes, strides=strides, dilations=dilations, pads=[*before, *after],
        group=groups,
    )  # fmt: skip
    graph = helper.make_graph(
        [conv], "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(kernel, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    clean = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return clean.run(None, {"x": x})[0]


def weights_of(kernel: Any, groups: int) -> Any:
    """W [G, K, N], or [K, N] of one group, of a kernel [G * N, C, sizes]."""
    stack = np.swapaxes(kernel.reshape(groups, len(kernel) // groups, -1), 1, 2).copy()
    return stack if groups > 1 else stack[0]


@st.composite
def images(draw: st.DrawFn) -> dict[str, Any]:
    """A window, images, a kernel and how many groups of channels there are."""
    axes = draw(st.integers(1, 3))
    largest = {1: 40, 2: 12, 3: 7}[axes]
    window, sizes = [], []
    for _ in range(axes):
        size, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        extent = dilation * (size - 1) + 1
        window.append((size, draw(st.integers(1, 4)), dilation, before, after))
        sizes.append(draw(st.integers(max(1, extent - before - after), largest)))
    groups, channels, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    batch = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(words))
    x = rng.standard_normal((batch, groups * channels, *sizes), np.float32)
    kernel = rng.standard_normal((groups * columns, channels, *(axis[0] for axis in window)), np.float32)
    return {"window": window, "x": x, "kernel": kernel, "groups": groups, "batch": batch}


@given(image=images(), instruction_set=st.sampled_from(AVAILABLE))
@settings(deadline=None, max_examples=200)
def test_the_exact_product_is_a_convolution(image: dict[str, Any], instruction_set: str) -> None:
    expected = convolution(image["x"], image["kernel"], image["window"], image["groups"])
    w = weights_of(image["kernel"], image["groups"])
    attributes = {**PLAIN_STORED, "window": text_of(image["window"])}
    twin = crossbar_matmul(image["x"], w, **controls([]), **attributes)
    library.use_instruction_set(instruction_set)
    try:
        native = run_one_node("CrossbarMatMul", attributes, (image["x"], w), controls([]))
    finally:
        library.use_instruction_set("best")
    np.testing.assert_allclose(native, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(twin, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@given(image=images(), instruction_set=st.sampled_from(AVAILABLE), data=st.data())
@settings(deadline=None, max_examples=250)
def test_windows_agree_with_the_twin(image: dict[str, Any], instruction_set: str, data: st.DataObject) -> None:
    attributes, numbers = data.draw(stored_devices())
    attributes |= {"window": text_of(image["window"]), "sample_axis": data.draw(st.sampled_from((0, 0, -1)))}
    w = weights_of(image["kernel"], image["groups"])
    depth = w.shape[-2]
    tiles = image["groups"] * (-(-depth // attributes["tile_rows"]) if attributes["tile_rows"] else 1)
    feeds = controls(
        list(numbers.values()),
        strength=data.draw(st.sampled_from((1.0, 0.5))),
        seed=data.draw(words),
        sample=data.draw(st.sampled_from((0, [7, image["batch"]]))),
        head=data.draw(st.sampled_from((-1, -1, 0))),
        ranges=random_ranges(attributes, tiles, np.random.default_rng(data.draw(words))),
        position=data.draw(st.sampled_from(([], [0], [5], [2**31]))),
    )
    trace = Trace()
    expected = crossbar_matmul(image["x"], w, **feeds, trace=trace, **attributes)
    library.use_instruction_set(instruction_set)
    try:
        native = run_one_node("CrossbarMatMul", attributes, (image["x"], w), feeds)
    finally:
        library.use_instruction_set("best")
    assert native.shape == expected.shape
    case = {"attributes": attributes, "feeds": feeds, "left": image["x"]}
    assert_agree(native, expected, trace, case, w)


def noisy(**changes: Any) -> dict[str, Any]:
    """A node with converters, noise and tiles, and its feeds."""
    case = wide_case(True)
    case["attributes"] |= {"tile_rows": 40, "tile_columns": 0, **changes}
    case["feeds"] |= {"sample": np.asarray([100, 2])}
    return case


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_patch_embedding_is_the_product_of_cut_patches(strength: float, instruction_set: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 32, 48), np.float32)
    w = rng.standard_normal((3 * 8 * 8, 70), np.float32)
    case = noisy()
    case["feeds"] |= {"strength": np.asarray([strength], np.float32)}
    patches = x.reshape(2, 3, 4, 8, 6, 8).transpose(0, 2, 4, 1, 3, 5).reshape(2, 24, 192)
    expected = run_one_node("CrossbarMatMul", case["attributes"], (patches, w), case["feeds"])
    window = {**case["attributes"], "window": "8,8,1,0,0;8,8,1,0,0"}
    y = run_one_node("CrossbarMatMul", window, (x, w), case["feeds"])
    images = expected.transpose(0, 2, 1).reshape(2, 70, 4, 6)
    np.testing.assert_allclose(y, images, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.fixture(params=AVAILABLE)
def instruction_set(request: pytest.FixtureRequest) -> Any:
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set("best")


@pytest.mark.parametrize(
    ("shape", "kernel", "axis", "groups"),
    [
        ((2, 64, 20, 20), (80, 64, 3, 3), (3, 1, 1, 1, 1), 1),
        ((2, 64, 20, 20), (80, 64, 3, 3), (3, 2, 1, 1, 1), 1),
        ((1, 300, 9, 9), (40, 300, 1, 1), (1, 1, 1, 0, 0), 1),
        ((1, 300, 9, 9), (40, 300, 1, 1), (1, 2, 1, 0, 0), 1),
        ((2, 70, 17, 17), (70, 1, 3, 3), (3, 1, 1, 1, 1), 70),
        ((2, 70, 17, 17), (140, 1, 7, 7), (7, 1, 1, 3, 3), 70),
        ((1, 32, 15, 15), (32, 8, 3, 3), (3, 1, 2, 2, 2), 4),
        ((1, 600, 40, 40), (33, 600, 3, 3), (3, 1, 1, 1, 1), 1),  # more than one block for each thread
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_convolutions_of_usual_size(shape: Any, kernel: Any, axis: Axis, groups: int, threads: int) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(shape, np.float32), rng.standard_normal(kernel, np.float32)
    expected = convolution(x, w, [axis, axis], groups)
    attributes = {**PLAIN_STORED, "window": text_of([axis, axis])}
    y = run_one_node("CrossbarMatMul", attributes, (x, weights_of(w, groups)), controls([]), threads=threads)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    # The same through the engine that reads, which has nothing to do.
    read = {**attributes, "entries": "read.output_noise", "tile_rows": 100}
    y = run_one_node("CrossbarMatMul", read, (x, weights_of(w, groups)), controls([0.0]), threads=threads)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("code", ["sign_magnitude", "offset_binary", "twos_complement"])
@pytest.mark.parametrize("adc", ["absmax", "fixed", "none"])
@pytest.mark.parametrize("dac", ["absmax", "fixed"])
def test_few_columns_agree_with_the_twin(columns: int, code: str, adc: str, dac: str, instruction_set: str) -> None:
    """They are read many positions at once."""
    numbers = {"read.output_noise": 0.05, "read.weight_noise": 0.02}
    numbers |= {"dac.bits": 8.0, "dac.steps": 0.0, "dac.bound": 1.0}
    if dac == "fixed":
        numbers["dac.max"] = 2.0
    if adc != "none":
        numbers |= {"adc.bits": 8.0, "adc.steps": 0.0, "adc.gain_sigma": 0.01, "adc.offset_sigma": 0.01}
    if adc == "fixed":
        numbers["adc.bound"] = 3.0
    attributes = {**PLAIN_STORED, "window": "3,1,1,1,1;3,2,1,1,1", "entries": ",".join(numbers), "adc_code": code}
    attributes |= {"dac": dac, "adc": adc, "read_noise": "additive_constant", "program": "none", "scaling": "column"}
    feeds = controls(list(numbers.values()), seed=3, read_seed=4, sample=[7, 2])
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 6, 9, 11), np.float32), rng.standard_normal((3, 18, columns), np.float32)
    x[0, :2, :4] = 0  # positions that meet nothing
    trace = Trace()
    expected = crossbar_matmul(x, w, **feeds, trace=trace, **attributes)
    native = run_one_node("CrossbarMatMul", attributes, (x, w), feeds)
    assert_agree(native, expected, trace, {"attributes": attributes, "feeds": feeds, "left": x}, w)
    assert np.mean(trace.undecided) < 0.02


def test_noise_of_a_convolution_follows_the_sample_and_not_the_batch() -> None:
    case = noisy(window="3,1,1,1,1;3,1,1,1,1")
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 9, 7, 8), np.float32), rng.standard_normal((3, 27, 6), np.float32)
    whole = run_one_node("CrossbarMatMul", case["attributes"], (x, w), case["feeds"])
    part = {**case["feeds"], "sample": np.asarray([101, 1])}
    second = run_one_node("CrossbarMatMul", case["attributes"], (x[1:], w), part)
    np.testing.assert_allclose(second[0], whole[1], rtol=0, atol=1e-5 * np.abs(whole).max())
    one = run_one_node("CrossbarMatMul", case["attributes"], (x, w), case["feeds"], threads=1)
    np.testing.assert_array_equal(one, whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("repeats", [True, False])
def test_a_position_that_meets_no_number_is_nan(bad: float, columns: int, repeats: bool, instruction_set: str) -> None:
    case = noisy(window="3,1,1,1,1;3,2,1,1,1")
    if not repeats:  # then convolutions of few columns are read many positions at once
        case["attributes"] |= {"bound_management": "none", "read_noise": "additive_constant"}
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 4, 6, 9), np.float32), rng.standard_normal((2, 18, columns), np.float32)
    x[1, 3, 2, 4] = bad  # of the second group
    lost = np.zeros((2, 2, columns, 6, 5), np.bool_)
    lost[1, 1, :, 1:4, 2] = True  # columns 3 to 5 of the image
    for y in (
        run_one_node("CrossbarMatMul", case["attributes"], (x, w), case["feeds"]),
        crossbar_matmul(x, w, **case["feeds"], **case["attributes"]),
    ):
        np.testing.assert_array_equal(np.isnan(y).reshape(lost.shape), lost)
        assert np.isfinite(y[~np.isnan(y)]).all()


def test_a_quantized_convolution_is_that_of_its_numbers() -> None:
    case = noisy(window="3,1,1,1,1;3,1,1,1,1", code_bits=8, block_rows=0)
    rng = np.random.default_rng(4)
    x, codes = rng.standard_normal((2, 8, 6, 6), np.float32), rng.integers(-128, 128, (2, 36, 5)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, (2, 5)).astype(np.float32)
    zero_point = rng.integers(-5, 5, (2, 5)).astype(np.float32)
    operands = (x, codes, scale, zero_point)
    native = run_one_node("CrossbarMatMulQuantized", case["attributes"], operands, case["feeds"])
    w = (codes - zero_point[:, None]) * scale[:, None]
    plain = {name: value for name, value in case["attributes"].items() if name not in ("code_bits", "block_rows")}
    np.testing.assert_array_equal(native, run_one_node("CrossbarMatMul", plain, (x, w), case["feeds"]))
    trace = Trace()
    expected = crossbar_matmul_quantized(*operands, **case["feeds"], trace=trace, **case["attributes"])
    assert_agree(native, expected, trace, {**case, "left": x}, w)


@pytest.mark.parametrize(
    "window",
    [
        "3", "3,1,1,1", "3,1,1,1,1,1", "3,1,1,1,1;", ";3,1,1,1,1", "3,1,1,1,1;;3,1,1,1,1", "0,1,1,1,1", "3,0,1,1,1",
        "3,1,0,1,1", "3,1,1,-1,1", "3,1,1, 1,1", "3,1,1,1,2147483648", "a,1,1,1,1", "3,1,1,1,99999999999999999999",
        "65536,1,1,0,0;65536,1,1,0,0", ";".join(["1,1,1,0,0"] * 4), "٣,1,1,1,1",
    ],
)  # fmt: skip
def test_a_window_that_is_none_is_refused(window: str) -> None:
    attributes = {**PLAIN_STORED, "window": window}
    with pytest.raises(InputError, match="attribute 'window' is .*, expected size,stride,dilation,padding before"):
        session(one_node_model("CrossbarMatMul", attributes, np.ones((3, 2), np.float32)))
    with pytest.raises(InputError, match="attribute 'window' is .*, expected size,stride,dilation,padding before"):
        crossbar_matmul(np.ones((1, 1, 3), np.float32), np.ones((3, 2), np.float32), **controls([]), **attributes)


@pytest.mark.parametrize("change", [{"sample_axis": 1}, {"head_axis": "matrix", "heads": 2}])
def test_a_window_needs_samples_in_front_and_no_heads(change: dict[str, Any]) -> None:
    attributes = {**PLAIN_STORED, "window": "3,1,1,1,1", **change}
    with pytest.raises(InputError, match="because 'window' is given"):
        session(one_node_model("CrossbarMatMul", attributes, np.ones((2, 3, 2), np.float32)))
    with pytest.raises(InputError, match="because 'window' is given"):
        crossbar_matmul(np.ones((1, 2, 3), np.float32), np.ones((2, 3, 2), np.float32), **controls([]), **attributes)


@pytest.mark.parametrize(
    ("x", "w", "window", "native", "twin"),
    [
        ((1, 2, 5, 5), (6, 4), "3,1,1,1,1", "expected X of rank 3", "expected 3 because 'window' has 1 axes"),
        ((1, 2, 5), (7, 4), "3,1,1,1,1", "2 channels and a window 3 places", "expected 1 groups of 7 / 3"),
        ((1, 3, 5), (2, 6, 4), "3,1,1,1,1", "3 channels and a window 3 places", "expected 2 groups of 6 / 3"),
        ((1, 2, 5), (12, 4), "6,1,1,0,0", "along axis 2 it does not fit into X", "does not fit into X"),
        ((1, 2, 5), (6, 4), "3,1,3,0,0", "along axis 2 it does not fit into X", "does not fit into X"),
    ],
)
def test_images_that_do_not_fit_are_an_error(x: Any, w: Any, window: str, native: str, twin: str) -> None:
    operands = np.ones(x, np.float32), np.ones(w, np.float32)
    attributes = {**PLAIN_STORED, "window": window}
    with pytest.raises(Exception, match=native):
        run_one_node("CrossbarMatMul", attributes, operands, controls([]))
    with pytest.raises(InputError, match=twin):
        crossbar_matmul(*operands, **controls([]), **attributes)


def test_no_images_and_no_channels_are_no_error() -> None:
    attributes = {**PLAIN_STORED, "window": "3,1,1,1,1;3,1,1,1,1", "entries": "read.output_noise"}
    for batch, channels in ((0, 2), (2, 0)):
        x, w = np.ones((batch, channels, 4, 5), np.float32), np.ones((9 * channels, 3), np.float32)
        y = run_one_node("CrossbarMatMul", attributes, (x, w), controls([0.0]))
        np.testing.assert_array_equal(y, np.zeros((batch, 3, 4, 5)))


@pytest.mark.parametrize("ops", ["native", "python"])
def test_a_file_without_the_attribute_has_no_window(ops: Any) -> None:
    """As written by earlier versions."""
    x, w = np.ones((2, 6), np.float32), np.ones((6, 3), np.float32)
    attributes = {name: value for name, value in PLAIN_STORED.items() if name != "window"}
    model = one_node_model("CrossbarMatMul", attributes, w)
    np.testing.assert_array_equal(session(model, ops=ops).run(None, {"X": x, **controls([])})[0], x @ w)
    np.testing.assert_array_equal(crossbar_matmul(x, w, **controls([]), **attributes), x @ w)


def test_a_window_of_another_type_is_refused() -> None:
    model: onnx.ModelProto = one_node_model(
        "CrossbarMatMul", {**PLAIN_STORED, "window": 3}, np.ones((3, 2), np.float32)
    )
    with pytest.raises(InputError, match="attribute 'window' is 3, expected a string."):
        session(model)
