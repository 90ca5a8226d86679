"""The faults of one chip as a file: drawn, counted, given to every chip, and refused where they do not belong."""

import json
import os

import numpy as np
import onnx
import pytest

from emu.errors import InputError
from emu.evaluation import draw_faults
from emu.rewriter import Faults, rewrite
from emu.runtime import session

from .small import attributes, crossbars, initializer, model, transformer, values

INT = {"faults": {"storage": "int", "bits": 8, "ber": 0.02}}
PAIRS = {"encoding": "differential", "g_min_us": 1, "g_max_us": 100}
STUCK = {"mapping": PAIRS, "faults": {"stuck_low": 0.05, "stuck_high": 0.02}}
DEVICES = {
    "int": INT,
    "float32": {"faults": {"storage": "float32", "flip": "mantissa", "ber": 0.01}},
    "secded": {"faults": {"storage": "int", "bits": 8, "ber": 0.02, "protection": "secded"}},
    "secded_zero": {"faults": {"storage": "int", "bits": 8, "ber": 0.02, "protection": "secded_zero"}},
    "stuck": STUCK,
    "slices": {"mapping": PAIRS | {"weight_bits": 8, "slice_bits": 2}, "faults": STUCK["faults"]},
    "both": {"mapping": PAIRS, "faults": INT["faults"] | STUCK["faults"]},
}
X = {"x": values(3, 5, 8)}


