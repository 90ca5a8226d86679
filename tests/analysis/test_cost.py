"""Counts of tiles, cells and conversions, the constants behind energy, area and time, and what follows from both."""

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from emu import rewrite
from emu.analysis.cost import (
    CostModel,
    accelergy_adc_energy_pj,
    constants,
    cost,
    cost_of_sites,
    count,
    draw_cost,
    lossless_adc_bits,
    neurosim_adc_energy_pj,
    neurosim_adc_power_uw,
    paper_ratio,
    paper_terms,
    total_cost,
)
from emu.cli import app
from emu.contract.site import Site
from emu.demo import model_path
from emu.device import load_profile
from emu.errors import InputError
from tests.contract.made import made_site

VIT, BERT = model_path("digits_vit"), model_path("listops_bert")
TOKENS, WIDTH, HEADS, LAYERS = 197, 384, 6, 12  # DeiT-S


def deit_small(layers: int = LAYERS) -> list[Site]:
    """Sites of DeiT-S as a manifest lists them, its encoder alone."""
    sites = []

    def add(layer: int, component: str, rows: int, columns: int, op: str = "CrossbarMatMul", matrices: int = 1) -> None:
        facts = {"node": f"{layer}/{component}", "device": "x", "op": op, "layer": layer, "component": component}
        facts |= {"shape": (rows, columns), "heads": HEADS, "macs_per_row": rows * columns}
        sites.append(made_site(len(sites), macs=rows * columns * TOKENS * matrices, **facts))

    for layer in range(layers):
        for component in ("query", "key", "value", "attention_output"):
            add(layer, component, WIDTH, WIDTH)
        head = WIDTH // HEADS
        add(layer, "attention_scores", head, TOKENS, "CrossbarMatMulDynamic", HEADS)
        add(layer, "attention_context", TOKENS, head, "CrossbarMatMulDynamic", HEADS)
        add(layer, "ffn_up", WIDTH, 4 * WIDTH)
        add(layer, "ffn_down", 4 * WIDTH, WIDTH)
    return sites


def bit_serial(**changes):
    """64 x 64 arrays, 8-bit weights in cells of 2 bits, eight input bits one by one."""
    settings = {"mapping.tile_rows": 64, "mapping.tile_columns": 64, "mapping.weight_bits": 9}
    settings |= {"mapping.encoding": "differential", "mapping.slice_bits": 2}
    settings |= {"mapping.g_min_us": 0.1, "mapping.g_max_us": 10.0}
    settings |= {"dac.model": "uniform", "dac.range": "absmax", "dac.bits": 9, "dac.slice_bits": 1}
    settings |= {"adc.model": "uniform", "adc.range": "absmax", "adc.bits": 8}
    return load_profile("ideal", settings | changes)


def test_a_bit_serial_layer_of_deit_small_has_the_golden_counts() -> None:
    sizes = {"tile_rows": 64, "tile_columns": 64, "slices": 4, "devices": 2, "input_slices": 8}
    counts = count(384, 1536, **sizes)
    assert counts.arrays == 6 * 192 == 1152
    assert counts.adc_conversions == 294_912
    both = count(384, 1536, conversions_per_pair=2, **sizes)
    assert both.adc_conversions == 589_824 == 384 * 1536
    assert counts.adc_conversions * CostModel(adc_model="isaac").conversion(8)[0] * 1e-6 == pytest.approx(0.4608)


def test_analog_cells_in_large_tiles_need_few_conversions() -> None:
    counts = count(384, 1536, tile_rows=256, tile_columns=256)
    assert (counts.tiles, counts.arrays, counts.adc_conversions) == (12, 12, 3072)


def test_the_profile_of_a_device_gives_the_same_counts() -> None:
    sites = [site for site in deit_small(1) if site.component == "ffn_up"]
    frame = cost_of_sites(sites, {"x": bit_serial()})
    row = frame.iloc[0]
    assert (row["arrays"], row["adc_conversions"]) == (1152, TOKENS * 294_912)
    assert row["cells"] == 384 * 1536 * 4 * 2
    assert row["dac_conversions"] == TOKENS * 384 * 192 * 8
    assert row["lossless_bits"] == math.log2(64) + 1 + 2 - 1


