"""The products of PyTorch against the NumPy twin of the operators, on random nodes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from emu.contract.schema import DYNAMIC, STORED
from emu.contract.structure import check_controls, parse_structure
from emu.reference import Trace, crossbar_matmul, crossbar_matmul_dynamic
from emu.reference.mapping import mapping_of
from emu.reference.periphery import Reading
from emu.reference.storing import Stored, held_weights, stored_operand
from emu.train.crossbar import crossbar_product
from emu.train.emulated import Draw, StoredProduct, WrittenProduct
from emu.train.products import Call, Place, Product
from tests.custom_ops.test_native_equals_twin import assert_agree, cases
from tests.reference.nodes import PLAIN_STORED, controls

CONTROLS = ("device", "strength", "ranges", "faults", "seed", "read_seed", "sample", "position", "keys")


def chip_of(case: dict[str, Any]) -> Any:
    """What a site asks of its chip."""
    feeds, sample = case["feeds"], np.atleast_1d(case["feeds"]["sample"])
    axis = case["attributes"]["sample_axis"]
    batch = int(sample[1]) if len(sample) == 2 else (case["left"].shape[axis] if axis >= 0 else 1)

    def of_run(structure: Any, site: Any, faults: Any) -> Any:
        return check_controls(structure, *(feeds.get(name) for name in CONTROLS))

    return SimpleNamespace(
        drawn=Draw(int(feeds["seed"]), int(feeds["read_seed"]), int(sample[0])),
        batch=batch,
        strength=float(feeds["strength"][0]),
        numbers={"device": feeds["device"]}.__getitem__,
        controls=of_run,
        model=SimpleNamespace(training=False),
        gradient="straight_through",
        drop_connect=0.0,
    )


@given(case=cases())
@settings(deadline=None, max_examples=100)
def test_products_agree_with_the_twin_on_random_nodes(case: dict[str, Any]) -> None:
    assume(case["feeds"]["head"] == -1 and case["feeds"]["strength"][0] > 0)
    # Attention of PyTorch has one key and value for each query: no operand is shared by samples or heads.
    shared = case["attributes"]["sample_axis"] == 1 or case["left"].shape[:-2] != case["right"].shape[:-2]
    assume(case["stored"] or not shared)
    assume(np.any(case["left"]) and np.any(case["right"]))  # else all that is left is rounding
    # There an output of 0 lies between two codes, and the last bit of the range decides.
    assume((case["attributes"]["adc"], case["attributes"]["adc_code"]) != ("absmax", "offset_binary"))
    trace = Trace()
    twin = crossbar_matmul if case["stored"] else crossbar_matmul_dynamic
    expected = twin(case["left"], case["right"], **case["feeds"], trace=trace, **case["attributes"])
    chip, site, left, right = chip_of(case), SimpleNamespace(device="device"), case["left"], case["right"]
    if case["stored"]:
        weight = torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(right.T)))
        product = Product(Place("", 0, 0), "linear", weight, right.shape)
        stored = StoredProduct(chip, site, case["attributes"], weight, product, case["feeds"]["faults"])
        with torch.no_grad():
            call = Call("linear", weight)
            y = stored.product(torch.nn.functional.linear, call, (torch.from_numpy(left), weight), {})
    else:
        with torch.no_grad():
            y = WrittenProduct(chip, site, case["attributes"]).product(torch.from_numpy(left), torch.from_numpy(right))
    assert tuple(y.shape) == expected.shape
    assert_agree(y.numpy(), expected, trace, case, right)


@given(case=cases())
@settings(deadline=None, max_examples=100)
def test_products_stay_on_the_device_of_their_operands(case: dict[str, Any]) -> None:
    """On the device `meta`, whose tensors have no values to fetch and meet no tensor of another device."""
    attributes, feeds, right = case["attributes"], case["feeds"], case["right"]
    assume(attributes["bound_management"] == "none")  # which asks whether rows wait
    structure = parse_structure(STORED if case["stored"] else DYNAMIC, attributes)
    of_run = check_controls(structure, *(feeds.get(name) for name in CONTROLS))
    *stack, rows, columns = right.shape

    def empty(*shape: int) -> Any:
        return torch.empty(shape, device="meta")

    def normals_of(*leading: int) -> Any:
        return lambda _, part, tile=0, reading=0, uniform=False: empty(*leading, part.stop - part.start)

    tiles = len(structure.row_tiles(rows))
    if case["stored"]:
        slices, mapping, s = structure.arrays, mapping_of(structure, of_run), empty(tiles, columns)
        v, unit = empty(slices, rows, columns), empty(slices, rows, 1)
        of_unit = unit if structure.offset_correction == "unit_column" else None
        stored = Stored(v, s, mapping, held_weights(v, s, mapping, structure), of_unit)
    else:
        b = empty(*stack, rows, columns)
        stored = stored_operand(b, normals_of(*stack, rows), structure, of_run)
    errors = dict.fromkeys(("gain", "offset"), empty(len(stored.v), tiles, columns))
    y = Reading(stored, errors, structure, of_run, normals_of(*stack, 7)).of(empty(*stack, 7, rows))
    assert (y.shape, y.dtype, y.device.type) == ((*stack, 7, columns), torch.float32, "meta")


def test_outputs_beyond_the_range_of_an_adc_pass_no_gradient() -> None:
    """Two row tiles of one row; the first column of the first one, and the second of the second, are clipped at 1."""
    node = {**PLAIN_STORED, **controls({"adc.bits": 0, "adc.steps": 0, "adc.bound": 1}), "adc": "fixed", "tile_rows": 1}
    feeds = {name: node.pop(name, None) for name in (*CONTROLS, "head")}
    structure = parse_structure(STORED, node)
    of_run = check_controls(structure, *(feeds[name] for name in CONTROLS))
    w = torch.tensor([[3.0, 0.5], [0.25, -2.0]], requires_grad=True)
    x = torch.ones((1, 2), requires_grad=True)
    ones = torch.ones((2, 2))
    held = Stored(w.detach()[None], ones, mapping_of(structure, of_run), w.detach())
    y = crossbar_product(x, w, Reading(held, {}, structure, of_run, normals=lambda *_, **__: ones))
    y.backward(torch.tensor([[1.0, 10.0]]))
    assert y.tolist() == [[1.25, -0.5]]
    assert x.grad.tolist() == [[5.0, 0.25]]
    assert w.grad.tolist() == [[0.0, 10.0], [1.0, 0.0]]
