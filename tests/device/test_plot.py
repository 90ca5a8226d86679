"""Plots show what the device has, from numbers that agree with its model."""

import sys
from pathlib import Path

import numpy as np
import pytest

from emu.device import load_profile
from emu.device.plot import plot_device, stored_weights, transfer_curve, written_operands
from emu.errors import InputError

pytest.importorskip("matplotlib")

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", STARTS)
def test_a_plot_is_written_in_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rram{suffix}"
    plot_device(load_profile("rram"), path)
    assert path.read_bytes().startswith(STARTS[suffix])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]  # and nothing half-written beside it


def test_panels_that_would_show_nothing_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    assert plot_device(load_profile("rram"), path) == ["it does not drift", "it has no converters"]
    assert plot_device(load_profile("rram_adc", {"program.model": "none"}), path) == [
        "it stores weights exactly",
        "it does not drift",
    ]
    with pytest.raises(InputError, match="'ideal' has nothing to plot: it stores weights exactly"):
        plot_device(load_profile("ideal"), path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for name, says in (("x.txt", "end its name in .png, .svg or .pdf"), ("no_folder/x.png", "There is no folder")):
        with pytest.raises(InputError, match=says):
            plot_device(load_profile("rram"), tmp_path / name)


def test_without_matplotlib_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"Plots need matplotlib: pip install 'emu-onnx\[analysis\]'"):
        plot_device(load_profile("rram"), tmp_path / "x.png")


def test_lognormal_weights_spread_in_proportion() -> None:
    weights = stored_weights(load_profile("rram", {"program.sigma": 0.1}))
    ratio = weights[-1]  # target 1
    assert np.log(ratio).std() == pytest.approx(0.1, rel=0.1)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)


def test_phase_change_memory_has_the_published_mean_and_spread_after_a_day() -> None:
    # Mean and standard deviation of aihwkit's model for the weights 1 and 0, a day after programming, not compensated.
    profile = load_profile("pcm_aihwkit", {"drift.compensation": "none"})
    weights = stored_weights(profile, 86400)
    assert weights[-1].mean() == pytest.approx(0.662, abs=0.01)
    assert weights[-1].std() == pytest.approx(0.0625, rel=0.12)
    assert stored_weights(load_profile("pcm_aihwkit"), 86400)[-1].mean() == pytest.approx(1, abs=0.02)


def test_clipformer_clips_what_is_written_to_beta() -> None:
    weights = written_operands(load_profile("clipformer", {"write.gamma": 0, "write.bits": 0}))
    # (beta g_max - g_min) / (g_max - g_min) with g_min / g_max = 0.01
    assert weights.max() == pytest.approx((0.25 - 0.01) / 0.99, abs=1e-5)
    assert weights[40].tolist() == pytest.approx([0] * 512, abs=1e-6)  # shifted below g_min


def test_a_tile_without_bound_management_saturates_at_its_bound() -> None:
    exact, read = transfer_curve(load_profile("rram_adc", {"adc.bound_management": "none", "read.output_noise": 0}))
    assert exact.max() == pytest.approx(15, rel=1e-3) and exact.min() == pytest.approx(-15, rel=1e-3)
    assert read.max() == pytest.approx(10) and read.min() == pytest.approx(-10)
    inside = np.abs(exact) < 9
    assert np.abs(read - exact)[inside].max() < 20 / 254  # half a step of the ADC, and the rounding of inputs


def test_bound_management_reads_beyond_the_bound() -> None:
    _, read = transfer_curve(load_profile("rram_adc", {"read.output_noise": 0}))
    assert read.max() > 14


@pytest.mark.parametrize("name", ["isaac", "prime", "rram_neurosim"])
def test_the_published_accelerators_read_close_to_the_exact_output(name: str) -> None:
    exact, read = transfer_curve(load_profile(name))
    assert np.abs(read - exact).max() < 0.1 * np.abs(exact).max()
