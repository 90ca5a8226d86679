"""Attention against clean attention: the measures, what they are averaged over, and what disturbs a layer."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emu import Bench, EmulatedModel, rewrite
from emu.analysis.attention import attention, divergence, draw_attention, entropy
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.data import read_arrays

VIT, DIGITS = model_path("digits_vit"), data_path("digits_test")
BERT, LISTOPS = model_path("listops_bert"), data_path("listops_test")


@cache
def on(model: Path, device: str) -> EmulatedModel:
    return rewrite(model, device=device)


def test_divergence_and_entropy_have_their_golden_values() -> None:
    clean, noisy = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    assert divergence(clean, noisy) == pytest.approx(0.08512283, abs=1e-8)
    assert entropy(clean) == pytest.approx(0.80181855, abs=1e-8)
    assert entropy(noisy) == pytest.approx(1.02965301, abs=1e-8)
    assert entropy(noisy) - entropy(clean) == pytest.approx(0.22783446, abs=1e-8)


def test_a_lost_probability_costs_a_finite_divergence() -> None:
    clean, noisy = np.array([0.5, 0.5, 0.0]), np.array([1.0, 0.0, 0.0])
    assert divergence(clean, noisy) == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-12))
    assert divergence(noisy, noisy) == entropy(noisy) == 0


def test_an_exact_device_moves_nothing() -> None:
    frame = attention(Bench(on(VIT, "rram"), DIGITS, set={"program.sigma": 0.0}, samples=6), chips=2).table
    np.testing.assert_allclose(frame["kl"], 0, atol=1e-6)
    np.testing.assert_allclose(frame["entropy_shift"], 0, atol=1e-5)


def test_every_head_of_every_layer_has_a_line_and_more_noise_moves_all_further() -> None:
    weak, strong = (
        attention(Bench(on(VIT, "rram"), DIGITS, set={"program.sigma": sigma}, samples=10), chips=2).table
        for sigma in (0.05, 0.3)
    )
    assert list(zip(weak["layer"], weak["head"], strict=True)) == [(i, j) for i in range(4) for j in range(4)]
    assert (strong["kl"] > 4 * weak["kl"]).all()
    assert (weak["kl_low"] <= weak["kl"]).all() and (weak["kl"] <= weak["kl_high"]).all()
    np.testing.assert_array_equal(weak["entropy_clean"], strong["entropy_clean"])


def test_an_isolated_layer_hears_nothing_of_the_layers_before_it() -> None:
    everything = attention(Bench(on(VIT, "rram"), DIGITS, samples=10), chips=2).table
    isolated = attention(Bench(on(VIT, "rram"), DIGITS, samples=10), chips=2, isolate=True).table
    late = everything["layer"] > 1
    assert (isolated["kl"][late] < 0.6 * everything["kl"][late]).all()
    same = attention(Bench(on(VIT, "rram"), DIGITS, samples=10), only="layer=2", chips=2).table
    columns = ["kl", "entropy_shift"]
    np.testing.assert_array_equal(isolated[isolated["layer"] == 2][columns], same[same["layer"] == 2][columns])


def test_padding_neither_counts_nor_matters() -> None:
    arrays = {name: array[:8] for name, array in read_arrays(LISTOPS)[0].items()}
    length = int(arrays["attention_mask"].sum(1).max())
    cut = {name: array[:, :length] if array.ndim == 2 else array for name, array in arrays.items()}
    long, short = (attention(Bench(on(BERT, "rram"), each), chips=2).table for each in (arrays, cut))
    assert length < 32
    np.testing.assert_allclose(long["kl"], short["kl"], rtol=1e-3)
    np.testing.assert_allclose(long["entropy_clean"], short["entropy_clean"], rtol=1e-5)


def test_the_batch_size_does_not_matter() -> None:
    one, other = (
        attention(Bench(on(BERT, "rram"), LISTOPS, samples=9, batch_size=size), chips=2).table for size in (4, 9)
    )
    np.testing.assert_allclose(one["kl"], other["kl"], rtol=1e-4)


def test_bins_of_lengths_hold_every_sample_once_and_average_to_the_whole() -> None:
    by_length = attention(Bench(on(BERT, "rram"), LISTOPS, samples=30), chips=2, by="length", bins=4).table
    by_head = attention(Bench(on(BERT, "rram"), LISTOPS, samples=30), chips=2).table
    for layer in range(3):
        bins = by_length[by_length["layer"] == layer]
        assert bins["samples"].sum() == 30
        assert (bins["shortest"].to_numpy()[1:] > bins["longest"].to_numpy()[:-1]).all()
        whole = by_head[by_head["layer"] == layer]["kl"].mean()
        assert np.average(bins["kl"], weights=bins["samples"]) == pytest.approx(whole, rel=1e-5)


def test_lengths_need_an_attention_mask() -> None:
    with pytest.raises(InputError, match="needs an input 'attention_mask'"):
        attention(Bench(on(VIT, "rram"), DIGITS, samples=4), chips=1, by="length")


def test_the_heat_map_shows_layers_and_heads() -> None:
    figure = pytest.importorskip("matplotlib.figure")
    frame = attention(Bench(on(VIT, "rram"), DIGITS, samples=4), chips=1).table
    axes = figure.Figure().subplots()
    draw_attention(frame, axes, "entropy_shift")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    assert axes.images[0].get_array().shape == (4, 4)
    assert "1 chip" in axes.get_title()


def test_the_command_prints_json_and_draws(tmp_path) -> None:
    arguments = ["analyze", "attention", str(BERT), "--data", str(LISTOPS), "--device", "rram", "--samples", "8"]
    plot = tmp_path / "attention.png"
    result = CliRunner().invoke(app, [*arguments, "--chips", "2", "--by", "length", "--plot", str(plot), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["device"], report["samples"], report["isolate"]) == ("rram", 8, False)
    assert {"layer", "shortest", "longest", "kl", "entropy_shift"} <= set(report["attention"][0])
    assert plot.stat().st_size > 0 and plot.with_suffix(".csv").read_text().startswith("layer,shortest,longest,")
    table = CliRunner().invoke(app, [*arguments, "--chips", "1", "--isolate"])
    assert "only the layer itself disturbed" in table.stdout
