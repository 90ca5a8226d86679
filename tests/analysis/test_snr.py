"""The signal-to-noise ratio of blocks: its unit, what it is against, and how it follows the device."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emu import Bench, EmulatedModel, Trial, rewrite
from emu.analysis.probes import ProbedModel
from emu.analysis.snr import draw_signal_to_noise, ratio_db, signal_to_noise
from emu.calibration import fit_ranges
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.data import read_arrays

VIT, DIGITS = model_path("digits_vit"), data_path("digits_test")
BERT, LISTOPS = model_path("listops_bert"), data_path("listops_test")


# Ranges and noise without a calibration.
UNCALIBRATED = {"clipformer": {"write.scaling": "matrix", "write.sigma": 0.01}}


@cache
def on(model: Path, device: str) -> EmulatedModel:
    return rewrite(model, device=device, set=UNCALIBRATED.get(device))


def test_a_hundredth_of_the_power_is_20_db() -> None:
    assert ratio_db(1.0, 0.01) == pytest.approx(20)
    assert ratio_db(1.0, 0.0) == math.inf
    assert math.isnan(ratio_db(math.nan, 1.0)) and math.isnan(ratio_db(0.0, 0.0))


@pytest.mark.parametrize("spread, expected_db", [(0.05, 24.2597), (0.1, 18.2391), (0.3, 8.6967)])
def test_write_noise_gives_the_golden_element_ratio(spread: float, expected_db: float) -> None:
    # v' = v + spread sqrt(v) N for v uniform between 0 and 1
    generator = np.random.default_rng(0)
    v = generator.random(400_000)
    noise = spread * np.sqrt(v) * generator.standard_normal(v.size)
    assert ratio_db(float((v**2).sum()), float((noise**2).sum())) == pytest.approx(expected_db, abs=0.05)


def test_the_ratio_is_that_of_the_sums_over_all_samples() -> None:
    frame = signal_to_noise(Bench(on(VIT, "rram"), DIGITS, samples=5, batch_size=2), chips=1, first_seed=3).table
    probed = ProbedModel(Bench(on(VIT, "rram"), DIGITS, samples=5), "block")
    (batch,) = probed.batches()
    for layer, (y, noisy) in enumerate(zip(probed.run(batch, None), probed.run(batch, Trial(seed=3)), strict=True)):
        expected = 10 * np.log10((y.astype(float) ** 2).sum() / ((noisy.astype(float) - y) ** 2).sum())
        assert frame["snr_db"][layer] == pytest.approx(expected, abs=1e-3)


def test_ten_times_the_spread_costs_about_20_db_and_layers_add_noise() -> None:
    frame = signal_to_noise(
        Bench(on(VIT, "rram"), DIGITS, samples=10), vary={"program.sigma": [0.005, 0.05]}, chips=2
    ).table
    weak, strong = (rows["snr_db"].to_numpy() for _, rows in frame.groupby("program.sigma"))
    np.testing.assert_allclose(weak - strong, 20, atol=1.5)
    assert strong[-1] < strong[0]


def test_without_disturbance_the_ratio_is_infinite() -> None:
    frame = signal_to_noise(Bench(on(VIT, "rram"), DIGITS, samples=4), only="layer=2", chips=2).table
    assert frame["snr_db"].tolist()[:2] == [math.inf, math.inf]
    assert np.isfinite(frame["snr_db"][2:]).all()
    assert frame["snr_db_low"][:2].isna().all()


def test_padding_does_not_count() -> None:
    arrays = {name: array[:6] for name, array in read_arrays(LISTOPS)[0].items()}
    length = int(arrays["attention_mask"].sum(1).max())
    cut = {name: array[:, :length] if array.ndim == 2 else array for name, array in arrays.items()}
    long, short = (signal_to_noise(Bench(on(BERT, "rram"), each), chips=2).table["snr_db"] for each in (arrays, cut))
    np.testing.assert_allclose(long, short, atol=0.01)


def test_a_reference_with_the_transform_leaves_the_noise_alone() -> None:
    """Against the clean model the clip of K and V counts as noise, against the same transform it does not."""
    options = {"chips": 2, "of": "context"}
    vary = {"write.gamma": [3, 5]}
    clean = signal_to_noise(Bench(on(VIT, "clipformer"), DIGITS, samples=8), vary=vary, **options).table
    noise = signal_to_noise(
        Bench(on(VIT, "clipformer"), DIGITS, samples=8), vary=vary, reference={"write.gamma": 0}, **options
    ).table
    assert (noise["snr_db"] > clean["snr_db"] + 6).all()
    gamma_3, gamma_5 = (rows["snr_db"].mean() for _, rows in noise.groupby("write.gamma"))
    assert gamma_3 - gamma_5 == pytest.approx(20 * math.log10(5 / 3), abs=1)


def test_all_combinations_of_what_is_varied_are_measured() -> None:
    vary = {"write.gamma": [3, 4], "write.beta": [1.0, 0.25]}
    frame = signal_to_noise(Bench(on(VIT, "clipformer"), DIGITS, samples=2), vary=vary, chips=1).table
    assert len(frame.drop_duplicates(list(vary))) == 4 and len(frame) == 16


def test_a_number_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"write\.gamma"):
        signal_to_noise(Bench(on(VIT, "rram"), DIGITS, samples=2), vary={"write.gamma": [3]}, chips=1)


def test_each_setting_is_a_line_over_layers() -> None:
    figure = pytest.importorskip("matplotlib.figure")
    frame = signal_to_noise(
        Bench(on(VIT, "rram"), DIGITS, samples=4), vary={"program.sigma": [0.1, 0.2]}, chips=2
    ).table
    axes = figure.Figure().subplots()
    draw_signal_to_noise(frame, axes)
    assert [line.get_label() for line in axes.lines] == ["program.sigma 0.1", "program.sigma 0.2"]
    assert "dB" in axes.get_ylabel() and "2 chips" in axes.get_title()


def test_the_command_prints_json_and_a_table(tmp_path) -> None:
    arguments = ["analyze", "snr", str(VIT), "--data", str(DIGITS), "--device", "clipformer", "--samples", "4"]
    arguments += ["--set", "write.scaling=matrix", "--vary", "write.gamma=3,5", "--vary", "write.beta=0.25"]
    arguments += ["--chips", "2"]
    result = CliRunner().invoke(app, [*arguments, "--json", "--plot", str(tmp_path / "snr.svg")])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["snr"]
    assert [(row["write.gamma"], row["layer"]) for row in rows] == [(g, layer) for g in (3, 5) for layer in range(4)]
    assert (tmp_path / "snr.csv").is_file()
    table = CliRunner().invoke(app, arguments)
    assert "mean over layers" in table.stdout
    assert CliRunner().invoke(app, [*arguments, "--vary", "write.gamma"]).exit_code == 2


def test_a_device_that_wants_ranges_is_calibrated_on_the_data_and_the_notes_say_so() -> None:
    bench = Bench(VIT, DIGITS, device="clipformer", samples=4, calibrate=fit_ranges)
    assert any("ranges of converters by minmax on the first 4 rows of" in line for line in bench.about_sites)
    assert ProbedModel(bench, "context").probes
