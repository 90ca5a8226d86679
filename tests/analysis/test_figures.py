"""Figures do not lie: scales that chance cannot fill, headings that fit, numbers beside what is off the axis."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emu.analysis.cost import draw_cost
from emu.analysis.figures import half_width, heat_map, save_figure
from emu.analysis.snr import draw_signal_to_noise
from emu.cost import cost
from emu.demo import model_path

figure = pytest.importorskip("matplotlib.figure")


def test_differences_within_their_noise_do_not_reach_the_end_of_the_scale() -> None:
    table = pd.DataFrame({"low": [-0.3, -0.1, np.nan], "high": [0.5, 0.2, np.nan]})
    assert half_width(table) == pytest.approx(0.4)
    assert half_width(table.tail(1)) == 0
    tops = []
    for values in ([[0.1, -0.2]], [[3.0, -0.2]]):
        axes = figure.Figure().subplots()
        heat_map(axes, values, ["layer 0"], ["query", "key"], "points", noise=half_width(table))
        tops.append(axes.images[0].get_clim())
    assert tops == [(0, pytest.approx(0.4)), (0, pytest.approx(3.0))]


def test_a_long_heading_stays_within_the_figure(tmp_path: Path) -> None:
    from PIL import Image

    heading = "a model with a long name on a device, 500 samples, against the same chip with other settings " * 2
    save_figure(tmp_path / "f.png", [lambda axes: axes.plot([0, 1])], pd.DataFrame({"x": [1]}), heading, (5, 4))
    ink = np.asarray(Image.open(tmp_path / "f.png").convert("L")) < 128
    assert not ink[:, :5].any() and not ink[:, -5:].any()


def test_the_digital_energy_beyond_the_axis_is_a_number_beside_it() -> None:
    axes = figure.Figure().subplots()
    frame = cost(model_path("digits_vit"), device="rram_neurosim")
    draw_cost(frame, axes)
    of_components = frame.groupby("component", sort=False)["digital_uj"].sum()
    assert [text.get_text() for text in axes.texts][:-1] == [f"{energy:.3g}" for energy in of_components]
    assert axes.get_xlim()[1] < of_components.max()


def test_two_settings_that_vary_are_told_apart_by_colour_and_by_line() -> None:
    points = [(gamma, beta, layer) for gamma in (3, 4) for beta in (0.25, 1) for layer in (0, 1)]
    frame = pd.DataFrame(points, columns=["write.gamma", "write.beta", "layer"])
    frame = frame.assign(snr_db=1.0, snr_db_low=1.0, snr_db_high=1.0, chips=2)
    axes = figure.Figure().subplots()
    draw_signal_to_noise(frame, axes)
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
    assert looks[0][0] == looks[1][0] != looks[2][0] == looks[3][0]
    assert looks[0][1] == looks[2][1] != looks[1][1] == looks[3][1]
