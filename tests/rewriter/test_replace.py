"""What takes the place of a product: the right numbers, the contract's attributes, and nothing else changed."""

import numpy as np
import onnx
import pytest

from emu.contract.schema import FORMAT, attribute_types
from emu.device import load_profile
from emu.errors import InputError
from emu.rewriter import rewrite

from .exported import run
from .small import assert_same_results, attributes, crossbars, initializer, model, transformer, values


def x(*shape):
    return {"x": values(*shape, seed=9)}


@pytest.mark.parametrize("opset", [11, 13, 17, 22, 26])
@pytest.mark.parametrize("settings", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0>", "<beta = 0.0, transB = 1>"])
def test_gemm_becomes_a_product_and_a_digital_bias(settings, opset):
    weight = values(3, 4) if "transB" in settings else values(4, 3)
    original = model(f"y = Gemm {settings} (x, w, b)", opset=opset, w=weight, b=values(3, seed=1))
    rewritten = assert_same_results(original, x(1, 4), x(3, 4))
    node = crossbars(rewritten)["y"]
    assert initializer(rewritten, node.input[1]).shape == (4, 3)


def test_gemm_scales_the_weight_by_alpha_and_a_computed_bias_by_beta():
    original = model(
        "b = ReduceSum <keepdims = 1> (x, axes) y = Gemm <alpha = 0.5, beta = 3.0> (x, w, b)",
        w=values(4, 3),
        axes=np.array([1]),
    )
    rewritten = assert_same_results(original, x(3, 4))
    np.testing.assert_array_equal(
        initializer(rewritten, crossbars(rewritten)["y"].input[1]), values(4, 3) * np.float32(0.5)
    )


def test_gemm_without_bias_is_the_product_alone():
    rewritten = assert_same_results(model("y = Gemm(x, w)", w=values(4, 3)), x(3, 4))
    assert [node.op_type for node in rewritten.graph.node if not node.name.startswith("emu.")] == ["CrossbarMatMul"]
    assert crossbars(rewritten)["y"].output == ["y"]


def test_a_gemm_transposes_its_input_beside_the_crossbar():
    original = model(
        "y = Gemm <transA = 1, alpha = 0.5> (x, w, b)", inputs="float[4, 2] x", w=values(4, 3), b=values(3)
    )
    rewritten = assert_same_results(original, x(4, 2))
    assert initializer(rewritten, crossbars(rewritten)["y"].input[1]).shape == (4, 3)


def test_a_gemm_of_two_activations_is_a_written_product():
    original = model(
        "y = Gemm <transB = 1, alpha = 2.0, beta = 3.0> (x, x, c)", outputs="float[n, m] y", c=np.float32(0.5)
    )
    rewritten = assert_same_results(original, x(3, 4))
    assert crossbars(rewritten)["y"].op_type == "CrossbarMatMulDynamic"


@pytest.mark.parametrize("opset", [11, 17, 26])
@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ("float[batch, 3, 8, 6] x", (2, 3, 8, 6)),
        ("float[batch, 3, 9, 7] x", (2, 3, 9, 7)),
        ("float[batch, channels, height, width] x", (2, 3, 8, 6)),
        ("float[batch, channels, height, width] x", (3, 3, 11, 5)),
    ],
)
def test_patch_embedding_is_a_product_of_its_patches(inputs, shape, opset):
    original = model(
        "y = Conv <kernel_shape = [4, 2], strides = [4, 2]> (x, w, b)",
        inputs=inputs,
        outputs="float[batch, c, p, q] y",
        opset=opset,
        w=values(5, 3, 4, 2),
        b=values(5, seed=1),
    )
    rewritten = assert_same_results(original, x(*shape), x(1, *shape[1:]))
    node = crossbars(rewritten)["y"]
    assert initializer(rewritten, node.input[1]).shape == (3 * 4 * 2, 5)
    assert attributes(node)["window"] == "4,4,1,0,0;2,2,1,0,0"


