"""Several devices in one model: rules say which site is on which, and every device has its own numbers."""

import numpy as np
import onnx
import pytest

from emu.device import load_profile
from emu.errors import InputError
from emu.rewriter import about_sites, rewrite, undisturbed_sites
from emu.runtime import session

from .small import attributes, crossbars, initializer, model, transformer, values

X = {"x": values(2, 5, 8)}
ARRAY = {"rram": "emu.device.rram", "rram_adc": "emu.device.rram_adc", "ideal": "emu.device.ideal"}


def devices_of(rewritten):
    return {site.node: site.device for site in rewritten.manifest.sites}


def test_the_last_rule_that_matches_a_site_counts_and_the_rest_is_on_the_default():
    rewritten = rewrite(transformer(2), "rram", "*", map=["component=ffn_*:rram_adc", "layer=0:ideal"])
    devices = devices_of(rewritten)
    assert devices["up0"] == devices["q0"] == devices["scores0"] == "ideal"
    assert devices["up1"] == devices["down1"] == "rram_adc"
    assert devices["q1"] == devices["classifier"] == "rram"
    onnx.checker.check_model(rewritten.model)


def test_every_device_has_one_tensor_with_its_own_numbers_and_nodes_read_it():
    rewritten = rewrite(transformer(), "rram", map=["component=ffn_up:rram_adc", "component=classifier:ideal"])
    devices = rewritten.manifest.devices
    assert {name: device.input for name, device in devices.items()} == ARRAY
    for name, device in devices.items():
        entries = load_profile(name).entries()
        assert device.entries == tuple(entries)
        np.testing.assert_array_equal(initializer(rewritten.model, ARRAY[name]), np.float32(list(entries.values())))
    for node, name in devices_of(rewritten).items():
        found = crossbars(rewritten.model)[node]
        assert ARRAY[name] in found.input
        assert attributes(found)["entries"] == ",".join(devices[name].entries)
        assert attributes(found)["adc"] == load_profile(name).structure()["adc"]
    assert "emu.device" not in [value.name for value in rewritten.model.graph.input]


def test_rules_that_put_all_sites_on_one_device_leave_one_tensor():
    rewritten = rewrite(transformer(), "ideal", map=["node=*:rram"])
    assert {name: device.input for name, device in rewritten.manifest.devices.items()} == {"rram": "emu.device"}


def test_tiles_are_those_of_the_sites_own_device(tmp_path):
    (tmp_path / "small.toml").write_text("[mapping]\ntile_rows = 4\n")
    rewritten = rewrite(transformer(), "ideal", map=[("component=ffn_up", tmp_path / "small.toml")])
    tiles = {site.node: site.tiles for site in rewritten.manifest.sites}
    assert (tiles["up0"], tiles["q0"]) == (2, 1)


def test_a_rule_takes_a_file_after_its_last_colon(tmp_path):
    (tmp_path / "mine.toml").write_text('name = "lab"\n[program]\nmodel = "lognormal_w"\nsigma = 0.3\n')
    original = model("h:1 = MatMul(x, w) y = MatMul(h:1, v)".replace("h:1", "h"), w=values(4, 4), v=values(4, 3))
    original.graph.node[0].name = "block:1"
    rewritten = rewrite(original, "ideal", map=[f"node=block:1:{tmp_path / 'mine.toml'}"])
    assert devices_of(rewritten) == {"block:1": "lab", "y": "ideal"}


def test_stored_tensors_follow_rules_too():
    original = model("h = MatMul(x, w) y = Add(h, b)", w=values(4, 3), b=values(3))
    rewritten = rewrite(original, "rram", "*", stored="component=bias", map=["component=bias:ideal"])
    assert devices_of(rewritten) == {"h": "rram", "b": "ideal"}


def test_equal_weights_on_different_devices_are_different_arrays():
    original = model("a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, w) y = MatMul(c, w)", w=values(4, 4))
    assert [site.array for site in rewrite(original, only="*").manifest.sites] == [0, 0, 0, 0]
    rewritten = rewrite(original, "rram", "*", map=["node=b:rram_adc", "node=y:rram_adc"])
    assert [site.array for site in rewritten.manifest.sites] == [0, 1, 0, 1]


def test_settings_go_to_the_default_device_or_to_the_one_that_they_name():
    changes = {"program.sigma": 0.3, "rram_adc:adc.bound": 12, "rram_adc:program.sigma": 0.4}
    rewritten = rewrite(transformer(), "rram", map=["component=ffn_up:rram_adc"], set=changes)
    profiles = {name: device.profile for name, device in rewritten.manifest.devices.items()}
    assert profiles["rram"]["program"]["sigma"] == 0.3
    assert profiles["rram_adc"]["program"]["sigma"] == 0.4
    assert profiles["rram_adc"]["adc"]["bound"] == 12
    same = rewrite(transformer(), "rram", map=["layer=0:rram"], set=["rram:program.sigma=0.3"])
    assert same.manifest.devices["rram"].profile["program"]["sigma"] == 0.3


