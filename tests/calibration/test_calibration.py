"""Calibration: ranges fit what converters meet on data, and a model that lacks them says so."""

import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import emu
from emu.calibration import calibrate
from emu.cli import app
from emu.errors import InputError
from emu.evaluation import evaluate, run
from emu.rewriter import Calibrated, calibrated_sites, read_manifest, rewrite
from tests.evaluation.tiny import image_model, save_image_processor
from tests.rewriter.small import initializer, model, transformer, values

DAC = {"model": "uniform", "range": "calibrated", "bits": 8}
ADC = {"model": "uniform", "range": "calibrated", "bits": 8}
PAIRS = {"encoding": "differential", "g_min_us": 10, "g_max_us": 100}
X = {"x": values(6, 5, 8)}


def calibrated(device, original=None, data=X, **options):
    emulated = rewrite(original or transformer(), device)
    return calibrate(emulated, data, ops="python", **options)


def one_product(**device):
    """A product of 40 x 8 with 8 x 6, its inputs and its weight."""
    return model("y = MatMul(x, w)", inputs="float[batch, 8] x", w=values(8, 6)), values(40, 8, seed=2), values(8, 6)


def test_a_dac_gets_the_largest_activation_that_enters_its_site():
    original = transformer()
    result = calibrated({"dac": DAC}, original)
    ranges = result.value("emu.ranges")
    names = {"x": X["x"]}
    for name in ("up0", "middle0", "active0", "qh0", "weights0"):
        shown = onnx.ModelProto()
        shown.CopyFrom(original)
        shown.graph.output.append(onnx.ValueInfoProto(name=name))
        names[name] = emu.session(shown, ops="python").run([name], X)[0]
    sites = {site.node: site.index for site in result.manifest.sites}
    fed = {"q0": "x", "up0": "middle0", "down0": "active0", "scores0": "qh0", "context0": "weights0"}
    for site, name in fed.items():
        assert ranges[sites[site], 0] == pytest.approx(np.abs(names[name]).max(), rel=1e-5)
    np.testing.assert_array_equal(ranges[:, 1:], [[-1, 1, 1]] * len(ranges))


def test_a_written_operand_gets_the_largest_magnitude_that_its_site_writes():
    original = transformer()
    result = calibrated({"write": {"model": "gauss_range", "sigma": 0.1, "scaling": "calibrated"}}, original)
    ranges = result.value("emu.ranges")
    written = [site for site in result.manifest.sites if not site.is_stored]
    assert len(written) == 2 and result.nodes()[written[0].node].attributes["write_scaling"].value == "calibrated"
    shown = onnx.ModelProto()
    shown.CopyFrom(original)
    operands = {node.name: node.input[1] for node in original.graph.node if node.op_type == "MatMul"}
    names = [operands[site.node] for site in written]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for site, value in zip(written, emu.session(shown, ops="python").run(names, X), strict=True):
        assert ranges[site.index, 3] == pytest.approx(np.abs(value).max(), rel=1e-5)
    np.testing.assert_array_equal(ranges[:, :3], [[1, -1, 1]] * len(ranges))


@pytest.mark.parametrize("code", ["sign_magnitude", "twos_complement", "offset_binary"])
def test_an_adc_gets_the_range_of_the_outputs_of_its_tiles(code):
    original, x, w = one_product()
    device = {"mapping": PAIRS | {"tile_rows": 4}, "dac": DAC, "adc": ADC | {"code": code}}
    largest, low, high, _ = calibrated(device, original, {"x": x}).value("emu.ranges")[0]
    assert largest == np.abs(x).max()
    fed = np.rint(x / largest * 127) / 127
    v = 0.9 * w / np.abs(w).max()
    y = np.stack([fed[:, k : k + 4] @ v[k : k + 4] for k in (0, 4)])
    expected = (y.min(), y.max()) if code == "offset_binary" else (-np.abs(y).max(), np.abs(y).max())
    np.testing.assert_allclose([low, high], expected, rtol=1e-5)