def test_patches_of_a_video_and_of_a_signal_are_products_too():
    for sides in ([2, 4, 2], [4]):
        spatial = [3 * side for side in sides]
        original = model(
            f"y = Conv <strides = {sides}> (x, w)",
            inputs=f"float[batch, 3, {', '.join(map(str, spatial))}] x",
            outputs=f"float[batch, 5, {', '.join('abc'[: len(sides)])}] y",
            w=values(5, 3, *sides),
        )
        assert_same_results(original, x(2, 3, *spatial))


def test_controls_are_inputs_with_defaults():
    original = transformer(2)
    rewritten = rewrite(original, device="rram", only="*")
    inputs = {value.name: value.type.tensor_type for value in rewritten.model.graph.input}
    sites = len(rewritten.manifest.sites)
    entries = load_profile("rram").entries()
    expected = {
        "emu.device": np.array(list(entries.values()), np.float32),
        "emu.strength": np.ones(sites, np.float32),
        "emu.ranges": np.array([[1, -1, 1, 1]] * sites, np.float32),
        "emu.faults": np.zeros((0, 2), np.int64),
        "emu.seed": np.array(0),
        "emu.read_seed": np.array(0),
        "emu.sample": np.array(0),
        "emu.head": np.array(-1),
    }
    assert next(iter(inputs)) == "x"
    assert set(inputs) == {"x", *expected}
    for name, default in expected.items():
        assert tuple(dim.dim_value for dim in inputs[name].shape.dim) == default.shape
        value = initializer(rewritten.model, name)
        assert value.dtype == default.dtype
        np.testing.assert_array_equal(value, default)
    assert sites == 2 * 8 + 1
    (device,) = rewritten.manifest.devices.values()
    assert (device.entries, device.input) == (tuple(entries), "emu.device")


def test_every_node_carries_exactly_the_attributes_of_the_contract():
    profile = load_profile("rram_adc")
    rewritten = rewrite(transformer(), device=profile)
    common = {"format", "site", "array", "sites", "sample_axis", "heads", "head_axis", "head_groups", "head_share"}
    structure = profile.structure()
    of_written = {"write", "write_cells", "write_scaling"}
    of_stored = set(attribute_types("CrossbarMatMul")) - set(attribute_types("CrossbarMatMulDynamic")) - {"window"}
    for site in rewritten.manifest.sites:
        node = crossbars(rewritten.model)[site.node]
        assert node.op_type == site.op
        found = attributes(node)
        unused = of_written if site.is_stored else of_stored
        own = {"range_tiles", "range_slices", "range_polarities"} | ({"window"} if site.is_stored else {"key_axis"})
        assert set(found) == common | own | (set(structure) - unused)
        assert found | {"format": FORMAT} == found | {name: structure[name] for name in set(structure) - unused}
        assert found["site"] == site.index
        assert found["sites"] == len(rewritten.manifest.sites)
        assert found["entries"] == ",".join(rewritten.manifest.devices["rram_adc"].entries)
        faults = ["emu.faults"] if site.is_stored else []
        assert list(node.input)[2:] == [
            *("emu.device", "emu.strength", "emu.ranges", *faults, "emu.seed", "emu.read_seed"),
            *("emu.sample_and_batch", "emu.no_position", *([] if site.is_stored else ["emu.all_keys"]), "emu.head"),
        ]
        key_axis = {"scores": "columns", "context": "rows"}.get(site.node.rstrip("0123456789"), "none")
        assert found.get("key_axis", "none") == key_axis


@pytest.mark.parametrize("sample", [0, 5])
def test_every_site_gets_the_first_sample_and_the_batch_size(sample):
    rewritten = rewrite(model("y = MatMul(x, w)", w=values(4, 3)), only="*").model
    kept = [node for node in rewritten.graph.node if node.domain != "emu"]
    del rewritten.graph.node[:], rewritten.graph.output[:]
    rewritten.graph.node.extend(kept)
    rewritten.graph.output.append(onnx.ValueInfoProto(name="emu.sample_and_batch"))
    (result,) = run(rewritten, {**x(7, 4), "emu.sample": np.array(sample)})
    np.testing.assert_array_equal(result, [sample, 7])
    assert all(node.name.startswith("emu.sample_and_batch") for node in kept)


