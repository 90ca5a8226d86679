"""Plots what a device does: what it stores, how that drifts, and what its converters make of a product."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import DYNAMIC, STORED, plain
from emu.device.loading import load_profile
from emu.device.profile import Profile
from emu.errors import InputError
from emu.files import whole_file
from emu.reference import crossbar_matmul, crossbar_matmul_dynamic, stored_weight

FORMATS = (".png", ".svg", ".pdf")

_TARGETS = np.linspace(-1, 1, 81)  # in units of the largest weight
_CHIPS, _DEVICES = 8, 64  # each target, or one very near, is stored in so many devices of so many chips
_HUGE = 2.5  # weights that are off by more are counted, not drawn: flipped bits
_TIMES_S = np.geomspace(1, 365 * 86400, 29)
_DRIFTING = 0.5  # the target whose drift is shown
_ROWS, _COLUMNS, _SWEEP = 256, 16, 601  # of the tile behind converters, and the inputs swept through it
_BLUE, _ORANGE, _GREY = "#2a6f97", "#d1751a", "#8a8a8a"

# Switches off what panels do not show: overrides of a profile.
_ONE_ARRAY = {"mapping.tile_rows": 0, "mapping.tile_columns": 0, "mapping.scaling": "tensor"}
_NO_READING = {"dac.model": "none", "adc.model": "none", "read.weight_noise_model": "none", "read.wires": "none"}
_NO_READING |= {"read.output_noise": "off", "read.input_noise": "off"}
_EXACT_DEVICES = {"program.model": "none", "program.modifier": "off", "drift.model": "none", "faults.storage": "none"}
_EXACT_DEVICES |= {"faults.stuck_low": "off", "faults.stuck_high": "off", "write.model": "none"}

_Panel = Callable[[Any], None]


def plot_device(profile: Profile, path: str | Path) -> list[str]:
    """Plots a device into a file, computed by the NumPy twin.

    Panels, each only if the device has what it shows: error of a stored weight against its target, mean and standard
    deviation over devices (of an operand written at run time likewise); a stored weight against time, with and without
    compensation; output against exact output of a tile behind converters.

    Args:
        profile: the device.
        path: where to write, its suffix .png, .svg or .pdf.

    Returns:
        What is not shown and why, one text each.

    Raises:
        InputError: another suffix, matplotlib missing, a file that cannot be written, or a device without effects.
    """
    path, pyplot = figure_file(path)
    candidates = (_stored_panel, _written_panel, _drift_panel, _transfer_panel)
    found = [candidate(profile) for candidate in candidates]
    panels = [each for each in found if not isinstance(each, str)]
    missing = [each for each in found if isinstance(each, str) and each]
    if not panels:
        raise InputError(f"Device '{profile.name}' has nothing to plot: {'; '.join(missing)}.")
    with pyplot.rc_context(style_of(profile.name)):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(4.8 * len(panels), 3.9), layout="constrained", squeeze=False
        )
        for panel, axis in zip(panels, axes[0], strict=True):
            panel(axis)
        finish(figure, axes[0], f"Device {profile.name}", path)
    return missing


def figure_file(path: str | Path) -> tuple[Path, Any]:
    """The file that a figure goes into, and matplotlib's pyplot, without a screen.

    Raises:
        InputError: the suffix is none of `FORMATS`, or matplotlib is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} cannot be a plot: end its name in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    try:
        import matplotlib
    except ImportError:
        raise InputError("Plots need matplotlib: pip install 'emu-onnx[analysis]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return path, pyplot


def style_of(name: str) -> dict[Any, Any]:
    """Matplotlib's settings for the figure of a device."""
    return {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": name}


def finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    """Grids, title, and the file; the figure is closed."""
    from matplotlib import pyplot

    try:
        for axis in axes:
            axis.grid(color="#e6e6e6", linewidth=0.6)
            axis.set_axisbelow(True)
        figure.suptitle(title, fontsize=11)
        _save(figure, path)
    finally:
        pyplot.close(figure)


def _save(figure: Any, path: Path) -> None:
    """Writes beside the target first, so that nothing half-written has its name."""
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=150, metadata=metadata)


def _stored_panel(profile: Profile) -> _Panel | str:
    error = stored_weights(profile) - _targets()
    if np.array_equal(np.abs(np.nan_to_num(error, nan=1.0)) > 1e-6, np.zeros_like(error, bool)):
        return "it stores weights exactly"
    drifted = "" if profile.drift.model == "none" else f", after {duration(profile.entries()['drift.time_s'])}"
    mapping = profile.mapping
    cells = mapping.encoding != "weight" and not getattr(mapping, "slice_bits", 0) > 0  # not of single devices
    per_weight = _range_us(profile) / (2 if mapping.encoding == "offset" else 1) if cells else None
    return _error_panel(error, f"Stored weight{drifted}", per_weight)


def _written_panel(profile: Profile) -> _Panel | str:
    if profile.write.model == "none":
        return ""
    per_weight = _range_us(profile) if profile.write.model in ("lognormal_g", "clipformer") else None
    return _error_panel(written_operands(profile) - _targets(), "Operand written at run time", per_weight)


def _error_panel(error: NDArray[np.float64], title: str, per_weight: float | None) -> _Panel:
    """Mean and spread of errors [targets, devices]; `per_weight` microsiemens are the largest weight, if any are."""
    usual = np.abs(np.nan_to_num(error, nan=np.inf)) <= _HUGE
    kept = np.where(usual, error, np.nan)
    mean, std = np.nanmean(kept, axis=1), np.nanstd(kept, axis=1)

    def draw(axis: Any) -> None:
        axis.axhline(0, color=_GREY, linewidth=0.8)
        axis.fill_between(_TARGETS, mean - std, mean + std, color=_BLUE, alpha=0.25, linewidth=0, label="±1 std")
        axis.plot(_TARGETS, mean, color=_BLUE, label="mean")
        axis.set_xticks([-1, -0.5, 0, 0.5, 1])
        axis.set(title=title, xlabel="target (largest weight = 1)", ylabel="error (largest weight = 1)")
        axis.margins(y=0.15)
        axis.legend(frameon=False, loc="upper center", ncols=2)
        if not usual.all():
            text = f"not drawn: {np.count_nonzero(~usual)} of {usual.size} off by more than {_HUGE:g}"
            axis.annotate(text, (0.02, 0.02), xycoords="axes fraction", color=_GREY)
        if per_weight:
            other = axis.secondary_yaxis("right", functions=(lambda w: w * per_weight, lambda us: us / per_weight))
            other.set_ylabel("microsiemens")
            other.spines["right"].set_visible(True)

    return draw


def _drift_panel(profile: Profile) -> _Panel | str:
    if profile.drift.model == "none":
        return "it does not drift"
    compensation = getattr(profile.drift, "compensation", "none")
    curves = {"without compensation": (_ORANGE, *_over_time(load_profile(profile, {"drift.compensation": "none"})))}
    if compensation != "none":
        curves[f"compensation {compensation}"] = (_BLUE, *_over_time(profile))
    now_s = profile.entries()["drift.time_s"]

    def draw(axis: Any) -> None:
        axis.axhline(1, color=_GREY, linewidth=0.8)
        for label, (color, mean, std) in curves.items():
            axis.fill_between(_TIMES_S, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
            axis.plot(_TIMES_S, mean, color=color, label=f"{label}, ±1 std")
        if _TIMES_S[0] <= now_s <= _TIMES_S[-1]:
            axis.axvline(now_s, color=_GREY, linewidth=0.8, linestyle=":")
            axis.annotate(
                " profile", (now_s, 0.99), xycoords=("data", "axes fraction"), color=_GREY, va="top", fontsize=8
            )
        axis.set_xscale("log")
        axis.set_xticks([1, 60, 3600, 86400, 30 * 86400, 365 * 86400], ["1 s", "1 min", "1 h", "1 d", "30 d", "1 y"])
        axis.minorticks_off()
        axis.set(
            title=f"Weight of {_DRIFTING:g} over time", xlabel="time since programming", ylabel="stored weight / target"
        )
        axis.legend(frameon=False, loc="best")

    return draw


def _transfer_panel(profile: Profile) -> _Panel | str:
    if profile.dac.model == "none" and profile.adc.model == "none":
        return "it has no converters"
    exact, read = transfer_curve(profile)

    def draw(axis: Any) -> None:
        limit = float(np.abs(exact).max())
        axis.plot([-limit, limit], [-limit, limit], color=_GREY, linewidth=0.8, label="exact")
        axis.plot(exact, read, ".", color=_BLUE, markersize=3, label="read")
        axis.set(title="A tile behind its converters", xlabel="exact output", ylabel="output")
        axis.legend(frameon=False, loc="upper left")
        text = f"{_rows_of_tile(profile)} rows, exact devices; (largest weight) x (largest input) = 1"
        axis.annotate(text, (0.98, 0.02), xycoords="axes fraction", color=_GREY, ha="right", fontsize=7)

    return draw


def stored_weights(profile: Profile, time_s: float | None = None) -> NDArray[np.float64]:
    """What devices of eight chips hold of targets from -1 to 1, at another time than the profile's if one is given.

    Returns:
        Weights [targets, devices], in units of the largest.
    """
    time = {} if time_s is None else {"drift.time_s": float(time_s)}
    profile = load_profile(profile, {**_ONE_ARRAY, **_without_network(profile), **time})
    targets = _targets_of_chip()
    return _of_chips(
        lambda seed: stored_weight(
            targets, *_controls(profile), np.zeros((0, 2), np.int64), seed, seed, **_node(profile, STORED)
        )
    )


def written_operands(profile: Profile) -> NDArray[np.float64]:
    """What arrays hold of targets from -1 to 1 that are written at run time: weights [targets, devices]."""
    offset = {"mapping.offset_correction": "digital"} if profile.mapping.encoding == "offset" else {}
    profile = load_profile(profile, {**_ONE_ARRAY, **_NO_READING, **offset})
    targets = _targets_of_chip()
    rows = np.eye(len(_TARGETS), dtype=np.float32)
    ranges = np.array([[1, -1, 1, 1]], np.float32)
    return _of_chips(
        lambda seed: crossbar_matmul_dynamic(
            rows[None], targets[None], *_controls(profile), ranges, seed, seed, _ZERO, **_node(profile, DYNAMIC)
        )[0]
    )


def transfer_curve(profile: Profile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outputs of a tile of exact devices for inputs that sweep its output: exact and as read, [inputs] each.

    The largest weight and the largest input are 1. A calibrated range is that of the sweep.
    """
    rows = _rows_of_tile(profile)
    profile = load_profile(profile, {**_EXACT_DEVICES, **_ONE_ARRAY, **_without_network(profile)})
    draw = np.random.default_rng(0)
    weights = draw.uniform(-1, 1, (rows, _COLUMNS))
    magnitudes = draw.uniform(0, 1, rows)
    weights[0, 0], weights[0, 1:], magnitudes[0] = 0, 1, 1  # the largest, without a part in column 0
    # From one end of the sweep to the other, one input after another turns to the sign of its weight in column 0.
    sizes = np.abs(weights[:, 0]) * magnitudes
    furthest = min(float(sizes.sum()), 1.5 * getattr(profile.adc, "bound", np.inf))
    wanted = (sizes.sum() + np.linspace(-furthest, furthest, _SWEEP)) / 2
    before = np.cumsum(sizes) - sizes
    turned = np.clip((wanted[:, None] - before) / np.where(sizes > 0, sizes, 1), 0, 1)
    inputs = (2 * turned - 1) * np.sign(weights[:, 0]) * magnitudes
    inputs[:, 0] = 1
    largest = getattr(profile.dac, "max", None) or min(1.0, getattr(profile.dac, "limit", None) or 1.0)
    x, w = (inputs * largest).astype(np.float32), weights.astype(np.float32)
    exact = x.astype(np.float64) @ w / largest
    bound = np.abs(exact).max()
    ranges = np.array([[largest, -bound, bound, 1]], np.float32)
    y = crossbar_matmul(
        x, w, *_controls(profile), ranges, np.zeros((0, 2), np.int64), _ZERO, _ZERO, _ZERO, **_node(profile, STORED)
    )
    return exact[:, 0], y[:, 0].astype(np.float64) / largest


_ZERO = np.int64(0)


def _without_network(profile: Profile) -> dict[str, Any]:
    """Leaves out the wires of an array, whose effect is of the place in it and not of the devices."""
    return {"read.wires": "none"} if profile.read.wires == "network" else {}


def _targets_of_chip() -> NDArray[np.float32]:
    """Targets of one chip [targets, devices]: spread evenly around each of 81, so that levels show as errors too."""
    step = (_TARGETS[1] - _TARGETS[0]) * ((np.arange(_DEVICES) + 0.5) / _DEVICES - 0.5)
    targets = _TARGETS[:, None] + step
    targets[0], targets[-1] = -1, 1
    return np.asarray(targets, np.float32)


def _targets() -> NDArray[np.float64]:
    return np.tile(_targets_of_chip(), _CHIPS).astype(np.float64)


def _of_chips(one: Callable[[Any], NDArray[np.float32]]) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):  # flipped bits of floating-point numbers may be infinite or no numbers
        return np.concatenate([one(np.int64(seed)) for seed in range(_CHIPS)], axis=1).astype(np.float64)


def _controls(profile: Profile) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.array(list(profile.entries().values()), np.float32), np.ones(1, np.float32)


def _node(profile: Profile, op: str) -> dict[str, Any]:
    """The attributes of the only node of a model."""
    node = plain(op)
    return node | {name: value for name, value in profile.structure().items() if name in node}


def _over_time(profile: Profile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of one weight over devices, in units of its target, at each time."""
    row = int(np.argmin(np.abs(_TARGETS - _DRIFTING)))
    stored = [stored_weights(profile, time_s)[row] / _targets()[row] for time_s in _TIMES_S]
    return np.array([each.mean() for each in stored]), np.array([each.std() for each in stored])


def _rows_of_tile(profile: Profile) -> int:
    return min(profile.mapping.tile_rows or _ROWS, _ROWS)


def _range_us(profile: Profile) -> float:
    entries = profile.entries()
    return entries["mapping.g_max_us"] - entries["mapping.g_min_us"]


def duration(seconds: float) -> str:
    """A time as people say it, such as `1 h`."""
    for unit, length in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
