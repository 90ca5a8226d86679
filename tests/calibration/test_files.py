"""Files of calibrated ranges: what is written is read again, and what is of another model is refused."""

import csv
import json
import struct

import numpy as np
import pytest
from typer.testing import CliRunner

import emu
from emu.calibration import calibrate, export_ranges, import_ranges
from emu.cli import app
from emu.errors import InputError
from emu.rewriter import rewrite
from tests.rewriter.small import model, values

DEVICE = {
    "mapping": {
        "encoding": "differential", "g_min_us": 0, "g_max_us": 100, "weight_bits": 8, "slice_bits": 4, "tile_rows": 4,
    },
    "dac": {"model": "uniform", "range": "calibrated", "range_per": "tile", "bits": 8},
    "adc": {"model": "uniform", "range": "calibrated", "range_per": "tile_slice", "bits": 8, "code": "offset_binary"},
    "write": {"model": "gauss_range", "sigma": 0.1, "scaling": "calibrated"},
}  # fmt: skip
INPUTS_ALONE = DEVICE | {"adc": {"model": "none"}, "write": {"model": "none"}}


def original():
    """Two layers with the names that exporters give, and a product of activations."""
    proto = model(
        "a = MatMul(x, up) b = Relu(a) c = MatMul(b, down) t = Transpose <perm = [0, 2, 1]> (c) y = MatMul(c, t)",
        inputs="float[batch, 5, 6] x",
        outputs="float[batch, 5, 5] y",
        up=values(6, 8),
        down=values(8, 3, seed=1),
    )
    names = ("/block.0/fc1/MatMul", "relu", "/block.0/fc2/MatMul", "t", "/MatMul")
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    return proto


def calibrated(device=DEVICE):
    return calibrate(rewrite(original(), device), {"x": values(6, 5, 6)}, ops="python")