def test_names_types_and_metadata_of_the_source_survive():
    original = transformer()
    for node in original.graph.node:
        node.metadata_props.add(key="pkg.scope", value=f"scope of {node.name}")
    original.metadata_props.add(key="author", value="someone")
    original.doc_string = "a model"
    original.graph.value_info.append(onnx.helper.make_tensor_value_info("q0", 1, ["batch", 5, 8]))
    rewritten = rewrite(original, only="*").model
    nodes = {node.name: node for node in rewritten.graph.node}
    for node in original.graph.node:
        kept = {entry.key: entry.value for entry in nodes[node.name].metadata_props}
        assert kept["pkg.scope"] == f"scope of {node.name}"
    assert {entry.key: entry.value for entry in rewritten.metadata_props}["author"] == "someone"
    assert rewritten.doc_string == "a model"
    assert rewritten.graph.output == original.graph.output
    assert next(v for v in rewritten.graph.value_info if v.name == "q0") == original.graph.value_info[0]


@pytest.mark.parametrize("form", ["path", "proto", "ir"])
def test_the_source_is_never_changed(form, tmp_path):
    import onnx_ir as ir

    original = transformer()
    before = original.SerializeToString(deterministic=True)
    model = ir.from_proto(original)
    model_before = ir.to_proto(model).SerializeToString(deterministic=True)
    source = {"path": tmp_path / "m.onnx", "proto": original, "ir": model}[form]
    onnx.save(original, tmp_path / "m.onnx")
    result = rewrite(source, device="ideal").model
    assert original.SerializeToString(deterministic=True) == before
    assert (tmp_path / "m.onnx").read_bytes() == onnx.load(tmp_path / "m.onnx").SerializeToString()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == model_before
    assert len(crossbars(result)) == 9


def test_an_unused_weight_does_not_stay_in_the_file():
    rewritten = rewrite(model("y = Gemm <transB = 1> (x, w)", w=values(3, 4)), only="*").model
    assert "w" not in [tensor.name for tensor in rewritten.graph.initializer]


def test_a_weight_that_two_products_share_is_stored_once():
    original = model("a = Gemm <transB = 1> (x, w) y = Gemm <transB = 1> (a, w)", w=values(4, 4))
    rewritten = assert_same_results(original, x(2, 4))
    first, second = crossbars(rewritten).values()
    assert first.input[1] == second.input[1]


def test_weights_that_are_not_finite_are_refused_by_name():
    weight = values(4, 3)
    weight[1, 2] = np.nan
    with pytest.raises(InputError, match="the weight 'w' of node 'y' holds NaN or infinite values"):
        rewrite(model("y = MatMul(x, w)", w=weight), only="*")


def test_a_model_that_uses_a_name_of_the_controls_is_refused():
    original = model("y = MatMul(x, w)", w=values(4, 3))
    original.graph.input.append(onnx.helper.make_tensor_value_info("emu.seed", 7, []))
    with pytest.raises(InputError, match=r"already has a value or node named 'emu\.seed'"):
        rewrite(original, only="*")


def test_rewriting_twice_is_refused():
    with pytest.raises(InputError, match="is rewritten already: give the original model"):
        rewrite(rewrite(transformer(), only="*").model, only="*")


def test_overrides_and_wrong_devices_reach_the_profile():
    rewritten = rewrite(transformer(), device="rram", set={"program.sigma": 0.25}, only="*")
    place = rewritten.manifest.devices["rram"].entries.index("program.sigma")
    assert initializer(rewritten.model, "emu.device")[place] == np.float32(0.25)
    with pytest.raises(InputError, match="no device 'rramm'"):
        rewrite(transformer(), device="rramm")


def test_old_graphs_that_list_weights_as_inputs_get_constant_weights():
    original = model(
        "y = MatMul(x, w)", inputs="float[batch, 4] x, float[4, 3] w", opset=11, ir_version=3, w=values(4, 3)
    )
    rewritten = rewrite(original, device="ideal").model
    assert "w" not in [value.name for value in rewritten.graph.input]
    assert rewritten.ir_version >= 4