def outputs(emulated, seed, ops="python"):
    return session(emulated, ops=ops).run(None, {**X, "emu.seed": np.int64(seed)})[0]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_list_gives_every_chip_the_faults_of_the_one_it_was_drawn_for(device, tmp_path):
    random = rewrite(transformer(), device, stored=None)
    draw_faults(random, seed=3).save(tmp_path / "faults.npz")
    listed = rewrite(transformer(), device, faults=tmp_path / "faults.npz")
    onnx.checker.check_model(listed.model)
    expected = outputs(random, 3)
    for seed in (3, 4):
        np.testing.assert_allclose(outputs(listed, seed), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert not np.allclose(outputs(random, 4), expected)


def test_a_list_replaces_random_faults_and_their_numbers():
    device = INT | {"program": {"model": "lognormal_w", "sigma": 0.1}}
    faults = draw_faults(rewrite(transformer(), device), seed=1)
    listed = rewrite(transformer(), device, faults=faults)
    (facts,) = listed.manifest.devices.values()
    assert facts.entries == ("program.sigma", "program.sigma_cycle")
    assert listed.manifest.faults["seed"] == 1
    nodes = crossbars(listed.model)
    assert attributes(nodes["q0"])["fault_source"] == "list"
    assert {attributes(node)["entries"] for node in nodes.values()} == {"program.sigma,program.sigma_cycle"}
    assert {node.input[5] for node in nodes.values() if node.op_type == "CrossbarMatMul"} == {"emu.faults"}
    rows = initializer(listed.model, "emu.faults")
    q0 = attributes(nodes["q0"])["array"]
    np.testing.assert_array_equal(rows[rows[:, 0] == q0, 1], faults.arrays[0].numbers)
    assert not np.array_equal(outputs(listed, 3), outputs(listed, 4)), "programming is still random"


def test_faults_are_numbered_by_element_and_bit():
    original = model("y = MatMul(x, w)", w=np.diag(np.arange(1, 5)).astype(np.float32))
    device = {"faults": {"storage": "int", "bits": 8, "flip": [3], "ber": 1.0}}
    (array,) = draw_faults(rewrite(original, device)).arrays
    np.testing.assert_array_equal(array.numbers, np.arange(16) * 256 + 3)
    assert (array.node, array.shape, array.bit_flips, array.stuck_cells) == ("y", (4, 4), 16, 0)


def test_a_chosen_rate_and_the_models_own_seed_count():
    emulated = rewrite(transformer(), INT)
    none, some = draw_faults(emulated, set={"faults.ber": 0}), draw_faults(emulated, set=["faults.ber=0.3"])
    assert sum(array.bit_flips for array in none.arrays) == 0
    assert sum(array.bit_flips for array in some.arrays) > 100
    assert draw_faults(emulated).origin["seed"] == 0


def test_sites_that_share_an_array_share_its_faults_also_as_a_stored_tensor():
    original = model(
        "word = Gather(words, ids) y = MatMul(word, words)",
        inputs="int64[batch] ids",
        outputs="float[batch, 8] y",
        words=values(8, 8),
    )
    emulated = rewrite(original, INT, stored="component=word_embedding")
    faults = draw_faults(emulated, seed=2)
    assert [array.node for array in faults.arrays] == ["y"]
    listed = rewrite(original, INT, stored="component=word_embedding", faults=faults)
    nodes = crossbars(listed.model)
    assert nodes["y"].input[5] == nodes["words"].input[3]
    feeds = {"ids": np.arange(8)}
    chip = session(emulated, ops="python").run(None, {**feeds, "emu.seed": np.int64(2)})[0]
    np.testing.assert_allclose(session(listed, ops="python").run(None, feeds)[0], chip, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_a_quantized_model_has_the_faults_of_its_own_codes(kind):
    info = np.iinfo(kind)
    codes = np.random.default_rng(0).integers(info.min, info.max, (4, 6)).astype(kind)
    original = model(
        "w = DequantizeLinear(c, s, z)  y = MatMul(x, w)",
        opset=21,
        ir_version=10,
        c=codes,
        s=np.float32(0.1),
        z=kind(7),
    )
    x = {"x": values(3, 4)}
    for protection in ("none", "secded_zero"):
        device = {"faults": INT["faults"] | {"ber": 0.1, "protection": protection}}
        emulated = rewrite(original, device)
        faults = draw_faults(emulated, seed=5)
        assert faults.arrays[0].storage["weights"] == f"int{info.bits}"
        assert (faults.arrays[0].numbers % 256 >= 8).any() == (info.bits > 8)
        chip = session(emulated, ops="python").run(None, {**x, "emu.seed": np.int64(5)})[0]
        listed = rewrite(original, device, faults=faults)
        np.testing.assert_allclose(session(listed, ops="python").run(None, x)[0], chip, rtol=1e-5, atol=1e-5)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "faults.npz"
    draw_faults(rewrite(transformer(), INT), seed=3).save(target)
    return target


def test_a_written_file_says_all_that_it_was_drawn_from(path):
    assert os.listdir(path.parent) == ["faults.npz"]
    faults = Faults.load(path)
    assert faults.origin == {"seed": 3, "settings": {"faults.ber": 0.02}}
    assert [array.node for array in faults.arrays] == ["q0", "k0", "v0", "output0", "up0", "down0", "classifier"]
    assert faults.arrays[4].shape == (8, 12)
    assert faults.arrays[0].numbers.dtype == np.int64


@pytest.mark.parametrize(
    ("original", "device", "options", "says"),
    [
        (transformer(width=12), INT, {}, r"node 'q0' was 8x8, here it is 12x12"),
        (transformer(2), INT, {}, "says nothing of node 'q1', which the device gives faults"),
        (transformer(), INT, {"exclude": "node=q0"}, "has faults of node 'q0', which is no site with faults here"),
        (transformer(), "rram", {}, "has faults of node 'q0', which is no site with faults here"),
        (transformer(), INT, {"set": {"faults.bits": 4}}, "was stored with fault_bits = 8, here it is 4"),
        (transformer(), STUCK, {}, "was stored with fault_storage = int, here it is none"),
        (transformer(), DEVICES["both"], {}, "was stored with encoding = none, here it is differential"),
    ],
)
def test_faults_of_something_else_are_refused_by_name(path, original, device, options, says):
    with pytest.raises(InputError, match=f"faults.npz.*{says}"):
        rewrite(original, device, faults=path, **options)


def test_other_files_are_no_faults(tmp_path):
    with pytest.raises(InputError, match=r"no file of faults .*none\.npz"):
        rewrite(transformer(), INT, faults=tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    np.savez(tmp_path / "array.npz", facts=np.array(json.dumps([1])))
    for name in ("text", "other", "array"):
        with pytest.raises(InputError, match=f"{name}.npz is no file of faults: write one with 'emu faults'"):
            rewrite(transformer(), INT, faults=tmp_path / f"{name}.npz")
    np.savez(tmp_path / "later.npz", facts=np.array(json.dumps({"format": 9})))
    with pytest.raises(InputError, match="holds faults of format 9, this emu reads format 1"):
        rewrite(transformer(), INT, faults=tmp_path / "later.npz")


def test_a_failed_save_leaves_nothing(path, monkeypatch):
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"faults\.npz cannot be written: No space left on device"):
        Faults({}, ()).save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["faults.npz"]
    with pytest.raises(InputError, match="There is no folder"):
        Faults({}, ()).save(path.parent / "a" / "b.npz")


def test_a_model_without_random_faults_has_none_to_draw():
    with pytest.raises(InputError, match="has no random faults"):
        draw_faults(rewrite(transformer(), "rram", "*"))
    with pytest.raises(InputError, match="is not rewritten"):
        draw_faults(transformer())
