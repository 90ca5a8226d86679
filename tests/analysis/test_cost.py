"""Counts of tiles, cells and conversions, the constants behind energy, area and time, and what follows from both."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emu import rewrite
from emu.analysis.cost import draw_cost
from emu.cli import app
from emu.contract.site import Site
from emu.cost import (
    Baseline,
    accelergy_adc_energy_pj,
    compare_cost,
    constants,
    cost,
    cost_of_sites,
    count,
    lossless_adc_bits,
    paper_ratio,
    paper_terms,
    peak,
    total_cost,
)
from emu.demo import model_path
from emu.device import load_profile, preset_names
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
    settings |= {"cost.read_voltage_v": 0.2, "cost.read_ns": 100.0, "cost.dac_pj": 0.4, "cost.shift_add_pj": 0.02}
    settings |= {"cost.adc_pj": 1.0, "cost.adc_ns": 0.78125, "cost.adc_columns": 128, "cost.adc_area_um2": 1200.0}
    settings |= {"cost.cell_area_um2": 0.05, "cost.dac_area_um2": 0.166, "cost.core_area_um2": 0.0}
    settings |= {"cost.buffer_pj_per_bit": 0.1, "cost.core_pj": 0.0}
    return load_profile("ideal", settings | changes)


def test_a_bit_serial_layer_of_deit_small_has_the_golden_counts() -> None:
    sizes = {"tile_rows": 64, "tile_columns": 64, "slices": 4, "devices": 2, "readings": 8}
    counts = count(384, 1536, **sizes)
    assert counts.arrays == 6 * 192 == 1152
    assert counts.adc_conversions == 294_912
    both = count(384, 1536, pair_conversions=2, **sizes)
    assert both.adc_conversions == 589_824 == 384 * 1536
    assert counts.adc_conversions * load_profile("isaac").cost.adc_pj * 1e-6 == pytest.approx(0.4608)


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
    frame = cost_of_sites(deit_small(), {"x": bit_serial(**{"cost.adc_pj": 2.0})})
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


def test_the_lossless_adc_of_isaac_has_9_bits() -> None:
    assert lossless_adc_bits(128, 1, 2) == 9
    assert lossless_adc_bits(128, 2, 2) == 11


def test_the_constants_add_up_to_the_power_and_area_of_isaac() -> None:
    it = load_profile("isaac").cost
    per_ns = 1 / it.read_ns  # pJ in 100 ns are so many mW
    adc_mw, dac_mw = 1024 * it.adc_pj * per_ns, 1024 * it.dac_pj * per_ns
    add_mw = 1024 * it.shift_add_pj * per_ns
    conductance_us = (0.5 + 500.0) / 2
    array_mw = 8 * 128**2 * it.read_voltage_v**2 * conductance_us * it.read_ns * it.mean_input * 1e-3 * per_ns
    assert (adc_mw, dac_mw, array_mw, add_mw) == pytest.approx((16, 4, 2.4, 0.21), rel=5e-3)
    registers_mw = 1.24 + 0.23
    assert adc_mw + dac_mw + array_mw + add_mw + registers_mw == pytest.approx(24.08, rel=1e-3)
    array_um2 = 128**2 * it.cell_area_um2 + 128 * it.dac_area_um2 + it.adc_area_um2 + it.core_area_um2
    assert array_um2 * it.chip_cells / 128**2 * 1e-6 == pytest.approx(85.4, rel=2e-3)


TILES_OF_512 = {"mapping.tile_rows": 512, "mapping.tile_columns": 512}


@pytest.mark.parametrize(
    "name, changes, tops_per_w, tops_per_mm2",
    [
        ("isaac", {}, 0.6275, 0.479),
        ("pcm_hermes", {}, 9.76, 1.55),
        ("pcm_hermes", {"cost.phases": 4}, 2.48, 0.40),
        ("pcm", TILES_OF_512, 12.4, None),
        ("pcm", TILES_OF_512 | {"cost.read_ns": 153.5}, 15.4, None),
    ],
)
def test_chips_reach_what_their_makers_publish(
    name: str, changes: dict, tops_per_w: float, tops_per_mm2: float | None
) -> None:
    found = peak(load_profile(name, changes))
    page = (Path(__file__).parents[2] / "docs" / "cost.md").read_text("utf-8")
    assert f"| {tops_per_w} | {found['tops_per_w']:.3g} " in page
    assert 0.8 < found["tops_per_w"] / tops_per_w < 1.25
    if tops_per_mm2:
        assert 0.9 < found["tops_per_mm2"] / tops_per_mm2 < 1.1
    else:
        assert math.isnan(found["tops_per_mm2"])


@pytest.mark.parametrize("name", [name for name in preset_names() if load_profile(name).cost.model == "circuits"])
def test_every_constant_of_a_preset_names_its_source(name: str) -> None:
    given = load_profile(name).cost
    numbers = {field for field, value in given.model_dump(exclude_defaults=True).items() if value is not None}
    assert numbers - {"sources"} <= set(given.sources)
    listed = constants([load_profile(name)]).set_index("constant")
    assert listed.loc["cost.read_voltage_v", "source"] == given.sources["read_voltage_v"]


def test_the_energy_of_reading_follows_conductance_voltage_and_pulse() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]

    def array_uj(**changes: float) -> float:
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return cost_of_sites(sites, {"x": load_profile("pcm_hermes", changes)}).iloc[0]["energy_array_uj"]

    own = array_uj()
    devices, mean_us = 2 * WIDTH**2, 0.14 * 20.7
    assert own == pytest.approx(TOKENS * devices * 0.42**2 * mean_us * 130 * 0.25 * 1e-3 * 1e-6)
    assert array_uj(mapping__g_max_us=207.0) == pytest.approx(10 * own)
    assert array_uj(cost__read_voltage_v=0.84) == pytest.approx(4 * own)
    assert array_uj(cost__read_ns=65.0) == pytest.approx(own / 2)


def test_a_constant_changes_what_depends_on_it_and_nothing_else() -> None:
    plain, double = (
        total_cost(cost_of_sites(deit_small(1), {"x": bit_serial(**{"cost.adc_pj": pj})})).iloc[0] for pj in (1.0, 2.0)
    )
    assert double["energy_adc_uj"] == pytest.approx(2 * plain["energy_adc_uj"])
    assert double["energy_uj"] - plain["energy_uj"] == pytest.approx(plain["energy_adc_uj"])
    assert plain["energy_adc_uj"] == pytest.approx(plain["adc_conversions"] * 1e-6)
    assert double["area_mm2"] == plain["area_mm2"] and double["latency_us"] == plain["latency_us"]


def test_what_has_no_constant_is_not_modelled_and_never_zero() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    without = cost_of_sites(sites, {"x": bit_serial(**{"cost.buffer_pj_per_bit": "off"})})
    assert math.isnan(without.iloc[0]["energy_buffer_uj"]) and math.isnan(total_cost(without)["energy_buffer_uj"][0])
    assert without.iloc[0]["energy_uj"] > 0
    assert without.attrs["notes"] == [
        "Not modelled, so in no sum: energy of buffers (cost.buffer_pj_per_bit) of device 'ideal'."
    ]
    for needed in ("cost.adc_pj", "cost.dac_pj", "cost.read_voltage_v"):
        row = cost_of_sites(sites, {"x": bit_serial(**{needed: "off"})}).iloc[0]
        assert math.isnan(row["energy_uj"]) and math.isnan(row["tops_per_w"]) and row["area_mm2"] > 0
    row = cost_of_sites(sites, {"x": bit_serial(**{"cost.cell_area_um2": "off"})}).iloc[0]
    assert math.isnan(row["area_mm2"]) and math.isnan(row["tops_per_mm2"]) and row["energy_uj"] > 0


def test_a_device_without_constants_is_counted_and_says_what_to_set() -> None:
    frame = cost(VIT, device="rram")
    assert frame["adc_conversions"].sum() > 0 and frame[["energy_uj", "area_mm2", "latency_us"]].isna().all(axis=None)
    total = total_cost(frame).iloc[0]
    assert math.isnan(total["energy_uj"]) and math.isnan(total["ratio"]) and math.isnan(total["paper_ratio"])
    assert "--costs-of" in frame.attrs["notes"][-1] and "--set cost." in frame.attrs["notes"][-1]


def test_constants_are_lent_where_a_device_has_none() -> None:
    lent = cost(VIT, device="rram_adc", costs_of="isaac")
    assert lent["energy_adc_uj"].sum() == pytest.approx(lent["adc_conversions"].sum() * 1.5625e-6)
    of_array = 2.4 * 100 / 8 / 128**2  # pJ of a cell and reading, by ISAAC's table
    query = lent[lent["component"] == "query"].iloc[0]
    readings = query["vectors"] * 7  # 8 bits, one of them the sign
    assert query["energy_array_uj"] == pytest.approx(query["cells"] * readings * of_array * 1e-6, rel=1e-3)
    assert lent.attrs["notes"][0] == "Device 'rram_adc' takes all constants that it does not have from 'isaac'."
    assert math.isnan(peak(lent.attrs["profiles"]["rram_adc"])["published_tops_per_w"])
    own = cost(VIT, device="rram_adc", set={"cost.adc_pj": 2.0}, costs_of="isaac")
    assert own["energy_adc_uj"].sum() == pytest.approx(own["adc_conversions"].sum() * 2e-6)
    assert own["energy_dac_uj"].tolist() == lent["energy_dac_uj"].tolist()
    # Its own conductances stay: they are what energy follows.
    single = cost(VIT, device="pcm_hermes_single", costs_of="pcm_hermes")
    pair = cost(VIT, device="pcm_hermes")
    assert single["energy_array_uj"].tolist() == pytest.approx((pair["energy_array_uj"] / 2).tolist())
    with pytest.raises(InputError, match="no \\[cost\\] to lend"):
        cost(VIT, device="rram_adc", costs_of="ideal")


def test_the_adc_of_a_sar_is_estimated_where_it_is_not_given() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    open_adc = {"cost.adc_pj": "off", "cost.node_nm": 32.0}
    frame = cost_of_sites(sites, {"x": bit_serial(**open_adc)})
    expected = accelergy_adc_energy_pj(8, 1.28e9, 32.0)
    assert frame["energy_adc_uj"][0] == pytest.approx(frame["adc_conversions"][0] * expected * 1e-6)
    assert "Accelergy" in frame.attrs["notes"][0]
    ramp = cost_of_sites(sites, {"x": bit_serial(**open_adc, **{"cost.adc": "ramp"})})
    assert math.isnan(ramp["energy_adc_uj"][0])


def test_inputs_bit_by_bit_take_a_reading_for_each_bit_and_pulses_one() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    at_once = {"dac.slice_bits": 0}
    serial, pulses = (
        cost_of_sites(sites, {"x": bit_serial(**at_once, **{"cost.dac": dac})}).iloc[0] for dac in ("bit_serial", "pwm")
    )
    for name in ("adc_conversions", "dac_conversions", "energy_array_uj", "latency_us"):
        assert serial[name] == pytest.approx(8 * pulses[name])


@pytest.mark.parametrize("wrong", ["digital_bit=2", "digital_bits", "digital_bits=1.5", "digital_add_pj=-1"])
def test_wrong_constants_are_refused(wrong: str) -> None:
    with pytest.raises(InputError):
        Baseline.of([wrong])


def test_energy_delay_and_density_follow_from_energy_area_and_time() -> None:
    frame = cost_of_sites(deit_small(1), {"x": bit_serial()})
    row = total_cost(frame).iloc[0]
    joule, metres2 = row["energy_uj"] * 1e-6, row["area_mm2"]
    assert row["tops_per_w"] == pytest.approx(2 * row["macs"] / joule * 1e-12)
    slowest_s = frame["latency_us"].max() * 1e-6
    assert row["tops_per_mm2"] == pytest.approx(2 * row["macs"] / slowest_s * 1e-12 / metres2)
    assert row["edp_uj_us"] == pytest.approx(row["energy_uj"] * frame["latency_us"].sum())


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
    joule = row["cells"] * 2.0**2 * 5.05e-6 * 10e-9  # the mean conductance of 0.1 to 10 microsiemens
    assert row["cells"] == HEADS * (WIDTH // HEADS) * TOKENS * 3 * 2
    assert row["energy_write_uj"] == pytest.approx(joule * 1e6)
    given = {"cost.write_pj": 3.0, "cost.write_pulses": 5.0}
    row = cost_of_sites(sites, {"x": load_profile("clipformer", given)}).iloc[0]
    assert row["energy_write_uj"] == pytest.approx(row["cells"] * 15.0 * 1e-6)


def test_clipping_saves_attention_what_the_paper_says() -> None:
    plain = load_profile("clipformer", {"write.alpha": 0.0, "write.beta": 1.0})
    found = compare_cost(
        cost_of_sites(deit_small(), {"x": load_profile("clipformer")}), cost_of_sites(deit_small(), {"x": plain})
    ).set_index("component")
    assert -0.08 < found.loc["attention", "energy_change"] < -0.07
    assert -0.08 < found.loc["attention", "area_change"] < -0.07
    assert found.loc["query", "energy_change"] == 0
    assert found.loc["all", "energy_uj"] < found.loc["all", "other_energy_uj"]


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
    assert row["digital_fetch_uj"] == pytest.approx(weights * 1e-6)
    assert row["digital_cache_uj"] == pytest.approx(activations * 1e-6)


def test_latency_is_that_of_the_slower_of_array_and_adc() -> None:
    sites = [site for site in deit_small(1) if site.component == "query"]
    isaac = cost_of_sites(sites, {"x": bit_serial()}).iloc[0]
    assert isaac["latency_us"] == pytest.approx(TOKENS * 8 * 0.1)
    slow = cost_of_sites(sites, {"x": bit_serial(**{"cost.adc_ns": 10.0})}).iloc[0]
    assert slow["latency_us"] == pytest.approx(TOKENS * 8 * 32 / 100)  # 32 pairs of columns at 100 MS/s
    ramp = {"cost.adc": "ramp", "cost.adc_ns": 30.0}
    assert cost_of_sites(sites, {"x": bit_serial(**ramp)}).iloc[0]["latency_us"] == pytest.approx(TOKENS * 8 * 0.13)
    cco = {"cost.adc": "cco", "cost.adc_ns": 30.0}
    assert cost_of_sites(sites, {"x": bit_serial(**cco)}).iloc[0]["latency_us"] == pytest.approx(TOKENS * 8 * 0.1)


def test_what_a_device_leaves_open_is_said() -> None:
    notes = " ".join(cost(VIT, device="rram").attrs["notes"])
    assert "counted as a pair of cells" in notes and "exact ADC" in notes and "does not limit its tiles" in notes
    complete = cost(VIT, device="clipformer", set={"cost.core_pj": 1.0, "cost.core_area_um2": 1.0, "cost.adc_bits": 6})
    assert complete.attrs["notes"] == []


def test_a_rewritten_model_can_be_counted_with_other_tiles(tmp_path) -> None:
    rewrite(VIT, device="pcm_hermes").save(tmp_path / "model.onnx")
    frame = cost(tmp_path / "model.onnx", tile_rows=[16, 256])
    plain = cost(VIT, device="pcm_hermes", tile_rows=[16, 256])
    assert frame["energy_uj"].tolist() == plain["energy_uj"].tolist()
    changed = cost(tmp_path / "model.onnx", set={"cost.dac_pj": 0.0, "cost.adc_pj": 0.0})
    assert (changed["energy_uj"] == changed["energy_array_uj"]).all()


def test_constants_can_be_set_on_a_rewritten_model_that_has_none(tmp_path) -> None:
    rewrite(VIT, device="rram_adc").save(tmp_path / "model.onnx")
    frame = cost(tmp_path / "model.onnx", set={"cost.adc_pj": 2.0})
    assert frame["energy_adc_uj"].sum() == pytest.approx(frame["adc_conversions"].sum() * 2e-6)


def test_the_command_counts_and_draws(tmp_path) -> None:
    arguments = ["analyze", "cost", str(BERT), "--device", "pcm_hermes", "--tokens", "32,64", "--tile-rows", "64,128"]
    plot = tmp_path / "cost.png"
    changes = ["--set", "cost.adc_pj=2", "--constant", "digital_bits=16"]
    result = CliRunner().invoke(app, [*arguments, *changes, "--json", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["tokens"], row["tile_rows"]) for row in report["total"]] == [(32, 64), (32, 128), (64, 64), (64, 128)]
    listed = {row["constant"]: row["value"] for row in report["constants"]}
    assert (listed["cost.adc_pj"], listed["digital_bits"]) == (2, 16)
    assert report["peak"]["pcm_hermes"]["published_tops_per_w"] == 9.76
    assert {"tops_per_w", "tops_per_mm2", "edp_uj_us"} <= set(report["total"][0])
    assert plot.stat().st_size > 0 and "tops_per_mm2" in plot.with_suffix(".csv").read_text()
    assert CliRunner().invoke(app, [*arguments, "--tokens", "many"]).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--compare", "pcm"]).exit_code == 2


def test_the_table_says_where_weights_are_and_what_is_published() -> None:
    shown = CliRunner().invoke(app, ["analyze", "cost", str(VIT), "--device", "pcm_hermes", "--constants"]).stdout
    assert "weights  resident on 58 arrays" in shown and "fetched from DRAM" in shown
    assert "10.5 TOPS/W, 1.59 TOPS/mm2; its makers publish 9.76 TOPS/W, 1.55 TOPS/mm2" in shown
    assert "Khaddam-Aljameh 2022" in shown and "EDP" in shown
    bare = CliRunner().invoke(app, ["analyze", "cost", str(VIT), "--device", "rram"])
    assert bare.exit_code == 0 and "- is not modelled" in bare.stdout and " 0 " not in bare.stdout.split("key ")[1]
    assert CliRunner().invoke(app, ["analyze", "cost", str(VIT), "--device", "rram", "--json"]).exit_code == 0


def test_the_command_compares_with_other_settings_and_other_devices() -> None:
    command = ["analyze", "cost", str(VIT), "--device", "clipformer"]
    settings = ["--compare", "write.alpha=0", "--compare", "write.beta=1"]
    shown = CliRunner().invoke(app, [*command, *settings]).stdout
    assert "compared with write.alpha=0, write.beta=1" in shown
    assert "-33" in next(line for line in shown.splitlines() if line.startswith("attention_scores"))
    report = json.loads(CliRunner().invoke(app, [*command, "--compare", "rram_neurosim", "--json"]).stdout)
    assert report["compared_with"] == "rram_neurosim"
    everything = next(row for row in report["compared"] if row["component"] == "all")
    assert everything["energy_change"] == pytest.approx(everything["energy_uj"] / everything["other_energy_uj"] - 1)
    assert CliRunner().invoke(app, [*command, "--compare", "pcm", "--compare", "isaac"]).exit_code == 2


def test_energy_is_drawn_by_component() -> None:
    figure = pytest.importorskip("matplotlib.figure")
    axes = figure.Figure().subplots()
    draw_cost(cost(VIT, device="rram_neurosim"), axes)
    assert axes.get_xlabel() == "energy of one sample (uJ)"
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"ADC", "array", "digital, arithmetic alone"}
    with pytest.raises(InputError, match="not modelled"):
        draw_cost(cost(VIT, device="rram"), figure.Figure().subplots())
