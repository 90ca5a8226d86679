"""From measured conductances to a device: which law of programming and drift fits them, and how well.

Errors of programming are taken as normal around the target, with a standard deviation that the law gives; readings at a
limit (0, or the ends of the range) count as beyond it, so that clipping biases nothing. Laws are compared by the
Bayesian information criterion. Drift is fitted to the moments of what each device does after its first reading.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emu.device.fields import DURATION, to_seconds
from emu.device.loading import load_profile
from emu.device.measured import read_regular
from emu.device.profile import Profile
from emu.errors import InputError
from emu.libraries import library

Clip = Literal["zero", "range", "none"]
LAWS = ("auto", "polynomial", "normal_proportional", "lognormal_g", "table")

_Values = NDArray[np.float64]
_LARGEST_BYTES = 512_000_000
_HIGHEST_POWER = 4
_HELD_OUT = 5  # one device in so many
_FEWEST_ROWS = 20
_FEWEST_AT_A_LEVEL = 8  # readings, for a mean and a standard deviation of their own
_BINS = 20  # of targets that are all different
_INSIDE = 1.959964  # standard deviations on each side of 95 % of a normal
_FAR = 3.5  # standard deviations: limits farther away clip next to nothing
_LEAST_SHARE = 0.02  # of the largest target: below, ratios say nothing about drift
_UNLIKELY = 0.01


@dataclass(frozen=True)
class Measurements:
    """Readings of devices, one row each.

    target_us: what was to be programmed, microsiemens, float64 [rows].
    measured_us: what was read, likewise.
    time_s: since programming, float64 [rows].
    device: which device, int64 [rows]; None: no row is known to be of the same device as another.
    """

    target_us: _Values
    measured_us: _Values
    time_s: _Values
    device: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Candidate:
    """A law of programming and how well it fits; `bic` is lower for better ones, `held_out` higher.

    held_out: mean logarithm of the density of rows that were not fitted.
    """

    law: str
    parameters: int
    bic: float
    held_out: float


@dataclass(frozen=True)
class Check:
    """Rows at one time that were held out, against the law fitted to the others.

    inside: share within the law's central 95 %. spread: root mean square of the errors in standard deviations of the
    law. worst: the target (microsiemens) whose measured standard deviation is off most, and by which factor.
    """

    time_s: float
    rows: int
    inside: float
    spread: float
    worst: tuple[float, float]

    @property
    def passed(self) -> bool:
        """Whether what is seen could be chance (99 %), or is within 5 % of what is said."""
        chance = 2.576 * math.sqrt(0.05 * 0.95 / self.rows)
        return abs(self.inside - 0.95) <= max(chance, 0.01) and abs(self.spread - 1) <= max(
            2.576 / math.sqrt(2 * self.rows), 0.05
        )


@dataclass(frozen=True)
class Fit:
    """A device that was fitted, and what is known about the fit.

    std_us: by time, targets [levels] and standard deviations of the law there and as measured.
    drift: by time, mean of the ratio to (or difference from) the first reading, as measured and as the law says.
    """

    profile: Profile
    candidates: list[Candidate]
    checks: list[Check]
    notes: list[str]
    std_us: dict[float, tuple[_Values, _Values, _Values]] = field(repr=False)
    drift_us: dict[float, tuple[_Values, _Values, _Values]] = field(repr=False)


def read_measurements(path: str | Path) -> Measurements:
    """Reads a CSV file of readings.

    Args:
        path: columns `target` and `measured` in microsiemens; `time` in seconds or as text such as `1h`, if at several
            times; `device`, any name, if devices were followed over time.

    Raises:
        InputError: the file cannot be read, a column is missing, or a cell is no number.
    """
    path = Path(path)
    lines = csv.reader(io.StringIO(read_regular(path, f"Table {path}", _LARGEST_BYTES), newline=""))
    header = [name.strip().lower() for name in next(lines, [])]
    for name in ("target", "measured"):
        if name not in header:
            raise InputError(
                f"Table {path} has no column '{name}': it needs target and measured, and may have time and device."
            )
    rows = [(number, line) for number, line in enumerate(lines, start=2) if any(cell.strip() for cell in line)]
    place = {name: header.index(name) for name in header}
    for number, line in rows:
        if len(line) != len(header):
            raise InputError(f"Table {path}, line {number}: {len(line)} cells, expected {len(header)} as in line 1.")

    def column(name: str, read: Callable[[str], float], expected: str) -> _Values:
        values = np.empty(len(rows))
        for index, (number, line) in enumerate(rows):
            cell = line[place[name]].strip()
            try:
                values[index] = read(cell)
            except ValueError:
                values[index] = math.nan
            if not math.isfinite(values[index]):
                raise InputError(f"Table {path}, line {number}: {name} is '{cell}' and must be {expected}.")
        return values

    target, measured = (column(name, float, "a finite number") for name in ("target", "measured"))
    time = column("time", to_seconds, DURATION) if "time" in place else np.zeros(len(rows))
    device = None
    if "device" in place:
        numbers: dict[str, int] = {}
        names = [line[place["device"]].strip() for _, line in rows]
        device = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    return Measurements(target, measured, time, device)


def fit_device(
    measurements: Measurements,
    name: str = "mine",
    law: str = "auto",
    clip: Clip | None = None,
    g_max_us: float | None = None,
    t0_s: float = 20.0,
    t_read_s: float = 250e-9,
    source: str = "",
) -> Fit:
    """Fits the laws of [program] and [drift] to readings.

    At one time: a law of programming. At several times without `device`: the same law with coefficients for each time
    (what the devices then are is drawn around the target, as after relaxation). With `device`: programming at the first
    time, and the law of drift that the later readings follow, `power_law_table` or `log_time`.

    Args:
        measurements: the readings.
        name: of the device.
        law: one of `LAWS`; `auto` takes the one with the lowest BIC, and a table if that does not fit.
        clip: where conductances end: at 0, at the ends of the range (smallest and largest target), or nowhere; found in
            the readings by default.
        g_max_us: largest conductance of the device; by default the largest target.
        t0_s: time that drift by a power of time is counted in; ((t + t0) / t0)^-nu.
        t_read_s: duration of a reading, for the growth of its noise with time.
        source: what to write into the profile.

    Raises:
        InputError: too few rows, targets that are not positive, readings without errors, an unknown law, a device that
            was programmed to two targets or lacks the first time, or scipy is not installed.
    """
    _refuse(measurements, law)
    times = np.unique(measurements.time_s)
    g_max = float(measurements.target_us.max()) if g_max_us is None else g_max_us
    if g_max < measurements.target_us.max():
        raise InputError(f"g_max_us is {g_max:g}, but targets reach {measurements.target_us.max():g} microsiemens.")
    followed = measurements.device is not None and len(times) > 1
    fitted_times = times[:1] if followed else times
    first = measurements.time_s == times[0]
    g_min = float(measurements.target_us.min())
    clip = clip or _clip_of(measurements.measured_us[first] if followed else measurements.measured_us, g_min, g_max)
    limits = {"zero": (0.0, math.inf), "range": (g_min, g_max), "none": (-math.inf, math.inf)}[clip]
    parts = [_rows_at(measurements, time) for time in fitted_times]
    train = [_Levels.of(target[~held], measured[~held], limits) for target, measured, held in parts]
    test = [_Levels.of(target[held], measured[held], limits) for target, measured, held in parts]
    whole = [_Levels.of(target, measured, limits) for target, measured, _ in parts]

    notes: list[str] = []
    candidates, chosen = _choose(law, whole, train, test, g_max, notes)
    laws = [chosen.fit(levels, g_max) for levels in whole]
    trial = [chosen.fit(levels, g_max) for levels in train]
    checks = [
        _check(time, target[held], measured[held], limits, fitted)
        for time, (target, measured, held), fitted in zip(fitted_times, parts, trial, strict=True)
        if held.any()
    ]
    std = {
        float(time): (*levels.measured_std(), fitted.std_us(levels.measured_std()[0]))
        for time, levels, fitted in zip(fitted_times, whole, laws, strict=True)
    }
    data: dict[str, Any] = {
        "name": name,
        "description": f"Fitted to {len(measurements.target_us)} readings of "
        f"{len(np.unique(measurements.target_us))} targets, {g_min:g} to {g_max:g} microsiemens.",
        "source": source,
        "mapping": {"encoding": "differential", "g_min_us": g_min, "g_max_us": g_max},
        "program": {**_settings(chosen, laws, fitted_times), "clip": clip},
    }
    drift_us: dict[float, tuple[_Values, _Values, _Values]] = {}
    if followed:
        drift = _Followed.of(measurements, times)
        found = [_power_law(drift, g_max, t0_s, t_read_s), _log_time(drift, t_read_s)]
        settings, drift_us, error = min(found, key=lambda one: one[2])
        data["drift"] = settings
        other = max(found, key=lambda one: one[2])
        notes.append(
            f"Drift by {settings['model']}: means are off by {error:.3g} microsiemens (root mean square), by "
            f"{other[0]['model']} {other[2]:.3g}. The device is read {settings['time_s']:g} s after programming, "
            "without compensation: choose drift.time_s and drift.compensation."
        )
    return Fit(load_profile(_rounded(data)), candidates, checks, notes, std, drift_us)


def _rounded(data: Any) -> Any:
    """Numbers as a reader wants them: readings are not known to 16 digits."""
    if isinstance(data, dict):
        return {name: _rounded(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_rounded(value) for value in data]
    return float(f"{data:.9g}") if isinstance(data, float) else data


@dataclass(frozen=True)
class _Levels:
    """Readings by target: what is needed of them, so that millions of rows are as quick as a few.

    Of errors within the limits: their number, sum and sum of squares; of readings at a limit: their number.
    """

    target_us: _Values
    count: _Values
    total: _Values
    squares: _Values
    logs: _Values  # sums of ln(measured / target), and of its square, and of ln(measured)
    log_squares: _Values
    log_measured: _Values
    at_low: _Values
    at_high: _Values
    limits: tuple[float, float]

    @classmethod
    def of(cls, target: _Values, measured: _Values, limits: tuple[float, float]) -> "_Levels":
        """Sorts readings by target."""
        levels, index = np.unique(target, return_inverse=True)

        def add(values: _Values | NDArray[np.bool_]) -> _Values:
            return np.bincount(index, weights=values, minlength=len(levels)).astype(np.float64)

        low, high = measured <= limits[0], measured >= limits[1]
        inside = ~low & ~high
        error = np.where(inside, measured - target, 0.0)
        positive = inside & (measured > 0) & (target > 0)
        ratio = np.log(np.where(positive, measured, 1.0)) - np.log(np.where(positive, target, 1.0))
        ratio = np.where(positive, ratio, 0.0)
        logs = np.log(np.where(positive, measured, 1.0))
        return cls(
            levels, add(inside), add(error), add(error**2), add(ratio), add(ratio**2), add(logs), add(low), add(high),
            limits,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        return int(self.count.sum() + self.at_low.sum() + self.at_high.sum())

    def measured_std(self) -> tuple[_Values, _Values]:
        """Targets and standard deviations around them; of targets that are all different, in bins of rows."""
        usable = (self.count > 0) & (self.at_low + self.at_high <= 0.02 * self.count)
        target, count, squares = self.target_us[usable], self.count[usable], self.squares[usable]
        if len(target) and np.median(count) < _FEWEST_AT_A_LEVEL:
            bins = np.array_split(np.arange(len(target)), max(1, min(_BINS, len(target) // _FEWEST_AT_A_LEVEL)))
            target, count, squares = (
                np.array([np.average(target[each], weights=count[each]) for each in bins]),
                np.array([count[each].sum() for each in bins]),
                np.array([squares[each].sum() for each in bins]),
            )
        return target, np.sqrt(squares / np.maximum(count, 1))

    def normal_log_likelihood(self, std_us: _Values, shift_us: float | _Values = 0.0) -> float:
        """Of normal errors with these standard deviations at each target, some of them beyond the limits."""
        normal = library("scipy.stats", "analysis").norm
        squares = self.squares - 2 * shift_us * self.total + self.count * np.square(shift_us)
        inside = -self.count * (np.log(std_us) + 0.5 * math.log(2 * math.pi)) - squares / (2 * std_us**2)
        mean = self.target_us + shift_us
        total = inside.sum()
        for number, z in (
            (self.at_low, (self.limits[0] - mean) / std_us),
            (self.at_high, (mean - self.limits[1]) / std_us),
        ):
            some = number > 0
            total += float((number[some] * normal.logcdf(z[some])).sum())
        return float(total)


@dataclass(frozen=True)
class _Law:
    """A law that was fitted: its settings, the standard deviation that it gives, and its log-likelihood of readings."""

    settings: dict[str, Any]
    std_us: Callable[[_Values], _Values]
    log_likelihood: Callable[[_Levels], float]
    standardized: Callable[[_Values, _Values], _Values]  # of targets and readings: standard normal, if the law holds


@dataclass(frozen=True)
class _Form:
    """A law that can be fitted."""

    name: str
    parameters: Callable[[_Levels], int]
    fit: Callable[[_Levels, float], _Law]


def _polynomial(highest: int, lowest: int = 0) -> _Form:
    """The standard deviation is a polynomial of the target."""
    powers = np.arange(lowest, highest + 1)
    name = "normal_proportional" if lowest else f"polynomial of degree {highest}"

    def fit(levels: _Levels, g_max: float) -> _Law:
        c = _maximum_likelihood(levels, (levels.target_us / g_max)[:, None] ** powers)

        def std_us(target: _Values) -> _Values:
            return (target / g_max)[:, None] ** powers @ c

        if lowest:
            settings: dict[str, Any] = {"model": "normal_proportional", "sigma": float(c[0] / g_max)}
        else:
            settings = {"model": "polynomial", **{f"c{power}": float(c[power]) for power in powers}}
            settings["reference_us"] = g_max
        return _Law(
            settings,
            std_us,
            lambda other: _where_positive(other, std_us(other.target_us)),
            lambda target, measured: (measured - target) / std_us(target),
        )

    return _Form(name, lambda levels: len(powers), fit)


def _where_positive(levels: _Levels, std_us: _Values) -> float:
    return levels.normal_log_likelihood(std_us) if bool(np.all(std_us > 0)) else -math.inf


def _maximum_likelihood(levels: _Levels, basis: _Values) -> _Values:
    """Coefficients of the standard deviation in the columns of a basis [levels, coefficients]."""
    optimize = library("scipy.optimize", "analysis")
    orthogonal, triangle = np.linalg.qr(basis * np.sqrt(np.maximum(levels.count, 1))[:, None])
    orthogonal = orthogonal / np.sqrt(np.maximum(levels.count, 1))[:, None]
    usual = math.sqrt(levels.squares.sum() / max(levels.count.sum(), 1))
    # Start at a constant, or at the line through the origin where the basis has no constant.
    start = np.linalg.lstsq(basis, np.full(len(basis), usual), rcond=None)[0]
    if np.any(basis @ start <= 0):
        start = np.eye(basis.shape[1])[0] * usual / basis[:, 0].mean()
    normal = library("scipy.stats", "analysis").norm

    def loss(c: _Values) -> tuple[float, _Values]:
        std = orthogonal @ c
        if np.any(std <= 1e-12 * usual):
            return math.inf, np.zeros_like(c)
        slope = -levels.count / std + levels.squares / std**3
        for number, distance in (
            (levels.at_low, levels.limits[0] - levels.target_us),
            (levels.at_high, levels.target_us - levels.limits[1]),
        ):
            some = number > 0
            z = distance[some] / std[some]
            slope[some] -= number[some] * np.exp(normal.logpdf(z) - normal.logcdf(z)) * z / std[some]
        rows = max(levels.rows, 1)
        return -levels.normal_log_likelihood(std) / rows, -(orthogonal.T @ slope) / rows

    # The scale of the orthogonal coefficients grows with the root of the number of rows.
    size = math.sqrt(max(levels.rows, 1)) * usual

    def scaled(c: _Values) -> tuple[float, _Values]:
        value, gradient = loss(c * size)
        return value, gradient * size

    found = optimize.minimize(
        scaled, triangle @ start / size, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 1000}
    )
    return np.asarray(np.linalg.solve(triangle, found.x * size))


def _fit_lognormal(levels: _Levels, g_max: float) -> _Law:
    """The logarithm of the ratio to the target is normal."""
    sigma = math.sqrt(levels.log_squares.sum() / max(levels.count.sum(), 1))

    def log_likelihood(other: _Levels) -> float:
        if bool(np.any(other.target_us <= 0)) or other.at_low.any() or not sigma > 0:
            return -math.inf
        total = -other.count * math.log(sigma * math.sqrt(2 * math.pi)) - other.log_squares / (2 * sigma**2)
        return float((total - other.log_measured).sum())

    spread = math.sqrt(math.exp(sigma**2) * (math.exp(sigma**2) - 1) + (math.exp(sigma**2 / 2) - 1) ** 2)
    return _Law(
        {"model": "lognormal_g", "sigma": sigma},
        lambda target: target * spread,
        log_likelihood,
        lambda target, measured: np.log(np.maximum(measured, 1e-300) / target) / sigma,
    )


def _fit_table(levels: _Levels, g_max: float) -> _Law:
    """Mean and standard deviation of each target, as they were measured."""
    enough = levels.count >= _FEWEST_AT_A_LEVEL
    if enough.sum() < 2:
        raise InputError(
            f"A table needs at least 2 targets with {_FEWEST_AT_A_LEVEL} readings each, and has {enough.sum()}: "
            "choose another law."
        )
    # Readings at a limit are part of what was measured, so they count as what was read.
    low, high = (np.where(np.isfinite(limit), limit, 0.0) for limit in levels.limits)
    at_low, at_high = low - levels.target_us, high - levels.target_us
    count = (levels.count + levels.at_low + levels.at_high)[enough]
    total = (levels.total + levels.at_low * at_low + levels.at_high * at_high)[enough]
    squares = (levels.squares + levels.at_low * at_low**2 + levels.at_high * at_high**2)[enough]
    target, shift = levels.target_us[enough], total / count
    std = np.sqrt(np.maximum(squares / count - shift**2, 1e-24))
    settings = {
        "model": "table",
        "target_us": target.tolist(),
        "mean_us": (target + shift).tolist(),
        "std_us": std.tolist(),
    }

    def around_target(at: _Values) -> _Values:
        """Root mean square of the error, as the other laws have it."""
        return np.interp(at, target, np.hypot(std, shift))

    def log_likelihood(other: _Levels) -> float:
        at = other.target_us
        return other.normal_log_likelihood(np.interp(at, target, std), np.interp(at, target, shift))

    def standardized(at: _Values, measured: _Values) -> _Values:
        return (measured - at - np.interp(at, target, shift)) / np.interp(at, target, std)

    return _Law(settings, around_target, log_likelihood, standardized)


_TABLE = _Form("table", lambda levels: 2 * int((levels.count >= _FEWEST_AT_A_LEVEL).sum()), _fit_table)
_FORMS = {
    "polynomial": [_polynomial(power) for power in range(_HIGHEST_POWER + 1)],
    "normal_proportional": [_polynomial(1, 1)],
    "lognormal_g": [_Form("lognormal_g", lambda levels: 1, _fit_lognormal)],
    "table": [_TABLE],
}


def _choose(
    law: str,
    whole: Sequence[_Levels],
    train: Sequence[_Levels],
    test: Sequence[_Levels],
    g_max: float,
    notes: list[str],
) -> tuple[list[Candidate], _Form]:
    """Returns the laws that were tried, the best first, and the best one."""
    several = [name for name in _FORMS if name != "table"] if law == "auto" else [law]
    forms = [form for name in several for form in _FORMS[name] if _can_be(form, whole, g_max)]
    if not forms:
        raise InputError(
            f"The readings cannot be fitted by the law {law}: it needs more targets, targets above 0, or a single time."
        )
    tried: list[tuple[Candidate, _Form]] = []
    for form in forms:
        likelihood = sum(form.fit(levels, g_max).log_likelihood(levels) for levels in whole)
        parameters = sum(form.parameters(levels) for levels in whole)
        bic = parameters * math.log(sum(levels.rows for levels in whole)) - 2 * likelihood
        new = sum(form.fit(part, g_max).log_likelihood(other) for part, other in zip(train, test, strict=True))
        tried.append((Candidate(form.name, parameters, bic, new / max(1, sum(part.rows for part in test))), form))
    tried.sort(key=lambda one: one[0].bic)
    best = tried[0][1]
    if law == "auto" and (misfit := _misfit(best, whole, g_max)):
        table_possible = all((levels.count >= _FEWEST_AT_A_LEVEL).sum() >= 2 for levels in whole)
        notes.append(
            f"The best law, {best.name}, does not fit: {misfit}. "
            + ("A table of what was measured is written." if table_possible else "Look at the figure.")
        )
        best = _TABLE if table_possible else best
    return [candidate for candidate, _ in tried], best


def _can_be(form: _Form, whole: Sequence[_Levels], g_max: float) -> bool:
    wanted = form.parameters(whole[0])
    if min(len(levels.target_us) for levels in whole) < min(wanted, 2):
        return False
    if form.name.startswith("polynomial") and min(len(levels.target_us) for levels in whole) < wanted:
        return False
    if form.name == "table":
        return True
    if len(whole) > 1 and not form.name.startswith("polynomial"):
        return False  # the others have no coefficients by time
    if form.name in ("lognormal_g", "normal_proportional") and any(levels.target_us.min() <= 0 for levels in whole):
        return False
    return all(math.isfinite(form.fit(levels, g_max).log_likelihood(levels)) for levels in whole)


def _misfit(form: _Form, whole: Sequence[_Levels], g_max: float) -> str:
    """In what the readings differ from a law, more than chance would have it and by more than 5 %; else nothing."""
    chi2 = library("scipy.stats", "analysis").chi2
    for levels in whole:
        std = form.fit(levels, g_max).std_us(levels.target_us)
        full = (levels.count >= _FEWEST_AT_A_LEVEL) & (levels.at_low + levels.at_high == 0)
        if full.sum() < 2:
            continue
        count, law = levels.count[full], std[full]
        shift = levels.total[full] / count
        if form.name != "lognormal_g":
            unlikely = chi2.sf(float((count * (shift / law) ** 2).sum()), int(full.sum())) < _UNLIKELY
            if unlikely and np.sqrt(np.average((shift / law) ** 2, weights=count)) > 0.1:
                return "means differ from the targets"
        ratio = levels.squares[full] / count / law**2
        deviance = float((count * (ratio - 1 - np.log(np.maximum(ratio, 1e-12)))).sum())
        if (
            chi2.sf(deviance, int(full.sum())) < _UNLIKELY
            and np.average(np.abs(np.sqrt(ratio) - 1), weights=count) > 0.05
        ):
            return "standard deviations differ from it"
    return ""


def _settings(form: _Form, laws: Sequence[_Law], times: _Values) -> dict[str, Any]:
    """The settings of [program]; at several times, lists."""
    if len(laws) == 1:
        return dict(laws[0].settings)
    settings = dict(laws[0].settings)
    if form is _TABLE:
        if any(law.settings["target_us"] != settings["target_us"] for law in laws):
            raise InputError("A table at several times needs the same targets at every time.")
        settings |= {name: [law.settings[name] for law in laws] for name in ("mean_us", "std_us")}
        return settings | {"table_time_s": times.tolist(), "time_s": float(times[0])}
    settings |= {name: [law.settings[name] for law in laws] for name in settings if name[0] == "c"}
    return settings | {"fit_time_s": times.tolist(), "time_s": float(times[0])}


def _check(time: float, target: _Values, measured: _Values, limits: tuple[float, float], law: _Law) -> Check:
    """What the law of the other rows says of those that were held out; only where clipping takes no part."""
    z = law.standardized(target, measured)
    far = np.ones(len(target), bool)
    for limit in limits:
        if math.isfinite(limit):
            far &= np.abs(law.standardized(target, np.full_like(target, limit))) > _FAR
    z, target, measured = (values[far] if far.any() else values for values in (z, target, measured))
    at, std = _Levels.of(target, measured, (-math.inf, math.inf)).measured_std()
    factor = std / law.std_us(at)
    index = int(np.argmax(np.abs(np.log(np.maximum(factor, 1e-9)))))
    return Check(
        float(time),
        len(z),
        float(np.mean(np.abs(z) <= _INSIDE)),
        float(np.sqrt(np.mean(z**2))),
        (float(at[index]), float(factor[index])),
    )


@dataclass(frozen=True)
class _Followed:
    """Devices that were read at several times, by target.

    target_us: [levels]. first_us, later_us: lists of arrays [devices of the level], the latter by time.
    """

    times: _Values
    target_us: _Values
    first_us: list[_Values]
    later_us: list[list[_Values]]

    @classmethod
    def of(cls, measurements: Measurements, times: _Values) -> "_Followed":
        """Sorts readings by device and time."""
        assert measurements.device is not None
        devices, index = np.unique(measurements.device, return_inverse=True)
        grid = np.full((len(times), len(devices)), math.nan)
        grid[np.searchsorted(times, measurements.time_s), index] = measurements.measured_us
        target = np.full(len(devices), math.nan)
        target[index] = measurements.target_us
        if np.any(target[index] != measurements.target_us):
            raise InputError("A device has two targets: give each programming a device name of its own.")
        if np.any(np.isnan(grid[0])):
            raise InputError(f"A device was not read at {times[0]:g} s, the first time: leave it out.")
        levels = np.unique(target)
        if len(target) < _FEWEST_AT_A_LEVEL * len(levels):  # targets that are all different
            edges = np.quantile(target, np.linspace(0, 1, min(_BINS, len(target) // _FEWEST_AT_A_LEVEL) + 1))
            which = np.clip(np.searchsorted(edges, target, "right") - 1, 0, len(edges) - 2)
        else:
            which = np.searchsorted(levels, target)
        groups = [np.flatnonzero(which == one) for one in np.unique(which)]
        return cls(
            times,
            np.array([target[group].mean() for group in groups]),
            [grid[0, group] for group in groups],
            [[row[group] for group in groups] for row in grid[1:]],
        )


_Drift = tuple[dict[str, Any], dict[float, tuple[_Values, _Values, _Values]], float]


def _power_law(followed: _Followed, g_max: float, t0_s: float, t_read_s: float) -> _Drift:
    """Conductances fall as ((t + t0) / t0)^-nu, nu normal by target; the noise of a reading is in proportion."""
    times = followed.times
    elapsed = np.log((times[1:] + t0_s) / (times[0] + t0_s))
    growth = np.log((times[1:] + t0_s + t_read_s) / (2 * t_read_s))
    optimize = library("scipy.optimize", "analysis")
    target, means, spreads, noises = [], [], [], []
    for level, first in enumerate(followed.first_us):
        if followed.target_us[level] < _LEAST_SHARE * g_max:
            continue
        moments = []
        for later in followed.later_us:
            known = ~np.isnan(later[level]) & (first > 0)
            ratio = later[level][known] / first[known]
            moments.append((ratio.mean(), (ratio**2).mean()) if known.sum() > 1 else (math.nan, math.nan))
        one, two = np.array(moments).T
        known = np.isfinite(one) & (one > 0)
        if known.sum() < 1:
            continue
        # Of normal exponents and noise: E r = exp(-mu L + s^2 L^2 / 2), E r^2 = (E r)^2 exp(s^2 L^2) (1 + q^2 growth).
        excess = np.maximum(np.log(two[known]) - 2 * np.log(one[known]), 1e-12)
        length, noise_growth = elapsed[known], growth[known]
        variance, noise = float(np.mean(excess / length**2)), 0.0
        if len(length) > 1:
            for _ in range(20):  # ln(1 + q^2 growth) in proportion to q^2, as it is at the last q^2
                by_noise = np.log1p(noise * noise_growth) / noise if noise > 0 else noise_growth
                design = np.stack([length**2, by_noise], axis=1) / excess[:, None]
                (variance, noise), _ = optimize.nnls(design, np.ones(len(excess)))
        mu = -(np.log(one[known]) - variance * length**2 / 2) / length
        target.append(followed.target_us[level])
        means.append(float(np.average(mu, weights=length**2)))
        spreads.append(math.sqrt(variance))
        noises.append(math.sqrt(noise))
    settings: dict[str, Any] = {
        "model": "power_law_table",
        "target_us": [float(each) for each in target],
        "mean_nu": means,
        "std_nu": spreads,
        "t0_s": t0_s,
        "t_read_s": t_read_s,
        "time_s": float(times[-1]),
    }
    noisy = np.array(noises) > 0
    if noisy.sum() > 2:
        x, q = np.array(target)[noisy] / g_max, np.array(noises)[noisy]
        free = q < 0.9 * q.max()  # below the cap, if there is one
        free = free if free.sum() > 2 else np.ones_like(free)
        slope, offset = np.polyfit(np.log(x[free]), np.log(q[free]), 1)
        settings["read"] = {"q": float(np.exp(offset)), "power": float(max(0.0, -slope)), "cap": float(q.max())}
    if len(target) < 2:
        return settings, {}, math.inf

    def law(level: int, later: int, first: _Values) -> float:
        mu, s = (np.interp(followed.target_us[level], target, values) for values in (means, spreads))
        return float(first.mean() * np.exp(-mu * elapsed[later] + (s * elapsed[later]) ** 2 / 2))

    return (settings, *_compared(followed, law))


def _log_time(followed: _Followed, t_read_s: float) -> _Drift:
    """A shift and a spread that grow with ln t, the same at every conductance, and a reading noise by log10 G."""
    optimize = library("scipy.optimize", "analysis")
    first_time = float(followed.times[0])
    t0_s = first_time if first_time > 0 else 1.0
    rows = []
    for later, readings in enumerate(followed.later_us):
        elapsed = math.log(max(followed.times[later + 1], t0_s) / t0_s)
        growth = math.log((followed.times[later + 1] + t_read_s) / (2 * t_read_s))
        for level, first in enumerate(followed.first_us):
            known = ~np.isnan(readings[level])
            if known.sum() < 2:
                continue
            change = readings[level][known] - first[known]
            log_us = np.log10(max(float(readings[level][known].mean()), 1e-3))
            rows.append((known.sum(), elapsed, growth, log_us, change.mean(), change.var(ddof=1)))
    count, elapsed_all, growth_all, log_all, mean, variance = (np.array(each) for each in zip(*rows, strict=True))
    weight = count / np.maximum(variance, 1e-24)
    denominator = (weight * elapsed_all**2).sum()
    shift = float((weight * elapsed_all * mean).sum() / denominator) if denominator > 0 else 0.0

    def loss(root: _Values) -> float:
        spread, at_t0, read = root**2
        if first_time > 0:
            at_t0 = 0.0  # part of the first reading
        expected = (spread * elapsed_all + at_t0) ** 2 + read**2 * growth_all * log_all**2 + 1e-24
        return float((count * (np.log(expected) + variance / expected)).sum() / count.sum())

    usual = math.sqrt(float(np.average(variance, weights=count)))
    starts = [np.sqrt(np.array(each) * usual) for each in ((0.05, 0.5, 0.02), (0.01, 0.9, 0.1), (0.2, 0.1, 0.01))]
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 6000, "maxfev": 6000}
    found = min(
        (optimize.minimize(loss, start, method="Nelder-Mead", options=options) for start in starts), key=lambda f: f.fun
    )
    spread, at_t0, read = (float(each) for each in found.x**2)
    settings = {
        "model": "log_time",
        "t0_s": t0_s,
        "t_read_s": t_read_s,
        "shift_us": shift,
        "spread_us": spread,
        "spread_t0_us": 0.0 if first_time > 0 else at_t0,
        "read_us": read,
        "time_s": float(followed.times[-1]),
    }

    def law(level: int, later: int, first: _Values) -> float:
        return float(first.mean() + shift * math.log(max(followed.times[later + 1], t0_s) / t0_s))

    return (settings, *_compared(followed, law))


def _compared(
    followed: _Followed, law: Callable[[int, int, _Values], float]
) -> tuple[dict[float, tuple[_Values, _Values, _Values]], float]:
    """Means by target as measured and as a law says, by time, and the root mean square of their difference."""
    shown, errors = {}, []
    for later, readings in enumerate(followed.later_us):
        rows = []
        for level, first in enumerate(followed.first_us):
            known = ~np.isnan(readings[level])
            if known.any():
                rows.append((followed.target_us[level], readings[level][known].mean(), law(level, later, first[known])))
        target, measured, said = (np.array(each) for each in zip(*rows, strict=True))
        shown[float(followed.times[later + 1])] = target, measured, said
        errors += list(measured - said)
    return shown, float(np.sqrt(np.mean(np.square(errors))))


def _rows_at(measurements: Measurements, time: float) -> tuple[_Values, _Values, NDArray[np.bool_]]:
    """Targets and readings at a time, and which of them are held out: whole devices, one in five."""
    rows = np.flatnonzero(measurements.time_s == time)
    number = rows if measurements.device is None else measurements.device[rows]
    held = np.random.default_rng(0).permutation(int(number.max()) + 1)[number] % _HELD_OUT == 0
    return measurements.target_us[rows], measurements.measured_us[rows], held


def _clip_of(measured: _Values, g_min: float, g_max: float) -> Clip:
    """Where conductances end, as the readings look."""
    if measured.min() < 0:
        return "none"
    at_ends = np.mean((measured <= g_min) | (measured >= g_max))
    if measured.min() >= g_min and measured.max() <= g_max and at_ends > 0.001:
        return "range"
    return "zero"


def _refuse(measurements: Measurements, law: str) -> None:
    if law not in LAWS:
        raise InputError(f"There is no law '{law}': choose one of {', '.join(LAWS)}.")
    rows = len(measurements.target_us)
    if rows < _FEWEST_ROWS:
        raise InputError(f"There are {rows} readings: a fit needs at least {_FEWEST_ROWS}.")
    if measurements.target_us.min() < 0 or not measurements.target_us.max() > 0:
        raise InputError("Targets are conductances in microsiemens: none may be negative, and one must be positive.")
    if np.array_equal(measurements.target_us, measurements.measured_us):
        raise InputError("Every reading equals its target: there is nothing to fit.")
    for time in np.unique(measurements.time_s):
        at = measurements.target_us[measurements.time_s == time]
        if len(np.unique(at)) < 2:
            raise InputError(f"At {time:g} s there is one target: a device needs readings of at least 2.")