def test_deit_small_has_the_golden_macs() -> None:
    frame = cost_of_sites(deit_small(), {"x": bit_serial()})
    layer = frame[frame["layer"] == 0]
    attention = layer["component"].isin(["attention_scores", "attention_context"])
    assert layer[~attention]["macs"].sum() == 348_585_984
    assert layer[attention]["macs"].sum() == 29_805_312
    assert frame["macs"].sum() == 4_540_695_552


def test_the_published_equations_have_their_golden_terms() -> None:
    assert TOKENS * WIDTH**2 == 29_048_832 and TOKENS**2 * WIDTH == 14_902_656
    assert paper_terms(TOKENS, WIDTH, 1) == 73_000_320
    ratio = paper_ratio(TOKENS, WIDTH, 12, operation_pj=2.0, product_pj=1000.0, conversion_pj=3.0)
    assert ratio == pytest.approx(2 * 73_000_320 / (197 * 1000 + 197**2 * 3))


def test_the_published_ratio_follows_from_the_counts() -> None:
    frame = cost_of_sites(deit_small(), {"x": bit_serial()}, constants=CostModel(adc_energy_pj=2.0))
    stored = frame[~frame["component"].isin(["attention_scores", "attention_context"])]
    per_operation = stored["energy_uj"].sum() * 1e6 / stored["macs"].sum()
    expected = paper_ratio(TOKENS, WIDTH, 12, 0.3, per_operation * 2 * WIDTH**2, 2.0)
    assert total_cost(frame)["paper_ratio"][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    "bits, rate_hz, energy_pj",
    [(5, 1e8, 0.935), (6, 1e8, 1.06), (8, 1e8, 1.711), (8, 1.28e9, 1.927), (10, 1e8, 3.304), (10, 1.28e9, 16.39)],
)
def test_accelergy_gives_the_golden_energies(bits: int, rate_hz: float, energy_pj: float) -> None:
    assert accelergy_adc_energy_pj(bits, rate_hz, 32) == pytest.approx(energy_pj, rel=5e-3)


def test_neurosim_gives_the_golden_energies() -> None:
    assert neurosim_adc_power_uw(32, 1e5) == pytest.approx(7.787, abs=1e-3)
    assert neurosim_adc_energy_pj(32, 1e5) == pytest.approx(0.0467, abs=1e-4)
    assert neurosim_adc_energy_pj(256, 1e5) == pytest.approx(0.0846, abs=1e-4)


def test_the_lossless_adc_of_isaac_has_9_bits() -> None:
    assert lossless_adc_bits(128, 1, 2) == 9
    assert lossless_adc_bits(128, 2, 2) == 11


def test_the_constants_add_up_to_the_power_of_an_isaac_ima() -> None:
    it = CostModel(adc_model="isaac")
    pj_per_ns_is_mw = 1.0 / it.read_ns
    adc_mw = 8 * it.conversion(8)[0] * it.adc_rate_hz * 1e-9
    dac_mw = 1024 * it.dac_energy_pj * pj_per_ns_is_mw
    hold_mw = 1024 * it.sample_hold_energy_pj * pj_per_ns_is_mw
    array_mw = 8 * it.array_energy_pj * pj_per_ns_is_mw
    add_mw = 8 * it.shift_add_energy_pj * it.adc_rate_hz * 1e-9
    registers_mw = 1.24 + 0.23
    assert (adc_mw, dac_mw, hold_mw, array_mw) == pytest.approx((16, 4, 0.01, 2.4))
    assert adc_mw + dac_mw + hold_mw + array_mw + add_mw + registers_mw == pytest.approx(24.08, rel=1e-3)


def test_constants_name_unit_meaning_and_source() -> None:
    frame = constants().set_index("constant")
    assert frame.loc["array_energy_pj", "value"] == 30 and "ISAAC" in frame.loc["array_energy_pj", "source"]
    assert frame.loc["digital_dram_pj_per_bit", "value"] * 32 == 640
    assert frame.loc["digital_cache_pj_per_bit", "value"] * 64 == 10
    assert (frame["meaning"] != "").all()


