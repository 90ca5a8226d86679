"""Plots a fitted device: the spread of readings by target, and what drift made of them, with the laws beside."""

from pathlib import Path
from typing import Any

import numpy as np

from emu.device.fitting import Fit
from emu.device.plot import duration, figure_file, finish, style_of


def plot_fit(fit: Fit, path: str | Path) -> None:
    """Plots measured standard deviations and drifted means against the target, points, with the laws as lines.

    Args:
        fit: from `fit_device`.
        path: where to write, its suffix .png, .svg or .pdf.

    Raises:
        InputError: another suffix, matplotlib missing, or a file that cannot be written.
    """
    path, pyplot = figure_file(path)
    panels = [_spread] + [_drift] * bool(fit.drift_us)
    with pyplot.rc_context(style_of(fit.profile.name)):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(4.8 * len(panels), 3.9), layout="constrained", squeeze=False
        )
        for panel, axis in zip(panels, axes[0], strict=True):
            panel(fit, axis)
        finish(figure, axes[0], f"Device {fit.profile.name}", path)


def _spread(fit: Fit, axis: Any) -> None:
    for index, (time_s, (target, measured, said)) in enumerate(fit.std_us.items()):
        label = f", {duration(time_s)}" if len(fit.std_us) > 1 else ""
        axis.plot(target, measured, "o", color=f"C{index}", markersize=4, label=f"measured{label}")
        axis.plot(target, said, "-", color=f"C{index}", label=f"{fit.profile.program.model}{label}")
    axis.set(title="Programming", xlabel="target (microsiemens)", ylabel="standard deviation (microsiemens)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _drift(fit: Fit, axis: Any) -> None:
    axis.axhline(0, color="#8a8a8a", linewidth=0.8)
    for index, (time_s, (target, measured, said)) in enumerate(fit.drift_us.items()):
        axis.plot(target, measured - target, "o", color=f"C{index}", markersize=4)
        axis.plot(target, said - target, "-", color=f"C{index}", label=duration(time_s))
    lowest, highest = axis.get_ylim()
    axis.set_ylim(lowest, highest + 0.25 * np.ptp((lowest, highest)))  # above the curves: the legend
    axis.set(title=f"Drift: {fit.profile.drift.model}", xlabel="target (microsiemens)")
    axis.set_ylabel("mean change (microsiemens)")
    axis.legend(frameon=False, ncols=4, loc="upper center", title="points measured, lines law")