def test_two_devices_of_one_name_that_differ_are_refused(tmp_path):
    (tmp_path / "rram.toml").write_text('name = "rram"\n[program]\nmodel = "lognormal_w"\nsigma = 0.3\n')
    with pytest.raises(InputError, match="Two devices are named 'rram' and differ: give one of them another name"):
        rewrite(transformer(), "rram", map=[f"layer=0:{tmp_path / 'rram.toml'}"])


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (["component=pooler:rram"], "map 'component=pooler' matches no site"),
        (["component=query"], "write SELECTION:DEVICE"),
        ([":rram"], "write SELECTION:DEVICE"),
        (["layer=0:"], "write SELECTION:DEVICE"),
        (["layer=0:rramm"], "no device 'rramm'"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules, says):
    with pytest.raises(InputError, match=says):
        rewrite(transformer(), "ideal", map=rules)


def test_a_setting_of_a_device_that_is_not_used_is_refused():
    with pytest.raises(InputError, match="'pcm:program.sigma' sets a device that is not used here: .* rram, ideal"):
        rewrite(transformer(), "rram", map=["layer=0:ideal"], set={"pcm:program.sigma": 1})


def test_sites_compute_as_they_do_in_a_model_of_their_device_alone():
    """The product of a site does not depend on which device the others have."""
    original = model("h = MatMul(x, w) y = MatMul(h, v)", w=values(4, 4), v=values(4, 3))
    x = {"x": values(3, 4)}
    both = session(rewrite(original, "ideal", map=["node=h:rram"]), ops="python").run(None, x)[0]
    alone = session(rewrite(original, "rram", "*"), ops="python")
    alone = alone.run(None, {**x, "emu.strength": np.float32([1, 0])})[0]
    np.testing.assert_allclose(both, alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("operands", "disturbed"), [("both", {"scores0", "context0"}), ("key", {"scores0"}), ("value", {"context0"})]
)
def test_only_the_chosen_operand_of_attention_is_disturbed(operands, disturbed):
    device = {"write": {"model": "lognormal_w", "sigma": 0.1, "operands": operands}}
    nodes = crossbars(rewrite(transformer(), device).model)
    written = {name: attributes(node)["write"] for name, node in nodes.items() if "Dynamic" in node.op_type}
    assert {name for name, model in written.items() if model != "none"} == disturbed
    assert set(written) == {"scores0", "context0"}


def test_wires_are_of_stored_weights_only():
    device = {
        "mapping": {"encoding": "differential", "g_min_us": 1, "g_max_us": 100},
        "read": {"wires": "network", "row_ohm": 1.0, "column_ohm": 1.0},
    }
    nodes = crossbars(rewrite(transformer(), device).model)
    assert attributes(nodes["q0"])["ir_drop"] == "network"
    assert attributes(nodes["scores0"])["ir_drop"] == "none"


def test_a_granular_adc_is_not_for_products_of_activations():
    device = {
        "mapping": {"weight_bits": 8},
        "dac": {"model": "uniform", "range": "absmax", "bits": 8},
        "adc": {"model": "uniform", "range": "granular", "bits": 8},
    }
    with pytest.raises(InputError, match=r"node 'scores0' .*\(exclude component=attention_scores\)"):
        rewrite(transformer(), device)
    rewritten = rewrite(transformer(), device, exclude="component=attention_*")
    assert attributes(crossbars(rewritten.model)["q0"])["adc"] == "granular"


def test_codes_of_a_quantized_model_decide_how_many_bits_can_flip():
    codes = np.random.default_rng(0).integers(-8, 8, (4, 6)).astype(np.int8)
    original = model("w = DequantizeLinear(c, s)  y = MatMul(x, w)", c=codes, s=np.float32(0.1))
    faults = {"storage": "int", "bits": 16, "ber": 0.1}
    found = attributes(crossbars(rewrite(original, {"faults": faults}).model)["y"])
    assert (found["fault_bits"], found["fault_mask"], found["code_bits"]) == (8, 255, 8)
    with pytest.raises(InputError, match="node 'y' holds codes of 8 bits, and the device's faults hit bit 12"):
        rewrite(original, {"faults": faults | {"flip": [12]}})
    with pytest.raises(InputError, match="node 'y' holds integer codes of 8 bits, .* hit float32"):
        rewrite(original, {"faults": {"storage": "float32", "ber": 0.1}})