def test_a_constant_changes_what_depends_on_it_and_nothing_else() -> None:
    plain = total_cost(cost_of_sites(deit_small(1), {"x": bit_serial()}, constants=CostModel.of(["adc_energy_pj=1"])))
    double = total_cost(cost_of_sites(deit_small(1), {"x": bit_serial()}, constants=CostModel.of({"adc_energy_pj": 2})))
    assert double["energy_adc_uj"][0] == pytest.approx(2 * plain["energy_adc_uj"][0])
    assert double["energy_uj"][0] - plain["energy_uj"][0] == pytest.approx(plain["energy_adc_uj"][0])
    assert plain["energy_adc_uj"][0] == pytest.approx(plain["adc_conversions"][0] * 1e-6)
    assert double["area_mm2"][0] == plain["area_mm2"][0]


@pytest.mark.parametrize(
    "wrong", ["adc_energy=2", "adc_energy_pj", "adc_energy_pj=much", "adc_bits=1.5", "adc_model=best", "read_ns=-1"]
)
def test_wrong_constants_are_refused(wrong: str) -> None:
    with pytest.raises(InputError):
        CostModel.of([wrong])


def test_taller_tiles_need_fewer_conversions_and_the_same_cells() -> None:
    frame = cost(VIT, device="rram_neurosim", tile_rows=[16, 64])
    low, high = total_cost(frame).to_dict("records")
    assert low["cells"] == high["cells"] and low["adc_conversions"] > 1.5 * high["adc_conversions"]


def test_attention_grows_with_the_square_of_the_tokens_and_the_rest_in_proportion() -> None:
    frame = total_cost(cost(BERT, device="rram_adc", tokens=[64, 128]), ("component",))
    macs = frame.pivot(index="component", columns="tokens", values="macs")
    growth = macs[128] / macs[64]
    assert growth["query"] == growth["ffn_down"] == 2
    assert growth["attention_scores"] == growth["attention_context"] == 4
    assert growth["classifier"] == 1


def test_other_tokens_fit_models_of_fixed_size() -> None:
    own = cost(VIT, device="rram_adc")
    assert own["macs"].tolist() == [site.macs for site in rewrite(VIT, device="rram_adc").manifest.sites]
    assert cost(VIT, device="rram_adc", tokens=[17])["macs"].tolist() == own["macs"].tolist()
    longer = cost(VIT, device="rram_adc", tokens=[65]).set_index("component")
    assert longer.loc["patch_embedding", "vectors"] == 64
    assert (longer.loc[["query", "attention_output", "ffn_up"], "vectors"] == 65).all()
    assert (longer.loc["attention_scores", "columns"] == 65).all()
    assert (longer.loc["attention_context", ["rows", "vectors"]] == 65).all(axis=None)


def test_open_lengths_must_be_given() -> None:
    with pytest.raises(InputError, match="give tokens"):
        cost(BERT, device="rram_adc")


def test_a_quarter_of_the_range_takes_three_cells_in_the_place_of_four() -> None:
    sites = deit_small(1)
    arrays = {}
    for beta in (1.0, 0.25):
        frame = cost_of_sites(sites, {"x": load_profile("clipformer", {"write.beta": beta, "write.alpha": 1.0})})
        arrays[beta] = frame[frame["component"] == "attention_context"].iloc[0]
    assert arrays[0.25]["cells"] / arrays[1.0]["cells"] == 3 / 4
    assert arrays[0.25]["energy_write_uj"] / arrays[1.0]["energy_write_uj"] == pytest.approx(3 / 4)


