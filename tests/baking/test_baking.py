"""A baked chip is a plain file that computes what the emulated chip computes, and says which chip it is."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

import emu
from emu.baking import bake, bake_chips, read_baked
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from tests.rewriter.exported import ASSETS, path_of, quantized_graphs
from tests.rewriter.small import initializer, model, transformer, values

WEIGHT_ONLY = ("rram", "pcm", "pcm_hermes", "rram_cmo", "sonos", "stuck_at", "int8_flips", "float32_flips")
IMAGES = np.load(data_path("digits_vit"))
X = {"x": values(4, 5, 8)}


def outputs(path, feeds):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("device", WEIGHT_ONLY)
def test_weight_only_devices_are_baked_to_the_bit(device, tmp_path):
    emulated = emu.rewrite(model_path("digits_vit"), device)
    path = tmp_path / "chip7.onnx"
    proof = bake(emulated, seed=7).save(path, data_path("digits_vit"))
    feeds = {"pixel_values": IMAGES["pixel_values"][:40]}
    expected = emu.session(emulated).run(None, {**feeds, "emu.seed": np.int64(7)})
    clean = outputs(model_path("digits_vit"), feeds)
    np.testing.assert_array_equal(outputs(path, feeds)[0], expected[0])
    assert device == "float32_flips" or np.abs(expected[0] - clean[0]).max() > 1e-3
    assert proof.equal and proof.random == 2 and proof.given == 64
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not any(value.name.startswith("emu.") for value in (*proto.graph.input, *proto.graph.initializer))


def test_a_baked_file_runs_where_emu_is_not(tmp_path):
    path = tmp_path / "chip7.onnx"
    bake(transformer(), "stuck_at", seed=7).save(path)
    code = (
        "import sys, numpy, onnxruntime; sys.modules['emu'] = None; x = numpy.ones((2, 5, 8), 'float32');"
        f"print(onnxruntime.InferenceSession({str(path)!r}).run(None, {{'x': x}})[0].sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    own = outputs(path, {"x": np.ones((2, 5, 8), np.float32)})[0]
    assert float(done.stdout) == pytest.approx(float(own.sum()), rel=1e-5)
    reference = ReferenceEvaluator(onnx.load(path)).run(None, {"x": np.ones((2, 5, 8), np.float32)})[0]
    np.testing.assert_allclose(reference, own, rtol=1e-3, atol=1e-4)


def test_settings_chips_and_repetitions_are_those_that_were_asked_for(tmp_path):
    def weights(**options):
        baked = bake(emu.rewrite(transformer(), "pcm_hermes"), **options)
        return baked, np.concatenate(
            [baked._model.graph.initializers[n].const_value.numpy().ravel() for n in sorted(baked._stored)]
        )

    first, one = weights(seed=1)
    again, same = weights(seed=1)
    np.testing.assert_array_equal(one, same)
    assert first.chip.fingerprint == again.chip.fingerprint
    for other in ({"seed": 2}, {"seed": 1, "read_seed": 1}, {"seed": 1, "set": {"drift.time_s": "1y"}}):
        baked, different = weights(**other)
        assert baked.chip.fingerprint != first.chip.fingerprint and not np.array_equal(one, different)


def test_convolutions_stacks_and_shared_arrays_stay_what_they_were(tmp_path):
    proto = model(
        "h = Conv <group = 2, strides = [2, 2], pads = [1, 0, 1, 0]> (x, k)  s = Shape(h)  r = Reshape(h, shape)"
        "  y = MatMul(r, w)",
        inputs="float[batch, 4, 8, 8] x",
        outputs="float[batch, 3, a, b] y",
        k=values(6, 2, 3, 2),
        shape=np.array([0, 3, -1, 4]),
        w=values(3, 4, 5),
    )
    emulated = emu.rewrite(proto, "rram", set={"program.sigma": 0.5}, only="*")
    path = tmp_path / "chip.onnx"
    bake(emulated, seed=3).save(path)
    feeds = {"x": values(2, 4, 8, 8)}
    expected = emu.session(emulated).run(None, {**feeds, "emu.seed": np.int64(3)})[0]
    np.testing.assert_allclose(outputs(path, feeds)[0], expected, rtol=1e-4, atol=1e-5)
    baked = onnx.load(path)
    assert [n.op_type for n in baked.graph.node if n.op_type in ("Conv", "MatMul")] == ["Conv", "MatMul"]

    twice = model("a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w)", w=values(4, 4))
    baked = bake(twice, "rram", only="*").model
    assert [tensor.name for tensor in baked.graph.initializer] == ["w.stored"]
    assert len([each for each in baked.graph.node if each.op_type == "MatMul"]) == 2


def test_stored_tensors_are_baked_too(tmp_path):
    table = values(12, 8)
    proto = model(
        "e = Gather(table, ids)  y = MatMul(e, w)", inputs="int64[batch, 5] ids", outputs="float[batch, 5, 6] y",
        table=table, w=values(8, 6),
    )  # fmt: skip
    emulated = emu.rewrite(proto, "int8_flips", set={"faults.ber": 0.02}, stored="component=word_embedding", only="*")
    path = tmp_path / "chip.onnx"
    assert bake(emulated, seed=1).save(path).equal
    stored = initializer(onnx.load(path), "table.stored")
    assert stored.shape == table.shape and not np.array_equal(stored, table)


def test_what_acts_at_run_time_is_refused_or_dropped(tmp_path):
    with pytest.raises(InputError, match=r"read noise of weights 0.01, at 6 sites.*--drop read"):
        bake(transformer(), "rram_wan", only="component=query,key,value,attention_output,ffn_*")
    with pytest.raises(InputError, match=r"DAC and ADC.*--drop read,converters"):
        bake(transformer(), "pcm_aihwkit")
    with pytest.raises(InputError, match=r"written at run time.*--drop converters,write"):
        bake(transformer(), "clipformer")
    with pytest.raises(InputError, match="'reads' cannot be dropped: choose among read, write"):
        bake(transformer(), "rram", drop=["reads"])
    path = tmp_path / "chip.onnx"
    baked = bake(transformer(), "rram_wan", drop=["read"])
    assert baked.save(path).largest_difference < 1e-5  # from the emulated chip without that noise
    assert read_baked(path).dropped == ("read",)
    quiet = bake(transformer(), "rram_wan", set={"read.weight_noise": 0})
    assert quiet.chip.fingerprint == baked.chip.fingerprint


@pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")
@pytest.mark.parametrize("graph", quantized_graphs(), ids=lambda graph: graph["file"])
def test_quantized_layers_stay_quantized_and_their_codes_flip(graph, tmp_path):
    clean = bake(path_of(graph), "int8_flips", set={"faults.ber": 0}).model
    path = tmp_path / "chip.onnx"
    flipped = bake(path_of(graph), "int8_flips", set={"faults.ber": 1e-2}, seed=7)
    assert not flipped.notes
    flipped.save(path)
    before, after = (
        {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
        for proto in (clean, onnx.load(path))
    )
    codes = [name for name in flipped._stored if before[name].dtype in (np.int8, np.uint8)]
    assert len(codes) >= 12
    bits = sum(int(np.unpackbits(before[name].view(np.uint8) ^ after[name].view(np.uint8)).sum()) for name in codes)
    total = sum(before[name].size * 8 for name in codes)
    assert 0.002 < bits / total < 0.02


def test_codes_that_become_conductances_become_floats():
    codes = values(16, 8) * 40
    proto = model(
        "w = DequantizeLinear(c, s, z)  y = MatMul(x, w)", inputs="float[batch, 16] x",
        c=codes.astype(np.int8), s=np.float32(0.02), z=np.int8(3),
    )  # fmt: skip
    baked = bake(proto, "rram", only="*")
    assert "Codes of 1 site became floats" in baked.notes[0]
    assert onnx.numpy_helper.to_array(baked.model.graph.initializer[0]).dtype == np.float32


def test_a_folder_of_chips_shares_what_no_array_holds(tmp_path):
    folder = tmp_path / "chips"
    proofs = bake_chips(model_path("digits_vit"), folder, range(3), "rram", exclude="component=ffn_*")
    assert list(proofs) == [0, 1, 2] and all(each.equal for each in proofs.values())
    assert sorted(each.name for each in folder.iterdir()) == ["chip0.onnx", "chip1.onnx", "chip2.onnx", "shared.data"]
    feeds = {"pixel_values": IMAGES["pixel_values"][:8]}
    emulated = emu.rewrite(model_path("digits_vit"), "rram", exclude="component=ffn_*")
    for seed in range(3):
        expected = emu.session(emulated).run(None, {**feeds, "emu.seed": np.int64(seed)})[0]
        np.testing.assert_array_equal(outputs(folder / f"chip{seed}.onnx", feeds)[0], expected)
    alone = tmp_path / "alone.onnx"
    bake(emulated, seed=0).save(alone)
    assert (folder / "chip0.onnx").stat().st_size < 0.6 * alone.stat().st_size  # the FFNs lie in the shared file
    with pytest.raises(InputError, match="exists already"):
        bake_chips(model_path("digits_vit"), folder, range(3), "rram")


def test_the_command_bakes_and_inspect_tells_which_chip(tmp_path):
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    path = tmp_path / "chip7.onnx"
    done = run("bake", model_path("digits_vit"), "--device", "stuck_at", "--seed", 7, "-o", path)
    assert done.exit_code == 0, done.output
    assert "equal those of the emulated chip to the bit" in done.stdout and "chip 7 of stuck_at" in done.stdout
    shown = run("inspect", path).stdout
    assert "baked, chip 7 of stuck_at" in shown and "faults.stuck_low 0.09" in shown
    record = json.loads(run("inspect", path, "--json").stdout)["baked"]
    assert record["seed"] == 7 and record["source"] == "digits_vit.onnx" and len(record["fingerprint"]) == 64

    again = run("bake", path, "--device", "rram", "-o", tmp_path / "other.onnx")
    assert again.exit_code == 2 and "is baked already (chip 7 of stuck_at)" in again.stderr
    assert "has no chips: give a device" in run("bake", model_path("digits_vit")).stderr
    assert "Give --seed for one chip" in run("bake", path, "--seed", 1, "--seeds", "0:2").stderr
    assert "names no seed" in run("bake", path, "--seeds", "3:1").stderr
    folder = tmp_path / "chips"
    done = run("bake", model_path("digits_vit"), "--device", "rram", "--seeds", "0:4:2,7", "-o", folder, "--no-proof")
    assert done.exit_code == 0 and sorted(each.stem for each in folder.glob("*.onnx")) == [
        "chip0",
        "chip2",
        "chip4",
        "chip7",
    ]


ADCS = (
    {"range": "absmax", "bits": 8},
    {"range": "fixed", "bound": 6, "bits": 8, "code": "offset_binary"},
    {"range": "rows", "bits": 9, "code": "twos_complement"},
)


@pytest.mark.parametrize("adc", ADCS, ids=lambda adc: adc["range"])
@pytest.mark.parametrize(
    "dac", [{"range": "absmax", "bits": 7}, {"range": "fixed", "max": 2, "bits": 6, "code": "offset_binary"}]
)
def test_converters_are_written_in_standard_operators(adc, dac, tmp_path):
    device = {"program": {"model": "lognormal_w", "sigma": 0.2}, "dac": {"model": "uniform", **dac}}
    device |= {"adc": {"model": "uniform", **adc}, "mapping": {"tile_rows": 5}}
    emulated = emu.rewrite(model("y = MatMul(x, w)", inputs="float[batch, 12] x", w=values(12, 7)), device, only="*")
    x = values(50, 12, seed=4)
    x[3] = 0
    path = tmp_path / "chip.onnx"
    bake(emulated, seed=5, converters=True).save(path, {"x": x})
    got = outputs(path, {"x": x})[0]
    expected = emu.session(emulated).run(None, {"x": x, "emu.seed": np.int64(5)})[0]
    plain = x @ initializer(bake(emulated, seed=5, drop=["converters"]).model, "w.stored")
    assert np.abs(plain - expected).max() > 1e-2  # converters do act
    off = np.abs(got - expected) > 1e-4
    assert off.mean() < 0.01 and np.abs(got - expected).max() < 0.2
    assert {"MatMul", "Round", "Slice", "Sum"} <= {node.op_type for node in onnx.load(path).graph.node}
    onnx.checker.check_model(path)


def test_converters_that_have_no_standard_operators_are_refused():
    for device, only, reason in (
        ("isaac", "component=query", "because of slices of weights or of inputs"),
        ("rram_adc", "component=query", "because of bound management"),
        ("rram_neurosim", "component=patch_embedding", "because of a convolution"),
    ):
        with pytest.raises(InputError, match=reason):
            bake(model_path("digits_vit"), device, only=only, converters=True, drop=["read"])
    with pytest.raises(InputError, match="either written or dropped"):
        bake(transformer(), "rram_adc", converters=True, drop=["converters"])
    with pytest.raises(InputError, match="run 'emu calibrate'"):
        bake(transformer(), "pcm_afm", converters=True)
