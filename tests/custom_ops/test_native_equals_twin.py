"""The native operators against the NumPy twin: random shapes, devices and controls."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emu.contract.codes import numbers_of, read_codes, stored_codes
from emu.contract.structure import parse_structure
from emu.reference import random as twin_random
from emu.reference.crossbar import (
    crossbar_matmul,
    crossbar_matmul_dynamic,
    crossbar_matmul_quantized,
    faulty_weight,
)
from emu.reference.crossbar import stored_weight as twin_stored_weight
from emu.reference.periphery import Trace
from emu.runtime import library
from tests.custom_ops.devices import dynamic_devices, stored_devices
from tests.custom_ops.one_node import controls, random_ranges, run_one_node
from tests.reference.nodes import PLAIN_DYNAMIC, PLAIN_STORED

INSTRUCTION_SETS = ("avx512_vnni", "avx512", "avx2", "baseline")
DISTURBANCES = ("none", "lognormal_w", "lognormal_w_meancorr", "lognormal_g", "gauss_prop", "gauss_range")


def available(name: str) -> bool:
    try:
        library.use_instruction_set(name)
    except ValueError:
        return False
    finally:
        library.use_instruction_set("best")
    return True


@pytest.fixture(params=[name for name in INSTRUCTION_SETS if available(name)])
def instruction_set(request: pytest.FixtureRequest) -> Any:
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set("best")


words = st.integers(0, 2**32 - 1)


@given(key=st.tuples(words, words), counter=st.tuples(words, words, words, words), blocks=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_integer_streams_are_equal_to_the_bit(key: Any, counter: Any, blocks: int) -> None:
    first = (counter[0] + np.arange(blocks, dtype=np.uint64)).astype(np.uint64)
    expected = np.stack(
        twin_random.philox4x32(
            (first & 0xFFFFFFFF).astype(np.uint32),
            *(np.full(blocks, word, np.uint32) for word in counter[1:]),
            *key,
        ),
        axis=-1,
    )
    for name in filter(available, INSTRUCTION_SETS):
        library.use_instruction_set(name)
        np.testing.assert_array_equal(library.philox(key, counter, blocks), expected)
    library.use_instruction_set("best")


def test_normals_agree_to_a_millionth(instruction_set: str) -> None:
    count = 400_000
    stream = twin_random.Stream.READ
    (native,) = library.run_time_normals((7, 3), 5, stream, *np.asarray([[4], [2], [11]]), slice(0, count))
    (twin,) = twin_random.run_time_normals(7, 3, 5, stream, *np.asarray([[4], [2], [11]]), part=slice(0, count))
    assert np.abs(native - twin).max() < 2e-6
    assert np.abs(native - twin).mean() < 1e-7


@st.composite
def positions(draw: st.DrawFn, left: Any, right: Any, attributes: dict[str, Any], sample: Any, stored: bool) -> Any:
    """Where rows and keys lie: of all samples together, or of each; sets `key_axis` of a written operand."""
    axis, leading = attributes["sample_axis"], left.shape[:-1]
    if not stored:
        leading = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2])
    along = leading[axis] if axis >= 0 else 1
    given = sample[1] if isinstance(sample, list) else along
    samples = given if axis >= 0 and given and along % given == 0 else along
    rows = leading[-1] if len(leading) > 1 and axis < len(leading) - 1 else 1
    starts = st.integers(1 - rows, 300)
    position = draw(st.one_of(st.just([]), starts.map(lambda one: [one])))
    keys: list[tuple[int, int]] = []
    if not stored and axis <= 0:
        attributes["key_axis"] = draw(st.sampled_from(("none", "columns", "rows")))
        if attributes["key_axis"] != "none":
            count = right.shape[-1 if attributes["key_axis"] == "columns" else -2]
            last = st.integers(0, 2 * count + 100)
            ends = last.flatmap(lambda end: st.tuples(st.just(end), st.integers(max(0, end - count), end)))
            keys = draw(st.one_of(st.just([]), ends.map(lambda one: [one]), st.lists(ends, min_size=1, max_size=1)))
            same = right.ndim > 2 and right.shape[0] == left.shape[0] and axis == 0 and samples == len(right)
            if same and draw(st.booleans()):
                keys = draw(st.lists(ends, min_size=samples, max_size=samples))
                position = draw(st.lists(starts, min_size=samples, max_size=samples))
    return position, keys


@st.composite
def lists_of_faults(draw: st.DrawFn, attributes: dict[str, Any], elements: int) -> list[int]:
    """Faults that the array of a stored node can have, some of them twice."""
    if attributes["fault_source"] == "none":
        return []
    structure = parse_structure("CrossbarMatMul", attributes)
    bits = structure.fault_word_bits if structure.fault_storage != "none" else 0
    devices = 0 if structure.encoding == "weight" else 2 if structure.has_pairs else 1
    cells = [
        64 + 4 * each + 2 * device + high
        for each in range(structure.weight_slices) for device in range(devices) for high in (0, 1)
    ]  # fmt: skip
    if not bits and not cells:
        return []
    faults = st.tuples(st.integers(0, elements - 1), st.sampled_from([*range(bits), *cells]))
    return [256 * element + what for element, what in draw(st.lists(faults, max_size=8))]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A node, its operands and its controls."""
    stored = draw(st.booleans())
    device_attributes, numbers = draw(stored_devices() if stored else dynamic_devices())
    heads = draw(st.sampled_from((1, 2, 3)))
    axis = draw(st.sampled_from(("none", "output", "input") if stored else ("none", "matrix")))
    groups = draw(st.sampled_from((1, 3))) if axis == "output" else 1
    depth = draw(st.integers(1, 40))
    columns = draw(st.integers(1, 50))
    if axis == "input":
        depth = heads * draw(st.integers(1, 12))
    if axis == "output":
        columns = heads * groups * draw(st.integers(1, 7))
    batch = draw(st.integers(1, 3))
    middle: tuple[int, ...] = draw(st.sampled_from(((), (1,), (3,), (2, 2))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    attributes: dict[str, int | str] = {
        **device_attributes,
        "sample_axis": draw(st.sampled_from((0, 0, 1, -1) if stored and middle else (0, 0, -1))),
        "heads": 0 if axis == "none" else heads, "head_axis": axis, "head_groups": groups,
    }  # fmt: skip
    if stored:
        factor = draw(st.sampled_from((1, 1, 2)))
        left = rng.standard_normal((batch * factor, *middle, depth), np.float32)
        right = rng.standard_normal((depth, columns), np.float32)
    else:
        rows = draw(st.integers(1, 5))
        per_sample = heads if axis == "matrix" else draw(st.integers(1, 3))
        shapes = draw(st.sampled_from(("full", "full", "left_broadcast", "right_broadcast", "flat", "samples_in_rows")))
        left_leading, right_leading = {
            "full": ((batch, per_sample), (batch, per_sample)),
            "left_broadcast": ((1, per_sample), (batch, per_sample)),
            "right_broadcast": ((batch, per_sample), (per_sample,)),
            "flat": ((batch * per_sample,), (batch * per_sample,)),
            "samples_in_rows": ((per_sample,), (per_sample,)),
        }[shapes]
        if shapes == "samples_in_rows":
            attributes["sample_axis"] = 1
            rows = batch
        left = rng.standard_normal((*left_leading, rows, depth), np.float32)
        right = rng.standard_normal((*right_leading, depth, columns), np.float32)
    if draw(st.booleans()):
        left[..., 0, :] = 0
        right[..., 0] = 0
    sample = draw(st.sampled_from((0, 5, [0, batch], [7, batch], [3, 2])))
    position, keys = draw(positions(left, right, attributes, sample, stored))
    tiles = -(-right.shape[-2] // attributes["tile_rows"]) if attributes["tile_rows"] else 1
    feeds = controls(
        list(numbers.values()),
        strength=draw(st.sampled_from((1.0, 0.5, 0.0))),
        seed=draw(words),
        read_seed=draw(st.sampled_from((0, 1, 2**32 - 1))),
        sample=sample,
        head=draw(st.sampled_from((-1, -1, 0, heads - 1))),
        ranges=random_ranges(attributes, tiles, rng),
        position=position,
        faults=draw(lists_of_faults(attributes, right.size)) if stored else (),
    )
    if not stored:
        del feeds["faults"]
        feeds["keys"] = np.reshape(np.asarray(keys, np.int64), (-1, 2))
    return {"stored": stored, "attributes": attributes, "left": left, "right": right, "feeds": feeds}


def assert_agree(native: Any, expected: Any, trace: Trace, case: dict[str, Any], right: Any) -> None:
    """Both agree to 1e-5 of the largest result, but for rounding ties, and a drift compensation to 1e-3.

    A compensation divides by a sum of disturbed weights, whose terms may cancel. Where a weight cancels against
    noise, or an offset against its correction, or the offsets of converters against each other, what is left is as
    wrong as what cancelled.
    """
    numbers = dict(zip(case["attributes"]["entries"].split(","), case["feeds"]["device"], strict=False))
    decided = ~trace.undecided
    largest = np.abs(right).max(initial=0) or 1  # zeros have the scale 1
    cancelled = largest * max(0.1 * np.abs(case["left"]).max(initial=0), numbers.get("adc.offset_sigma", 0))
    scale = max(np.abs(expected).max(initial=0), cancelled, 1e-3 * largest)
    difference = np.abs(native - expected)[decided].max(initial=0)
    tolerance = 1e-5 if case["attributes"].get("compensation", "none") == "none" else 1e-3
    assert difference <= tolerance * scale, (difference / scale, np.mean(decided))


def compare(case: dict[str, Any], **session_options: Any) -> None:
    trace = Trace()
    twin = crossbar_matmul if case["stored"] else crossbar_matmul_dynamic
    expected = twin(case["left"], case["right"], **case["feeds"], trace=trace, **case["attributes"])
    op = "CrossbarMatMul" if case["stored"] else "CrossbarMatMulDynamic"
    native = run_one_node(op, case["attributes"], (case["left"], case["right"]), case["feeds"], **session_options)
    assert native.shape == expected.shape
    assert_agree(native, expected, trace, case, case["right"])


@given(case=cases())
@settings(deadline=None, max_examples=400)
def test_outputs_agree_on_random_nodes(case: dict[str, Any]) -> None:
    compare(case)


@given(case=cases())
@settings(deadline=None, max_examples=60)
def test_outputs_agree_with_the_loops_of_every_processor(case: dict[str, Any]) -> None:
    try:
        for name in filter(available, INSTRUCTION_SETS):
            library.use_instruction_set(name)
            compare(case, threads=1)
    finally:
        library.use_instruction_set("best")


def wide_case(stored: bool) -> dict[str, Any]:
    """A node of realistic width with every effect on, so that undecided outputs are rare."""
    rng = np.random.default_rng(3)
    kind = "program" if stored else "write"
    numbers = {f"{kind}.sigma": 0.1, "dac.bits": 8, "dac.steps": 0, "dac.bound": 1, "adc.bits": 8, "adc.steps": 0}
    numbers |= {"adc.bound": 10, "adc.max_bound_factor": 1000, "adc.max_bound_resolution": 0.25}
    numbers |= {"read.weight_noise": 0.0175, "read.output_noise": 0.04}
    if stored:
        numbers["program.sigma_cycle"] = 0.02
    attributes: dict[str, int | str] = {
        **(PLAIN_STORED if stored else PLAIN_DYNAMIC), "entries": ",".join(numbers), "tile_rows": 256,
        "tile_columns": 256, "tile_split": "balanced", "scaling": "tile_column", kind: "lognormal_w", "dac": "absmax",
        "adc": "fixed", "bound_management": "iterative", "read_noise": "pcm_read",
    }  # fmt: skip
    left_shape, right_shape = ((2, 50, 384), (384, 300)) if stored else ((2, 3, 50, 384), (2, 3, 384, 70))
    left: NDArray[np.float32] = rng.standard_normal(left_shape, np.float32)
    right: NDArray[np.float32] = rng.standard_normal(right_shape, np.float32)
    feeds = controls(list(numbers.values()), seed=9, read_seed=4, sample=[100, 2])
    if not stored:
        del feeds["faults"]
        feeds["keys"] = np.zeros((0, 2), np.int64)
    return {"stored": stored, "attributes": attributes, "left": left, "right": right, "feeds": feeds}


@pytest.mark.parametrize("stored", [True, False])
def test_wide_nodes_with_every_effect_agree_and_are_mostly_decided(stored: bool, instruction_set: str) -> None:
    case = wide_case(stored)
    trace = Trace()
    twin = crossbar_matmul if stored else crossbar_matmul_dynamic
    twin(case["left"], case["right"], **case["feeds"], trace=trace, **case["attributes"])
    assert np.mean(trace.undecided) < 0.02
    compare(case)


@pytest.mark.parametrize("adc", ["absmax", "none"])
def test_deep_tiles_agree(adc: str, instruction_set: str) -> None:
    """A tile deeper than the product takes at once: partial sums add up, and the largest output is of the whole sum."""
    case = wide_case(True)
    rng = np.random.default_rng(3)
    case["attributes"] |= {"tile_rows": 0, "adc": adc, "bound_management": "none", "read_noise": "none"}
    noise = case["attributes"]["entries"].split(",").index("read.output_noise")
    case["feeds"]["device"][noise] = 0  # or noise would look for the largest output itself
    case["left"] = rng.standard_normal((2, 20, 900), np.float32)
    case["right"] = rng.standard_normal((900, 70), np.float32)
    compare(case)


@pytest.mark.parametrize("model", DISTURBANCES)
def test_programmed_weights_agree(model: str, instruction_set: str) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((70, 45), np.float32)
    numbers = {} if model == "none" else {"program.sigma": 0.2, "program.sigma_cycle": 0.1}
    if model == "lognormal_g":
        numbers |= {"mapping.g_min_us": 1.0, "mapping.g_max_us": 20.0}
    attributes = {**wide_case(True)["attributes"], "program": model, "entries": ",".join(numbers), "dac": "none"}
    attributes["encoding"] = "differential" if model == "lognormal_g" else "weight"
    attributes |= {"adc": "none", "bound_management": "none", "read_noise": "none", "tile_rows": 32, "scaling": "tile"}
    device = np.asarray(list(numbers.values()), np.float32)
    native = library.programmed_weight(w, attributes, device, strength=0.5, seed=5, read_seed=6)
    controls_of_array = np.asarray([0.5], np.float32), np.zeros((0, 2), np.int64), 5, 6
    expected = twin_stored_weight(w, device, *controls_of_array, **attributes)
    np.testing.assert_allclose(native, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("middle", [0.0, 1000.0])
@pytest.mark.parametrize("scale", ["tensor", "column"])
@pytest.mark.parametrize("code_range", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_weights_of_integer_codes_are_equal_to_the_bit(
    bits: int, code_range: str, scale: str, middle: float, instruction_set: str
) -> None:
    w = np.random.default_rng(2).standard_normal((130, 37), np.float32) + np.float32(middle)
    w[::7, 3] = 0
    faults = {"fault_source": "random", "fault_storage": "int", "fault_bits": bits, "fault_mask": 2**bits - 1}
    ranges = {"fault_range": code_range, "fault_scale": scale, "entries": "faults.ber"}
    attributes: dict[str, Any] = {**PLAIN_STORED, **faults, **ranges}
    device = np.asarray([1e-3], np.float32)
    native = library.programmed_weight(w, attributes, device, seed=5)
    expected = twin_stored_weight(w, device, np.ones(1, np.float32), np.zeros((0, 2), np.int64), 5, 0, **attributes)
    np.testing.assert_array_equal(native, expected)


@st.composite
def quantized_cases(draw: st.DrawFn) -> dict[str, Any]:
    """A stored case whose weight is held as codes."""
    case = draw(cases().filter(lambda each: each["stored"]))
    rows, columns = case["right"].shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.sampled_from((2, 4, 8, 16)))
    block = draw(st.sampled_from((0, 0, 3, 16)))
    shape = (-(-rows // block), columns) if block else draw(st.sampled_from(((), (columns,))))
    limit = 2 ** (bits - 1)
    codes = rng.integers(-limit, limit, (rows, columns))
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    zero_point = rng.integers(-limit, limit, shape).astype(np.float32)
    array = draw(st.integers(0, 3))
    case["attributes"] |= {"code_bits": bits, "block_rows": block, "array": array}
    if case["attributes"]["fault_protection"] != "none":
        case["attributes"]["fault_mask"] = 2**bits - 1
    faults = case["feeds"]["faults"]
    exists = (faults[:, 1] % 256 >= 64) | (faults[:, 1] % 256 < bits)
    case["feeds"]["faults"] = np.stack([np.full(len(faults), array), faults[:, 1]], axis=1)[exists]
    return {**case, "operands": (case["left"], stored_codes(codes, bits), scale, zero_point)}


@given(case=quantized_cases())
@settings(deadline=None, max_examples=150)
def test_quantized_nodes_agree(case: dict[str, Any]) -> None:
    trace = Trace()
    expected = crossbar_matmul_quantized(*case["operands"], **case["feeds"], trace=trace, **case["attributes"])
    native = run_one_node("CrossbarMatMulQuantized", case["attributes"], case["operands"], case["feeds"])
    codes, scale, zero_point = case["operands"][1:]
    facts = case["attributes"]
    w = numbers_of(read_codes(codes, facts["code_bits"]), scale, zero_point, facts["block_rows"])
    assert_agree(native, expected, trace, case, w)


def test_a_quantized_node_equals_the_plain_node_of_its_dequantized_weight() -> None:
    case = wide_case(True)
    rng = np.random.default_rng(5)
    codes = rng.integers(-128, 128, case["right"].shape).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, codes.shape[1]).astype(np.float32)
    zero_point = rng.integers(-5, 5, codes.shape[1]).astype(np.float32)
    attributes = {**case["attributes"], "code_bits": 8, "block_rows": 0}
    quantized = run_one_node(
        "CrossbarMatMulQuantized", attributes, (case["left"], codes, scale, zero_point), case["feeds"]
    )
    w = ((codes.astype(np.float32) - zero_point) * scale).astype(np.float32)
    plain = run_one_node("CrossbarMatMul", case["attributes"], (case["left"], w), case["feeds"])
    np.testing.assert_array_equal(quantized, plain)


@given(
    shape=st.sampled_from(((7,), (5, 9), (2, 3, 10), (300, 64))),
    model=st.sampled_from(DISTURBANCES),
    strength=st.sampled_from((0.0, 0.5, 1.0)),
    seed=words,
    head=st.sampled_from((-1, -1, 0)),
    array=st.integers(0, 5),
)
@settings(deadline=None, max_examples=80)
def test_faulty_weights_agree(shape: Any, model: str, strength: float, seed: int, head: int, array: int) -> None:
    w = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    numbers = {} if model == "none" else {"program.sigma": 0.2, "program.sigma_cycle": 0.1}
    if model == "lognormal_g":
        numbers |= {"mapping.g_min_us": 1.0, "mapping.g_max_us": 20.0}
    attributes = {**wide_case(True)["attributes"], "program": model, "entries": ",".join(numbers), "array": array}
    attributes |= {
        "encoding": "differential" if model == "lognormal_g" else "weight",
        "dac": "none",
        "adc": "none",
        "bound_management": "none",
        "read_noise": "none",
        "tile_rows": 2,
    }
    feeds = controls(list(numbers.values()), strength=strength, seed=seed, read_seed=6, head=head)
    native = run_one_node("FaultyWeight", attributes, (w,), feeds)
    del feeds["sample"], feeds["position"], feeds["ranges"], attributes["window"]
    attributes = {name: value for name, value in attributes.items() if not name.startswith("range_")}
    expected = faulty_weight(w, **feeds, **attributes)
    np.testing.assert_allclose(native, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    changes = model != "none" and strength > 0 and head < 0
    assert np.array_equal(native, w) != changes


def test_sites_that_share_an_array_hold_the_same_values() -> None:
    case = wide_case(True)
    quiet = {"dac": "none", "adc": "none", "bound_management": "none", "read_noise": "none"}
    attributes = {**case["attributes"], **quiet, "entries": "program.sigma,program.sigma_cycle", "sites": 4, "site": 1}
    feeds = controls([0.1, 0.05], seed=3) | {
        "strength": np.ones(4, np.float32),
        "ranges": np.ones((4, 4), np.float32),
    }

    def of(site: int, array: int) -> NDArray[np.float32]:
        node = {**attributes, "site": site, "array": array}
        return run_one_node("CrossbarMatMul", node, (case["left"], case["right"]), feeds)

    np.testing.assert_array_equal(of(1, 1), of(3, 1))
    assert not np.array_equal(of(1, 1), of(3, 3))