def test_writing_a_cell_takes_voltage_squared_conductance_and_time() -> None:
    sites = [site for site in deit_small(1) if site.component == "attention_scores"]
    row = cost_of_sites(sites, {"x": load_profile("clipformer")}).iloc[0]
    joule = row["cells"] * 2.0**2 * 10e-6 * 10e-9
    assert row["cells"] == HEADS * (WIDTH // HEADS) * TOKENS * 3 * 2
    assert row["energy_write_uj"] == pytest.approx(joule * 1e6)


def test_an_offset_needs_one_device_and_a_unit_column() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    offset = {"mapping.encoding": "offset", "mapping.weight_bits": 8}
    digital = cost_of_sites(sites, {"x": bit_serial(**offset)}).iloc[0]
    column = cost_of_sites(sites, {"x": bit_serial(**offset, **{"mapping.offset_correction": "unit_column"})}).iloc[0]
    assert digital["cells"] == WIDTH * WIDTH * 4
    assert column["cells"] - digital["cells"] == WIDTH * 4


def test_shared_arrays_take_area_once_and_energy_each_time() -> None:
    sites = [site for site in deit_small(1) if site.component in ("query", "key")]
    shared = [sites[0], replace(sites[1], array=sites[0].index)]
    alone, both = (total_cost(cost_of_sites(each, {"x": bit_serial()})).iloc[0] for each in (sites[:1], shared))
    assert both["cells"] == alone["cells"] and both["area_mm2"] == alone["area_mm2"]
    assert both["energy_uj"] == pytest.approx(2 * alone["energy_uj"])


def test_the_digital_baseline_counts_operations_and_one_transfer_of_each_weight() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    row = cost_of_sites(sites, {"x": bit_serial()}).iloc[0]
    assert row["digital_arithmetic_uj"] == pytest.approx(TOKENS * WIDTH**2 * 0.3e-6)
    weights = WIDTH**2 * 8 * 20
    activations = TOKENS * 2 * WIDTH * 8 * 10 / 64
    assert row["digital_memory_uj"] == pytest.approx((weights + activations) * 1e-6)


def test_latency_is_that_of_the_slower_of_array_and_adc() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    isaac = cost_of_sites(sites, {"x": bit_serial()}).iloc[0]
    assert isaac["latency_us"] == pytest.approx(TOKENS * 8 * 0.1)
    slow = cost_of_sites(sites, {"x": bit_serial()}, constants=CostModel(adc_rate_hz=1e8)).iloc[0]
    assert slow["latency_us"] == pytest.approx(TOKENS * 8 * 32 / 100)  # 32 pairs of columns at 100 MS/s


def test_what_a_device_leaves_open_is_said() -> None:
    notes = " ".join(cost(VIT, device="rram").attrs["notes"])
    assert "counted as 2 cells" in notes and "exact ADC" in notes and "does not limit its tiles" in notes
    assert cost(VIT, device="rram_neurosim").attrs["notes"] == []


def test_a_rewritten_model_can_be_counted_with_other_tiles(tmp_path) -> None:
    rewrite(VIT, device="rram_adc").save(tmp_path / "model.onnx")
    frame = cost(tmp_path / "model.onnx", tile_rows=[16, 256])
    plain = cost(VIT, device="rram_adc", tile_rows=[16, 256])
    assert frame["energy_uj"].tolist() == plain["energy_uj"].tolist()


def test_the_command_counts_and_draws(tmp_path) -> None:
    arguments = ["analyze", "cost", str(BERT), "--device", "rram_adc", "--tokens", "32,64", "--tile-rows", "64,128"]
    plot = tmp_path / "cost.png"
    result = CliRunner().invoke(app, [*arguments, "--constant", "adc_energy_pj=2", "--json", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["tokens"], row["tile_rows"]) for row in report["total"]] == [(32, 64), (32, 128), (64, 64), (64, 128)]
    assert report["constants"]["adc_energy_pj"] == 2
    assert plot.stat().st_size > 0 and plot.with_suffix(".csv").is_file()
    table = CliRunner().invoke(app, ["analyze", "cost", str(VIT), "--device", "rram_neurosim", "--constants"])
    assert "Digital baseline" in table.stdout and "ISAAC" in table.stdout
    assert CliRunner().invoke(app, [*arguments, "--tokens", "many"]).exit_code == 2


def test_energy_is_drawn_by_component() -> None:
    figure = pytest.importorskip("matplotlib.figure")
    axes = figure.Figure().subplots()
    draw_cost(cost(VIT, device="rram_neurosim"), axes)
    assert axes.get_xlabel() == "energy of one sample (uJ)"
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"ADC", "array", "digital, arithmetic alone"}