LINEAR = {f"{name}0" for name in ("q", "k", "v", "output", "up", "down")}
BY_PROFILE = "the profile of 'rram' leaves it digital"


def mapped(**arguments):
    return {site.node for site in rewrite(transformer(), "rram", **arguments).manifest.sites}


def test_the_profile_of_the_device_says_what_is_mapped_and_the_manifest_why_the_rest_is_not():
    manifest = rewrite(transformer(), "rram").manifest
    assert {site.node for site in manifest.sites} == LINEAR
    left = {each.node: (each.component, each.reason, each.macs) for each in manifest.skipped}
    assert left == {
        "scores0": ("attention_scores", BY_PROFILE, 2 * 5 * 4 * 5),
        "context0": ("attention_context", BY_PROFILE, 2 * 5 * 5 * 4),
        "classifier": ("classifier", BY_PROFILE, 8 * 3),
    }
    assert manifest.digital_share is not None and manifest.digital_share > 0


def test_only_or_exclude_replaces_the_selection_of_the_profile():
    everything = LINEAR | {"scores0", "context0", "classifier"}
    assert mapped(only="*") == everything
    assert mapped(only="component=classifier") == {"classifier"}
    assert mapped(exclude="component=ffn_*") == everything - {"up0", "down0"}
    left = rewrite(transformer(), "rram", exclude="component=ffn_*").manifest.skipped
    assert {each.reason for each in left} == {"not selected"}


def test_a_rule_maps_what_its_own_device_and_the_default_would_leave_digital():
    rewritten = rewrite(transformer(), "rram", map=["component=classifier:rram", "component=attention_*:pcm_aihwkit"])
    devices = devices_of(rewritten)
    assert devices["classifier"] == devices["q0"] == "rram"
    assert devices["scores0"] == devices["context0"] == devices["output0"] == "pcm_aihwkit"
    assert not rewritten.manifest.skipped
    # The selection of a device that rules alone use is for no site: its rule is.
    assert devices_of(rewrite(transformer(), "ideal", map=["component=ffn_up:rram"])).keys() == LINEAR | {
        *("scores0", "context0", "classifier")
    }


def test_a_device_that_is_for_nothing_in_a_model_is_named_with_its_section():
    products = model("h = MatMul(x, w) y = MatMul(h, v)", w=values(4, 4), v=values(4, 3))
    with pytest.raises(InputError, match=r"^\[sites\] only 'component=query.*' of the device 'rram' leaves no"):
        rewrite(products, "rram")
    with pytest.raises(InputError, match=r"\[sites\] exclude '\*' of the device 'ideal' .*--only '\*'"):
        rewrite(products, "ideal", set={"sites.exclude": "*"})
    assert devices_of(rewrite(products, "rram", only="*")) == {"h": "rram", "y": "rram"}
    assert devices_of(rewrite(products, "rram", map=["*:ideal"])) == {"h": "ideal", "y": "ideal"}
    with pytest.raises(InputError, match="leaves no product"):
        rewrite(products, "rram", map=["h:ideal"])


def test_arrays_that_hold_levels_need_weights_and_leave_products_of_activations_digital():
    assert devices_of(rewrite(transformer(), "isaac")).keys() == LINEAR | {"classifier"}
    with pytest.raises(InputError, match="granular"):
        rewrite(transformer(), "isaac", only="*")


def exact(device, only="*", **arguments):
    return {site.component for site in undisturbed_sites(rewrite(transformer(), device, only, **arguments).manifest)}


def test_sites_that_a_device_does_nothing_to_are_told():
    written = {"attention_scores", "attention_context"}
    assert exact("rram") == written and exact("rram", None) == set()
    assert exact("rram_adc") == exact("pcm_aihwkit") == exact("clipformer") == set()
    assert exact("ideal") == {site.component for site in rewrite(transformer(), "ideal").manifest.sites}
    assert exact("ideal", set={"read.output_noise": 0.0}) == set()  # a run can change it
    noise = {"write.model": "gauss_prop", "write.sigma": 0.1}
    assert exact("rram", set=noise) == set()
    assert exact("rram", set={**noise, "write.operands": "key"}) == {"attention_context"}


def test_what_stays_digital_and_what_is_exact_is_said_in_a_line_each():
    assert about_sites(rewrite(transformer(), "rram").manifest) == [
        "Stays digital: 3 sites (attention_scores 1, attention_context 1, classifier 1): the profile of 'rram' leaves "
        "them digital ([sites]; --only '*' maps all)."
    ]
    assert about_sites(rewrite(transformer(), "rram", exclude="component=classifier").manifest) == [
        "Stays digital: 1 site (classifier 1): not selected.",
        "Exact: 2 sites (attention_scores 1, attention_context 1): 'rram' does nothing there.",
    ]