def test_outputs_of_slices_are_digits_times_digits():
    original, x, w = one_product()
    mapping = PAIRS | {"g_min_us": 0, "weight_bits": 8, "slice_bits": 4}
    result = calibrated({"mapping": mapping, "dac": DAC | {"slice_bits": 1}, "adc": ADC}, original, {"x": x})
    code = np.rint(np.abs(x) / np.abs(x).max() * 127).astype(int)
    weight = np.rint(np.abs(w) / np.abs(w).max() * 127).astype(int)
    outputs = [
        np.abs((np.sign(x) * (code >> bit & 1)) @ (np.sign(w) * (weight >> shift & 15) / 15))
        for bit in range(7)
        for shift in (0, 4)
    ]
    assert result.value("emu.ranges")[0, 2] == pytest.approx(np.max(outputs), rel=1e-5)


@pytest.mark.parametrize("write", [{"model": "none"}, {"model": "lognormal_w", "sigma": 0.2, "scaling": "sample"}])
def test_operands_written_at_run_time_are_calibrated_undisturbed(write):
    original = model(
        "b = Transpose <perm = [0, 1, 3, 2]> (x) y = MatMul(x, b)",
        inputs="float[batch, 2, 5, 4] x",
        outputs="float[batch, 2, 5, 5] y",
    )
    x = values(3, 2, 5, 4)
    result = calibrated({"write": write, "dac": {"model": "none"}, "adc": ADC}, original, {"x": x}, batch_size=1)
    scale = np.abs(x).max(axis=(1, 2, 3) if "scaling" in write else (2, 3), keepdims=True)
    expected = np.abs(x @ (x / scale).transpose(0, 1, 3, 2)).max()
    assert result.value("emu.ranges")[0, 2] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_integer_codes_are_calibrated_as_the_numbers_that_they_stand_for(kind):
    codes = np.random.default_rng(0).integers(np.iinfo(kind).min, np.iinfo(kind).max, (8, 6)).astype(kind)
    original = model(
        "w = DequantizeLinear(c, s, z)  y = MatMul(x, w)",
        inputs="float[batch, 8] x",
        c=codes,
        s=np.float32(0.1),
        z=kind(3),
        opset=21,
        ir_version=10,
    )
    _, x, _ = one_product()
    w = (codes.astype(np.float32) - 3) * 0.1
    y = x @ (w / np.abs(w).max())
    result = calibrated({"adc": ADC}, original, {"x": x})
    assert result.manifest.sites[0].op == "CrossbarMatMulQuantized"
    assert result.value("emu.ranges")[0, 2] == pytest.approx(np.abs(y).max(), rel=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_calibrated_model_runs_and_stays_near_the_clean_one(method):
    device = {"mapping": {"tile_rows": 4}, "dac": DAC | {"bits": 12}, "adc": ADC | {"bits": 14}}
    data = {"x": values(32, 5, 8, seed=4)}
    result = calibrated(device, data=data, method=method, percentile=100)
    clean = emu.session(transformer(), ops="python").run(None, data)[0]
    error = np.abs(emu.session(result, ops="python").run(None, data)[0] - clean).max() / np.abs(clean).max()
    # Least entropy cuts off the tails.
    assert error < (1.0 if method == "entropy" else 0.01)


def test_the_batch_size_does_not_change_the_largest_numbers():
    first, second = (calibrated({"dac": DAC, "adc": ADC}, batch_size=size).value("emu.ranges") for size in (2, 6))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_samples_limit_the_data_and_the_manifest_says_how(tmp_path):
    np.savez(tmp_path / "data.npz", **X, labels=np.zeros(6, int))
    result = calibrated({"dac": DAC}, data=tmp_path / "data.npz", samples=2, method="percentile", percentile=99.5)
    how = {"method": "percentile", "samples": 2, "data": str(tmp_path / "data.npz"), "percentile": 99.5}
    assert result.manifest.calibration == how
    assert result.value("emu.ranges")[0, 0] <= np.abs(X["x"][:2]).max()
    result.save(tmp_path / "m.onnx")
    assert read_manifest(tmp_path / "m.onnx") == result.manifest
    np.testing.assert_array_equal(initializer(onnx.load(tmp_path / "m.onnx"), "emu.ranges"), result.value("emu.ranges"))
    again = calibrate(tmp_path / "m.onnx", X, ops="python")
    assert again.value("emu.ranges")[0, 0] == np.abs(X["x"]).max()


def test_only_sites_of_calibrated_devices_get_ranges():
    emulated = rewrite(transformer(), "ideal", map=[("component=ffn_up", {"name": "mine", "dac": DAC, "adc": ADC})])
    index = next(site.index for site in emulated.manifest.sites if site.node == "up0")
    assert calibrated_sites(emulated.manifest) == {index: Calibrated(dac="site", adc="site", operand=False)}
    before = emulated.value("emu.ranges")
    assert np.isnan(before[index, :3]).all() and np.isfinite(np.delete(before, index, axis=0)).all()
    after = calibrate(emulated, X, ops="python").value("emu.ranges")
    assert np.isfinite(after).all() and after[index, 0] > 1
    np.testing.assert_array_equal(np.delete(after, index, axis=0), [[1, -1, 1, 1]] * (len(after) - 1))
    assert np.isnan(emulated.value("emu.ranges")[index, :3]).all(), "the given model is not changed"


def test_a_model_that_was_never_calibrated_says_what_to_do():
    emulated = rewrite(transformer(), {"dac": DAC})
    data = {**X, "labels": np.zeros(6, int)}
    for attempt in (lambda: evaluate(emulated, data, ops="python"), lambda: run(emulated, X, ops="python")):
        with pytest.raises(InputError, match="is not calibrated yet: run 'emu calibrate'"):
            attempt()
    with pytest.raises(InputError, match="'ranges' has the activation nan"):
        emu.session(emulated, ops="python").run(None, X)
    result = calibrate(emulated, data, ops="python")
    assert run(result, X, ops="python")["classifier"].shape == (6, 3)


@pytest.mark.parametrize(
    ("device", "data", "options", "says"),
    [
        ("rram", X, {}, "has no converters with calibrated ranges"),
        ({"dac": DAC}, {"y": X["x"]}, {}, "has no array 'x'"),
        ({"dac": DAC}, {"x": X["x"][:0]}, {}, "has no samples"),
        ({"dac": DAC}, X, {"samples": 7}, "ask for 1 to 6"),
        ({"dac": DAC}, X, {"method": "mean"}, "method is 'mean'"),
        ({"dac": DAC}, X, {"percentile": 101}, "percentile is 101"),
        ({"dac": DAC}, X, {"batch_size": 0}, "The batch size is 0"),
        ({"dac": DAC}, {"x": X["x"] * np.inf}, {}, "the inputs of node 'q0' are not finite"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(device, data, options, says):
    with pytest.raises(InputError, match=says):
        calibrated(device, data=data, **options)


def test_a_plain_model_is_refused():
    with pytest.raises(InputError, match="is not rewritten: rewrite it for a device first"):
        calibrate(transformer(), X)


def test_progress_reaches_the_total():
    seen = []
    calibrated({"dac": DAC}, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_images_calibrate_as_their_arrays_do(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    for number, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 90, 200)]):
        (tmp_path / "set" / f"{number}").mkdir(parents=True)
        image.new("RGB", (5, 5), color).save(tmp_path / "set" / f"{number}" / "1.png")
    save_image_processor(tmp_path, 4)
    rewrite(image_model(3, 4, 3), {"dac": DAC}).save(tmp_path / "model.onnx")
    emu_command = ["calibrate", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "set"), "--samples", "2"]
    outcome = CliRunner().invoke(app, [*emu_command, "--json"])
    assert outcome.exit_code == 0, outcome.output
    colors = np.zeros((2, 3, 4, 4), np.float32)
    colors[0, 0] = colors[1, 1] = 1
    expected = calibrate(tmp_path / "model.onnx", {"pixel_values": colors}).value("emu.ranges")
    found = emu.EmulatedModel.open(tmp_path / "model.calibrated.onnx").value("emu.ranges")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    report = json.loads(outcome.stdout)
    assert (report["samples"], report["data"]) == (2, str(tmp_path / "set"))


def test_padding_enters_no_range():
    """Rows of a text that its mask leaves out, before and behind it, whatever they hold."""
    original = model(
        "y = MatMul(tokens, w)",
        inputs="float[batch, length, 6] tokens, int64[batch, length] attention_mask",
        outputs="float[batch, length, 4] y",
        w=values(6, 4),
    )
    tokens = np.random.default_rng(1).normal(size=(5, 7, 6)).astype(np.float32)
    mask = np.ones((5, 7), np.int64)
    mask[0, :2] = mask[1, 4:] = mask[2, :1] = 0
    largest = np.abs(tokens[mask == 1]).max()
    tokens[mask == 0] = 100
    device = {"mapping": PAIRS, "dac": DAC, "adc": ADC}
    data = {"tokens": tokens, "attention_mask": mask}
    for method in ("minmax", "percentile"):
        found, low, high, _ = calibrated(device, original, data, method=method, percentile=100).value("emu.ranges")[0]
        assert found == pytest.approx(largest, rel=1e-3)
        assert -20 < low < high < 20


def test_every_row_tile_gets_the_largest_of_its_inputs():
    original, x, _ = one_product()
    x[:, 4:] *= 3
    for method in ("minmax", "percentile"):
        device = {"mapping": PAIRS | {"tile_rows": 4}, "dac": DAC | {"range_per": "tile"}}
        result = calibrated(device, original, {"x": x}, method=method, percentile=100)
        expected = [np.abs(x[:, :4]).max(), -1, 1, 1, np.abs(x[:, 4:]).max(), -1, 1, 1]
        np.testing.assert_allclose(result.value("emu.ranges"), [expected], rtol=1e-3)
    assert result.nodes()[result.manifest.sites[0].node].attributes["range_tiles"].value == 2


@pytest.mark.parametrize("per", ["site", "tile", "slice", "tile_slice"])
@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_every_tile_and_slice_gets_the_range_of_its_outputs(per, method):
    original, x, w = one_product()
    mapping = PAIRS | {"g_min_us": 0, "weight_bits": 8, "slice_bits": 4, "tile_rows": 4}
    adc = ADC | {"range_per": per, "code": "offset_binary"}
    result = calibrated({"mapping": mapping, "adc": adc}, original, {"x": x}, method=method, percentile=100)
    code = np.rint(np.abs(w) / np.abs(w).max() * 127).astype(int)
    outputs = np.array(
        [[x[:, k] @ (np.sign(w[k]) * (code[k] >> shift & 15) / 15) for shift in (0, 4)] for k in _HALVES]
    )
    shared = tuple(axis for axis, part in enumerate(("tile", "slice")) if part not in per)
    low, high = (extreme(outputs, axis=(*shared, 2, 3)).ravel() for extreme in (np.min, np.max))
    own = result.value("emu.ranges").reshape(-1, 4)
    assert len(own) == len(low)
    np.testing.assert_allclose(own[:, 1:3], np.stack([low, high], axis=1), rtol=1e-3)


_HALVES = (slice(0, 4), slice(4, 8))


def test_tiles_of_a_stack_are_calibrated_over_its_matrices():
    w = values(3, 6, 5)
    original = model("y = MatMul(x, w)", inputs="float[batch, 3, 7, 6] x", outputs="float[batch, 3, 7, 5] y", w=w)
    x = values(4, 3, 7, 6, seed=3) * np.float32([1, 2, 3])[:, None, None]
    device = {"mapping": {"tile_rows": 4}, "dac": DAC | {"range_per": "tile"}, "adc": ADC | {"range_per": "tile"}}
    result = calibrated(device, original, {"x": x})
    own = result.value("emu.ranges").reshape(3, 2, 4)
    expected = [[np.abs(x[:, g, :, k]).max() for k in (slice(0, 4), slice(4, 6))] for g in range(3)]
    np.testing.assert_allclose(own[..., 0], expected, rtol=1e-6)
    y = np.einsum("bgmk,gkn->gbmn", x[..., 4:], w[:, 4:] / np.abs(w).max(axis=(1, 2), keepdims=True))
    largest = np.abs(y).max(axis=(1, 2, 3)) / own[:, 1, 0]
    np.testing.assert_allclose(own[:, 1, 2], largest, rtol=0.03)
    clean = emu.session(original, ops="python").run(None, {"x": x})[0]
    y = emu.session(result, ops="python").run(None, {"x": x})[0]
    assert np.abs(y - clean).max() < 0.05 * np.abs(clean).max()


def test_keys_of_a_cache_share_one_range_and_scores_have_one_for_each_tile():
    device = {"mapping": {"tile_rows": 3}, "dac": DAC | {"range_per": "tile"}, "adc": ADC | {"range_per": "tile"}}
    result = calibrated(device)
    tiles = {
        site.component: result.nodes()[site.node].attributes["range_tiles"].value for site in result.manifest.sites
    }
    rows = {site.component: site.shape[0] for site in result.manifest.sites}
    assert tiles["attention_context"] == 1 and tiles["attention_scores"] == -(-rows["attention_scores"] // 3) > 1
    assert tiles["ffn_down"] == -(-rows["ffn_down"] // 3)
    assert np.isfinite(result.value("emu.ranges")).all()
    data = {"x": values(32, 5, 8, seed=4)}
    native, python = (emu.session(result, ops=ops).run(None, data)[0] for ops in ("native", "python"))
    assert np.mean(np.isclose(native, python, rtol=0, atol=1e-5 * np.abs(python).max())) > 0.9


@pytest.mark.parametrize(("vectors", "each", "one"), [(1, 0.021, 0.144), (512, 0.037, 0.172)])
def test_two_slices_read_by_a_6_bit_adc_need_a_range_each(vectors, each, one):
    """As in PRIME: Gaussian weights of 8 bits in two slices of 4, 256 rows, a 6-bit ADC.

    CrossSim gives 0.0212 with a range for each slice and 0.1649 with one, for a draw of its own: how far the largest
    output lies out decides. 64 equal steps over all of a normal distribution cannot err by less than 0.032.
    """
    draw = np.random.default_rng(1 if vectors == 1 else 0)
    w = draw.normal(size=(256, 256 if vectors == 1 else 64)).astype(np.float32)
    x = draw.normal(size=(vectors, 256)).astype(np.float32)
    original = model("y = MatMul(x, w)", inputs="float[batch, 256] x", outputs="float[batch, columns] y", w=w)
    exact = x.astype(np.float64) @ w
    found = []
    for per in ("slice", "site"):
        mapping = PAIRS | {"g_min_us": 0, "weight_bits": 8, "slice_bits": 4, "tile_rows": 256}
        result = calibrated({"mapping": mapping, "adc": ADC | {"bits": 6, "range_per": per}}, original, {"x": x})
        y = emu.session(result).run(None, {"x": x})[0]
        found.append(np.linalg.norm(y - exact) / np.linalg.norm(exact))
    np.testing.assert_allclose(found, [each, one], rtol=0.03)