def test_what_is_exported_is_imported_again(tmp_path):
    result = calibrated()
    count = export_ranges(result, tmp_path / "ranges.csv")
    text = (tmp_path / "ranges.csv").read_text("utf-8").splitlines()
    assert text[0] == "node,tile,slice,polarity,largest_input,lowest_output,highest_output,largest_operand"
    assert len(text) == 1 + count == 1 + 2 * 2 + 2 * 2 + 1
    first = result.value("emu.ranges")[0]
    assert text[1] == f"/block.0/fc1/MatMul,0,0,0,{first[0]!s},{first[1]!s},{first[2]!s},"
    assert text[2] == f"/block.0/fc1/MatMul,0,1,0,,{first[5]!s},{first[6]!s},"
    again = import_ranges(rewrite(original(), DEVICE), tmp_path / "ranges.csv")
    assert again.manifest.calibration == {"method": "import", "data": str(tmp_path / "ranges.csv")}
    data = {"x": values(3, 5, 6, seed=7)}
    one, other = (emu.session(each, ops="python").run(None, data)[0] for each in (result, again))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("line", "column", "value", "says"),
    [
        (
            2,
            "node",
            "/fc3/MatMul",
            "line 2 is of node '/fc3/MatMul', at which the model has no calibrated",
        ),
        (2, "tile", "2", "line 2 is of tile '2', expected 0 to 1, which node '/block.0/fc1/MatMul' has"),
        (2, "slice", "-1", "line 2 is of slice '-1', expected 0 to 1"),
        (2, "polarity", "1", "line 2 is of polarity '1', expected 0 to 0"),
        (2, "largest_input", "nan", "line 2 has largest_input 'nan', expected a number greater than 0"),
        (2, "largest_input", "0", "line 2 has largest_input '0', expected a number greater than 0"),
        (2, "largest_input", "1e39", "line 2 has largest_input '1e39', expected a number greater than 0"),
        (2, "largest_input", "", "line 2 has largest_input '', expected a number greater than 0"),
        (3, "highest_output", "inf", "line 3 has highest_output 'inf', expected a finite number"),
        (3, "highest_output", "-99", "to -99, expected the lowest first"),
        (3, "largest_input", "2", "line 3 has largest_input '2', expected nothing: the device does not read it there"),
        (3, "slice", "0", "line 3 gives tile 0, slice 0, polarity 0 of node '/block.0/fc1/MatMul' a second time"),
        (10, None, None, "lacks largest_input of tile 0, slice 0, polarity 0 of node '/MatMul'"),
        (1, "tile", "row_tile", "is no file of ranges: expected 'node,tile,slice,polarity,largest_input"),
        (4, "largest_operand", "3,4", "line 4 has 9 values, expected 8"),
    ],
)
def test_ranges_of_another_model_are_refused(tmp_path, line, column, value, says):
    path = tmp_path / "ranges.csv"
    export_ranges(calibrated(), path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if column is None:
        del rows[line - 1]
    elif "," in value:
        rows[line - 1] = [*rows[line - 1][:-1], *value.split(",")]
    else:
        rows[line - 1][rows[0].index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(InputError) as refusal:
        import_ranges(rewrite(original(), DEVICE), path)
    assert says in str(refusal.value) and str(path) in str(refusal.value)


def test_only_models_with_ranges_are_exported_and_only_files_of_ranges_imported(tmp_path):
    with pytest.raises(InputError, match="is not calibrated yet: run 'emu calibrate'"):
        export_ranges(rewrite(original(), DEVICE), tmp_path / "ranges.csv")
    plain = rewrite(original(), "rram", "*")
    with pytest.raises(InputError, match="has no converters with calibrated ranges"):
        export_ranges(plain, tmp_path / "ranges.csv")
    (tmp_path / "ranges.csv").write_bytes(b"\xff\xfe")
    (tmp_path / "ranges.txt").write_text("")
    for emulated, name, says in (
        (plain, "ranges.csv", "has no converters with calibrated ranges"),
        (calibrated(), "none.csv", "There is no file"),
        (calibrated(), "ranges.txt", "is no file of ranges: expected .csv"),
        (calibrated(), "ranges.csv", "is no CSV file"),
    ):
        with pytest.raises(InputError, match=says):
            import_ranges(emulated, tmp_path / name)


def write_state(path, **tensors):
    """Writes a .safetensors file, also of bfloat16."""
    header, parts, end = {}, [], 0
    for name, value in tensors.items():
        array = np.asarray(value)
        parts.append(array.tobytes())
        kind = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def of_layers(fc1=(1.5, 2.5), fc2=(0.5, 4), **others):
    named = {"block.0.fc1.input_range": np.float32(fc1), "block.0.fc2.input_range": np.float32(fc2)}
    return {**named, "block.0.fc1.weight": np.zeros((8, 6), np.float32), **others}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_input_ranges_of_a_state_dict_go_to_the_tiles_of_their_layers(tmp_path, prefix):
    state = {prefix + name: value for name, value in of_layers().items()}
    # The upper half of a float32 holds 1.5 and 2.5 exactly.
    state[f"{prefix}block.0.fc1.input_range"] = (np.float32((1.5, 2.5)).view(np.uint32) >> 16).astype(np.uint16)
    write_state(tmp_path / "state.safetensors", **state)
    emulated = rewrite(original(), INPUTS_ALONE, "operand=stored")
    ranges = import_ranges(emulated, tmp_path / "state.safetensors").value("emu.ranges").reshape(2, 2, 4)
    np.testing.assert_array_equal(ranges[..., 0], [[1.5, 2.5], [0.5, 4]])


def test_a_state_dict_of_torch_is_read_too(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in of_layers().items()}
    emulated = rewrite(original(), INPUTS_ALONE, "operand=stored")
    for content in (state, {"state_dict": state, "epoch": 3}):
        torch.save(content, tmp_path / "state.pt")
        ranges = import_ranges(emulated, tmp_path / "state.pt").value("emu.ranges").reshape(2, 2, 4)
        np.testing.assert_array_equal(ranges[..., 0], [[1.5, 2.5], [0.5, 4]])
    (tmp_path / "state.bin").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="cannot be read by torch.load"):
        import_ranges(emulated, tmp_path / "state.bin")


@pytest.mark.parametrize(
    ("state", "device", "says"),
    [
        (of_layers(**{"head.input_range": np.float32([1])}), INPUTS_ALONE, "layer 'head', and the model has no site"),
        (of_layers(fc1=(1, 2, 3)), INPUTS_ALONE, "has 3 input ranges of layer 'block.0.fc1', and node "),
        (of_layers(fc1=(1, np.inf)), INPUTS_ALONE, "layer 'block.0.fc1' that is not a number greater than 0"),
        (of_layers(fc1=(1, -2)), INPUTS_ALONE, "layer 'block.0.fc1' that is not a number greater than 0"),
        (of_layers(), DEVICE, "has input ranges alone, and the ADC of node '/block.0/fc1/MatMul' is calibrated too"),
        ({"block.0.fc1.input_range": np.float32([1, 2])}, INPUTS_ALONE, "lacks largest_input of tile 0, .* fc2|fc2"),
        ({"block.0.fc1.weight": np.zeros((8, 6), np.float32)}, INPUTS_ALONE, "has no input ranges of aihwkit-lightn"),
        ({"block.0.fc1.input_range": np.int64([1, 2])}, INPUTS_ALONE, "cannot be read as .safetensors: 'I64'"),
    ],
)
def test_a_state_dict_of_another_model_is_refused(tmp_path, state, device, says):
    write_state(tmp_path / "state.safetensors", **state)
    with pytest.raises(InputError, match=says):
        import_ranges(rewrite(original(), device, "operand=stored"), tmp_path / "state.safetensors")


def test_a_damaged_file_is_refused(tmp_path):
    emulated = rewrite(original(), INPUTS_ALONE, "operand=stored")
    write_state(tmp_path / "state.safetensors", **of_layers())
    whole = (tmp_path / "state.safetensors").read_bytes()
    for damaged in (b"", whole[:7], whole[:40], whole[:-200], b"\xff" * 40, struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "state.safetensors").write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read as .safetensors"):
            import_ranges(emulated, tmp_path / "state.safetensors")


def test_the_command_exports_shows_and_imports(tmp_path):
    def command(*arguments):
        return CliRunner().invoke(app, ["ranges", *map(str, arguments)])

    calibrated().save(tmp_path / "m.onnx")
    rewrite(original(), DEVICE).save(tmp_path / "new.onnx")
    outcome = command(tmp_path / "m.onnx", "--export", tmp_path / "ranges.csv")
    assert outcome.exit_code == 0 and f"Wrote {tmp_path / 'ranges.csv'}, 9 ranges." in outcome.output
    assert command(tmp_path / "m.onnx", "--export", tmp_path / "ranges.csv").exit_code != 0, "it exists already"
    outcome = command(tmp_path / "new.onnx", "--import", tmp_path / "ranges.csv")
    assert outcome.exit_code == 0 and f"Wrote {tmp_path / 'new.calibrated.onnx'}, with the ranges of" in outcome.output
    rows = [json.loads(command(tmp_path / name, "--json").stdout) for name in ("m.onnx", "new.calibrated.onnx")]
    assert rows[0] == rows[1] and rows[0][0]["ranges"] == 4 and rows[0][0]["largest_operand"] is None
    assert json.loads(command(tmp_path / "new.onnx", "--json").stdout)[0]["largest_input"] is None
    assert command(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx").exit_code != 0, "nothing is imported"
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "new.calibrated.onnx")]).output
    assert f"Converters calibrated by import of {tmp_path / 'ranges.csv'}." in inspected
