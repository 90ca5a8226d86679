"""Devices from configurations of aihwkit and aihwkit-lightning that were written as JSON.

Only what acts at inference counts: a configuration's settings of training change no device. What acts and emu does not
model is named, field by field.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from emu.device.loading import load_profile
from emu.device.measured import read_regular
from emu.device.overrides import Overrides
from emu.device.profile import Profile
from emu.errors import InputError

_Data = dict[str, Any]

# Of aihwkit: what emu does not model, with the value at which it does nothing.
_NOT_MODELLED: dict[str, tuple[Any, str]] = {
    "forward.v_offset_std": (0, "offsets of the read voltage"),
    "forward.r_series": (0, "a resistance in series with a column"),
    "forward.w_read_asymmetry_dtod": (0, "weights that negative inputs see differently"),
    "forward.apply_xdep_pcm_read_noise": (False, "read noise that depends on the length of input pulses"),
    "mapping.digital_bias": (True, "biases that are stored on the crossbar"),
}
# Of aihwkit: what acts in training only, beside a setting that is read or refused, or on nothing at all.
_WITHOUT_EFFECT = (
    *("tile_class", "tile_array_class", "simulator_tile_class", "bindings_class", "bindings_module"),
    *("backward", "update", "clip", "remap", "runtime"),
    *("forward.v_offset_w_min", "forward.nm_decay"),  # of what is refused
    *("forward.ir_drop_rs", "forward.ir_drop_segments", "forward.ir_drop_time_step_resolution_scale"),
    *("forward.ir_drop_v_read", "forward.split_mode_bit_shift", "forward.xdep_pcm_read_noise_scale"),
    *("forward.adc_frequency", "forward.ir_drop_integration_sum"),
    *("mapping.weight_scaling_lr_compensation", "mapping.learn_out_scaling", "mapping.out_scaling_columnwise"),
    *("device.construction_seed", "device.diffusion", "device.lifetime", "device.reset_std"),  # of an ideal device
    *(
        f"pre_post.input_range.{name}"
        for name in (
            *("learn_input_range", "init_std_alpha", "decay", "input_min_percentage", "manage_output_clipping"),
            *("output_min_percentage", "gradient_scale", "gradient_relative", "calibration_info"),
        )
    ),
)
_LIGHTNING_WITHOUT_EFFECT = (
    *("forward.out_noise", "forward.out_noise_per_channel", "clip.sigma"),
    *("modifier.std_dev", "modifier.noise_type", "modifier.enable_during_test"),
    *(
        f"pre_post.input_range.{name}"
        for name in ("act_range_momentum", "learn_input_range", "init_std_alpha", "decay", "input_min_percentage")
    ),
)
# What only aihwkit-lightning's configuration has.
_OF_LIGHTNING = (
    *("forward.out_noise_per_channel", "modifier.noise_type", "modifier.quantization_type"),
    *("pre_post.input_range.dynamic", "pre_post.input_range.fast_mode"),
)
# What is not a table of fields: an object of one of several classes, and the class where it is left out.
_OBJECTS = {"noise_model": "PCMLikeNoiseModel", "drift_compensation": "GlobalDriftCompensation"}
_HERMES = {1: "pcm_hermes_single", 2: "pcm_hermes"}


def import_aihwkit(configuration: Any, overrides: Overrides | None = None) -> Profile:
    """Gives the device that a configuration of aihwkit 1 or aihwkit-lightning 2 describes at inference.

    Args:
        configuration: path of a JSON file, its content, or the configuration itself. JSON has the fields by name,
            enumerations as their names or values, and noise models, converters of conductances and compensations as
            their attributes beside the name of their class (`class`). Fields that are left out have the defaults of
            aihwkit's `InferenceRPUConfig`; a configuration is one of aihwkit-lightning if it has a field that aihwkit
            does not have.
        overrides: changes of the device, see `load_profile`. Devices with a noise model were programmed and are read 0
            seconds later, or at the first time of a fit, unless `drift.time_s` (`program.time_s`) says otherwise.

    Raises:
        InputError: the file is no such JSON, or it says what emu does not model: one line for each field.
    """
    name, where = "imported", "The configuration"
    if isinstance(configuration, str | Path):
        path = Path(configuration)
        name, where = path.stem, f"Configuration {path}"
        content = _read_json(path, where)
    else:
        content = json.loads(json.dumps(configuration, default=_described))
    if not isinstance(content, dict):
        raise InputError(f"{where} is not one: expected a JSON object with fields such as 'forward'.")
    fields = _Fields(content)
    device = _of_lightning(fields) if any(field in fields.values for field in _OF_LIGHTNING) else _of_aihwkit(fields)
    problems = [*fields.problems, *(f"field {field}: there is no such field" for field in fields.values)]
    if problems:
        lines = "".join(f"\n  {problem}." for problem in problems)
        raise InputError(f"{where} is not a device of emu:{lines}")
    sections = {section: settings for section, settings in device.items() if settings}
    return load_profile({"name": name, "source": "A configuration of aihwkit.", **sections}, overrides)


class _Fields:
    """The fields of a configuration, of which none is left when all were taken.

    Attributes:
        values: what was not taken yet, by path (`forward.inp_res`).
        problems: what emu does not model, one sentence each without its full stop.
    """

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.objects = {name: value for name, value in configuration.items() if name in _OBJECTS}
        self.values = dict(_leaves({key: value for key, value in configuration.items() if key not in _OBJECTS}))
        self.problems: list[str] = []

    def skip(self, names: tuple[str, ...]) -> None:
        """Takes fields that say nothing, each with all that is below it."""
        for path in list(self.values):
            if any(path == name or path.startswith(f"{name}.") for name in names):
                del self.values[path]

    def number(self, path: str, default: float) -> float:
        value = self.values.pop(path, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problems.append(f"field {path} = {_shown(value)}: expected a number")
            return default
        return value

    def truth(self, path: str, default: bool) -> bool:
        value = self.values.pop(path, default)
        if not isinstance(value, bool):
            self.problems.append(f"field {path} = {_shown(value)}: expected true or false")
            return default
        return value

    def word(self, path: str, default: str, known: tuple[str, ...]) -> str:
        """The name of an enumeration's value, of the known ones; the first of them for what emu does not model."""
        value = self.values.pop(path, default)
        for each in known:
            if _letters(value) == _letters(each):
                return each
        self.refuse(path, value, f"this, only {', '.join(known)}")
        return known[0]

    def refuse(self, path: str, value: Any, what: str) -> None:
        self.problems.append(f"field {path} = {_shown(value)}: emu does not model {what}")

    def steps(self, path: str, default: float) -> int:
        """The steps of a resolution that is given as their number or as its inverse; 0: not quantized."""
        resolution = self.number(path, default)
        if resolution <= 0:
            return 0
        steps = resolution if resolution > 1 else 1 / resolution
        if abs(steps - round(steps)) > 1e-5 * steps:
            self.refuse(path, resolution, "a number of steps that is not whole")
        return round(steps)


def _of_aihwkit(fields: _Fields) -> _Data:
    if "forward.ir_drop_segments" in fields.values and fields.values.get("forward.ir_drop", 1.0):
        fields.refuse("forward.ir_drop", fields.values.get("forward.ir_drop", 1.0), "IR drop in steps of time")
    if fields.values.get("forward.is_perfect") is True or _letters(fields.values.get("forward.mv_type")) == "ideal":
        fields.skip(("forward", "pre_post"))
        fields.values["forward.is_perfect"] = True
    fields.skip(_WITHOUT_EFFECT)
    for path, (neutral, what) in _NOT_MODELLED.items():
        value = fields.values.pop(path, neutral)
        if value != neutral:
            fields.refuse(path, value, what)
    if any(path.startswith("device.") for path in fields.values):
        fields.skip(("device",))
        fields.problems.append("field device: emu does not model devices that training pulses")

    omega = fields.number("mapping.weight_scaling_omega", 0.0)
    per_column = fields.truth("mapping.weight_scaling_columnwise", False) and omega > 0
    mapping: _Data = {
        "tile_rows": max(round(fields.number("mapping.max_input_size", 512)), 0),
        "tile_columns": max(round(fields.number("mapping.max_output_size", 512)), 0),
        "split": "balanced",
    }
    dac, adc, read = _aihwkit_product(fields, omega)
    device: _Data = {"mapping": mapping, "dac": dac, "adc": adc, "read": read, **_stored(fields, mapping)}
    program = device.setdefault("program", {})
    modifier = _modifier(fields, omega)
    if modifier:
        program.setdefault("model", "none")
        program["modifier"] = modifier
    in_units = [("adc.bound", adc), ("read.output_noise", read), ("read.weight_noise", read)]
    in_units += [("read.ir_drop", read), ("program.modifier", program)]
    settings = [setting for setting, section in in_units if setting.split(".")[1] in section]
    if omega <= 0 and settings:
        fields.refuse(
            "mapping.weight_scaling_omega", omega,
            f"tiles that hold weights unscaled ({', '.join(settings)}: in units of the largest weight)",
        )  # fmt: skip
    if dac or adc or read or program or "encoding" in mapping:
        mapping["scaling"] = "tile_column" if per_column else "tile"
    return device


def _aihwkit_product(fields: _Fields, omega: float) -> tuple[_Data, _Data, _Data]:
    """[dac], [adc] and [read]. Tiles hold omega for the largest weight, which is 1 in emu's units."""
    if fields.truth("forward.is_perfect", False):
        return {}, {}, {}
    passes = fields.word("forward.mv_type", "ONE_PASS", ("ONE_PASS", "IDEAL", "POS_NEG_SEPARATE"))
    unit = omega if omega > 0 else 1.0

    bound = fields.number("forward.inp_bound", 1.0)
    steps = fields.steps("forward.inp_res", 1 / 126)
    ranged = fields.values.get("pre_post.input_range.enable") is True
    managed = _letters(fields.values.get("forward.noise_management", "ABS_MAX")) != "none"
    worst = fields.number("forward.nm_assumed_wmax", 0.6), fields.number("forward.max_bm_res", 0.25)
    dac = _aihwkit_range(fields, bound, worst[0] / unit, worst[1])
    if bound <= 0 and steps:
        fields.refuse("forward.inp_bound", bound, "steps of a DAC without a bound")
    if bound > 0 and not dac:
        dac = {"range": "fixed", "max": 1.0}
    if dac:
        dac = {"model": "uniform", **dac, **_resolution(steps), "bound": bound if bound > 0 else 1.0}
    if fields.truth("forward.inp_sto_round", False) and dac and steps:
        dac["rounding"] = "stochastic"
    _where_converted(fields, "forward.inp_asymmetry", 0.0, dac, "asymmetry", "a DAC")

    adc: _Data = {}
    bound = fields.number("forward.out_bound", 12.0)
    steps = fields.steps("forward.out_res", 1 / 510)
    management = fields.word("forward.bound_management", "ITERATIVE", ("NONE", "ITERATIVE", "ITERATIVE_WORST_CASE"))
    most, (assumed, finest) = fields.number("forward.max_bm_factor", 1000), worst
    both_bounds = fields.truth("forward.bm_test_negative_bound", True)
    if 0 < bound < math.inf:
        adc = {"model": "uniform", "range": "fixed", **_resolution(steps), "bound": bound / unit}
        if management != "NONE":
            # The worst case is what a range by the sum begins with.
            worst_case = management == "ITERATIVE_WORST_CASE" and dac.get("range") != "absmax_sum"
            adc |= {"bound_management": "iterative", "max_bound_factor": most, "max_bound_resolution": finest}
            if worst_case:
                adc |= {"bound_management": "worst_case", "assumed_weight": assumed / unit}
            if worst_case and not managed:
                fields.refuse("forward.bound_management", management, "a worst case of inputs without a range")
            if ranged:
                fields.refuse(
                    "forward.bound_management", management,
                    "bound management behind an input range: inputs beyond it would come back when they are halved",
                )  # fmt: skip
            if not both_bounds:
                fields.refuse("forward.bm_test_negative_bound", False, "bound management of one bound")
    elif steps:
        fields.refuse("forward.out_bound", bound, "steps of an ADC without a bound")
    if dac.get("range") == "absmax_sum" and not adc:
        fields.refuse("forward.out_bound", bound, "ABS_MAX_NP_SUM without the bound of an ADC")
    if fields.truth("forward.out_sto_round", False) and adc and steps:
        adc["rounding"] = "stochastic"
    _where_converted(fields, "forward.out_scale", 1.0, adc, "scale", "an ADC")
    _where_converted(fields, "forward.out_asymmetry", 0.0, adc, "asymmetry", "an ADC")
    spread, slope = (fields.number(f"forward.{each}", 0.0) for each in ("out_nonlinearity_std", "slope_calibration"))
    if _where_converted(fields, "forward.out_nonlinearity", 0.0, adc, "nonlinearity", "the bound of an ADC"):
        more = {"nonlinearity_sigma": spread, "slope_calibration": slope}
        adc |= {name: value for name, value in more.items() if value > 0}
    if fields.truth("forward.adc_quantization", False):
        fields.refuse("forward.adc_quantization", True, "an ADC that counts the pulses of an oscillator")

    read: _Data = {}
    noise = fields.number("forward.out_noise", 0.06)
    varied = fields.number("forward.out_noise_std", 0.0)
    if noise > 0:
        read["output_noise"] = noise / unit
        if varied > 0:
            read["output_noise_spread"] = varied
    noise = fields.number("forward.inp_noise", 0.0)
    if noise > 0:
        read["input_noise"] = noise
    kind = fields.word("forward.w_noise_type", "NONE", ("NONE", "ADDITIVE_CONSTANT", "PCM_READ"))
    noise = fields.number("forward.w_noise", 0.0)
    if noise > 0 and kind != "NONE":
        share = math.sqrt(unit) if kind == "PCM_READ" else unit
        read |= {"weight_noise_model": kind.lower(), "weight_noise": noise / share}
    drop = fields.number("forward.ir_drop", 0.0)
    ratio = fields.number("forward.ir_drop_g_ratio", 1 / 0.35 / 5e-6)
    if drop > 0 and passes == "POS_NEG_SEPARATE":
        fields.refuse("forward.mv_type", passes, "this with IR drop, without which it is one pass")
    if drop > 0:
        read |= {"wires": "formula", "ir_drop": drop, "ir_drop_ratio": ratio / unit}
    return dac, adc, read


def _where_converted(fields: _Fields, path: str, neutral: float, converter: _Data, setting: str, what: str) -> bool:
    """Whether a field acts: then it becomes a setting of a converter, or is refused where there is none."""
    value = fields.number(path, neutral)
    if value == neutral:
        return False
    if converter:
        converter[setting] = value
    else:
        fields.refuse(path, value, f"this without {what}")
    return bool(converter)


def _aihwkit_range(fields: _Fields, bound: float, assumed_weight: float, resolution: float) -> _Data:
    """What an activation is divided by: noise management, behind an input range where there is one.

    The last two are of a range by the sum of inputs.
    """
    known = ("NONE", "ABS_MAX", "CONSTANT", "MAX", "ABS_MAX_NP_SUM")
    kind = fields.word("forward.noise_management", "ABS_MAX", known)
    threshold = fields.number("forward.nm_thres", 0.0)
    learned = _input_range(fields)
    if learned and bound > 1:
        fields.refuse("forward.inp_bound", bound, "a bound of the DAC beyond the input range")
    if kind == "NONE" or (kind == "CONSTANT" and threshold <= 0) or (kind == "CONSTANT" and learned and threshold == 1):
        return learned
    if learned.get("range") == "calibrated" or (kind == "CONSTANT" and learned and threshold > 1):
        fields.refuse("forward.noise_management", kind, "this behind an input range of that kind")
    if kind == "CONSTANT":
        return {"range": "fixed", "max": threshold * learned.get("max", 1.0)}
    limit = {"limit": threshold} if threshold > 0 else {}
    if kind in ("MAX", "ABS_MAX_NP_SUM"):
        if learned:
            fields.refuse("forward.noise_management", kind, "this behind an input range")
        if kind == "MAX":
            return {"range": "max", **limit}
        return {"range": "absmax_sum", "assumed_weight": assumed_weight, "sum_resolution": resolution, **limit}
    largest = learned.get("max", math.inf) * (min(threshold, 1.0) if learned and threshold > 0 else 1.0)
    if not learned and threshold > 0:
        largest = threshold
    return {"range": "absmax", **({"limit": largest} if largest < math.inf else {})}


def _input_range(fields: _Fields) -> _Data:
    """A static input range; one that is fitted to data is in no configuration, so it is calibrated here."""
    where = "pre_post.input_range."
    enabled = fields.truth(f"{where}enable", False)
    value = fields.number(f"{where}init_value", 3.0)
    fitted = fields.number(f"{where}init_from_data", 100) > 0
    if not enabled:
        return {}
    return {"range": "calibrated", "range_per": "tile"} if fitted else {"range": "fixed", "max": value}


def _modifier(fields: _Fields, omega: float) -> float | None:
    """The modifier of weights, where it acts at inference."""
    acts = fields.truth("modifier.enable_during_test", False)
    kind, drops = fields.values.get("modifier.type", "NONE"), fields.values.get("modifier.pdrop", 0.0)
    of_tile, assumed = fields.truth("modifier.rel_to_actual_wmax", True), fields.number("modifier.assumed_wmax", 1.0)
    sigma = fields.number("modifier.std_dev", 0.0)
    of_sample = fields.truth("modifier.per_batch_sample", False)
    fields.skip(("modifier",))
    if not acts:
        return None
    if drops:
        fields.refuse("modifier.pdrop", drops, "weights that are dropped at inference")
    if _letters(kind) == "none":
        return None
    if _letters(kind) != "addnormal" or of_sample:
        fields.refuse("modifier.type", kind, "this modifier at inference, only ADD_NORMAL, the same for all samples")
    return sigma if of_tile or omega <= 0 else sigma * assumed / omega


def _stored(fields: _Fields, mapping: _Data) -> _Data:
    """[program] and [drift] of a noise model, and the conductances in [mapping]."""
    content, compensation = (_with_class(fields.objects.get(name, name)) for name in _OBJECTS)
    device: _Data = {}
    if content is not None:
        kind = str(content.pop("class", "not given"))
        if kind in _NOISE_MODELS:
            noise = _Fields({})
            noise.values = {f"noise_model.{name}": value for name, value in content.items()}
            mapping |= _pair(noise)
            device = _NOISE_MODELS[kind](noise, mapping["g_max_us"])
            fields.problems += noise.problems
            fields.problems += [f"field {field}: there is no such field" for field in noise.values]
        else:
            hint = ": its weights are not symmetric (see preset rram_cmo)" if kind == "ReRamCMONoiseModel" else ""
            fields.refuse("noise_model.class", kind, f"this one, only {', '.join(_NOISE_MODELS)}{hint}")
    if compensation is None or not device:
        return device
    kind = str(compensation.get("class", "not given"))
    if kind not in _COMPENSATIONS:
        fields.refuse("drift_compensation.class", kind, f"this one, only {', '.join(_COMPENSATIONS)}")
    elif "drift" not in device:
        fields.refuse("drift_compensation.class", kind, "compensation of a device without a law of drift, only null")
    else:
        device["drift"]["compensation"] = _COMPENSATIONS[kind]
    return device


def _with_class(value: Any) -> _Data | None:
    """What an object is said to be: its attributes and its class, or the name of the class alone."""
    if isinstance(value, str):
        return {"class": _OBJECTS.get(value, value)}
    return value if value is None or isinstance(value, dict) else {"class": value}


def _pair(noise: _Fields) -> _Data:
    """The conductances of a pair of devices."""
    converter = noise.values.pop("noise_model.g_converter", None) or {}
    if not isinstance(converter, dict):
        converter = {"class": converter}
    g_max = noise.number("noise_model.g_max", _number_in(converter, "g_max", 25.0))
    kind = converter.get("class", "SinglePairConductanceConverter")
    if kind != "SinglePairConductanceConverter":
        noise.refuse("noise_model.g_converter.class", kind, "this one, only SinglePairConductanceConverter")
    for name in converter.keys() - {"class", "g_max", "g_min", "scale_ratio"}:
        if kind == "SinglePairConductanceConverter":
            noise.problems.append(f"field noise_model.g_converter.{name}: there is no such field")
    return {"encoding": "differential", "g_min_us": _number_in(converter, "g_min", 0.0), "g_max_us": g_max}


def _pcm(noise: _Fields, g_max: float) -> _Data:
    return _phase_change(noise, g_max, "pcm")


def _pcm_custom_drift(noise: _Fields, g_max: float) -> _Data:
    measured = noise.values.pop("noise_model.custom_drift_model", {})
    device = _phase_change(noise, g_max, "pcm")
    drift = device["drift"]
    del drift["nu"], drift["nu_sigma"]
    names = {"target_us": "g_lst", "mean_nu": "nu_mean_lst", "std_nu": "nu_std_lst"}
    drift |= {"model": "power_law_table", **{setting: measured.get(name, []) for setting, name in names.items()}}
    return device


def _hermes(noise: _Fields, g_max: float) -> _Data:
    devices = round(noise.number("noise_model.num_devices", 2))
    if devices not in _HERMES:
        noise.refuse("noise_model.num_devices", devices, "this many devices, only 1 or 2")
    return _phase_change(noise, g_max, _HERMES.get(devices, "pcm_hermes"))


def _phase_change(noise: _Fields, g_max: float, preset: str) -> _Data:
    """Programming, drift and reading of one family, with the constants of a preset where none are given."""
    known = load_profile(preset).model_dump(mode="json", exclude_unset=True)
    program, drift = known["program"], known["drift"]
    coefficients = noise.values.pop("noise_model.prog_coeff", None)
    reference = noise.values.pop("noise_model.prog_coeff_g_max_reference", None)
    if coefficients is not None:
        program = {"model": "polynomial", **_polynomial(noise, coefficients), "clip": "zero"}
        program["reference_us"] = g_max if reference is None else reference
    return {"program": program | _program_scale(noise), "drift": _times(noise, drift)}


def _state_independent(noise: _Fields, g_max: float) -> _Data:
    known = load_profile("pcm_state_independent").model_dump(mode="json", exclude_unset=True)
    coefficients = noise.values.pop("noise_model.prog_coeff", [0.2])
    program = {"model": "polynomial", **_polynomial(noise, coefficients), "reference_us": g_max, "clip": "zero"}
    drift = known["drift"] | {
        "nu": {"c0": noise.number("noise_model.drift_nu_mean", 0.1)},
        "nu_sigma": {"c0": noise.number("noise_model.drift_nu_std", 0.05)},
        "read": {"c0": 1 / g_max},  # in microsiemens, whatever g_max is
    }
    return {"program": program | _program_scale(noise), "drift": _times(noise, drift)}


def _wan(noise: _Fields, g_max: float) -> _Data:
    known = load_profile("rram_wan").model_dump(mode="json", exclude_unset=True)["program"]
    fits = noise.values.pop("noise_model.coeff_dic", None)
    noise.skip(("noise_model.prog_coeff_g_max_reference",))  # set there, and not read
    reference = noise.number("noise_model.coeff_g_max_reference", g_max)
    scale = noise.number("noise_model.noise_scale", 1.0)
    if fits is not None:
        by_time = sorted((float(time), coefficients) for time, coefficients in fits.items())
        polynomials = [_polynomial(noise, coefficients) for _, coefficients in by_time]
        names = sorted({name for each in polynomials for name in each})
        known = {"model": "polynomial", "fit_time_s": [time for time, _ in by_time], "clip": "zero"}
        known |= {name: [each.get(name, 0.0) for each in polynomials] for name in names}
    known |= {"time_s": known["fit_time_s"][0], "reference_us": reference, "scale": scale}
    return {"program": known}


def _polynomial(noise: _Fields, coefficients: Any) -> _Data:
    if not isinstance(coefficients, list | tuple) or not 1 <= len(coefficients) <= 5:
        noise.refuse("noise_model.prog_coeff", coefficients, "this polynomial, only one to five coefficients")
        return {}
    return {f"c{power}": value for power, value in enumerate(coefficients)}


def _program_scale(noise: _Fields) -> _Data:
    return {"scale": noise.number("noise_model.prog_noise_scale", 1.0)}


def _times(noise: _Fields, drift: _Data) -> _Data:
    return drift | {
        "t0_s": noise.number("noise_model.t_0", drift["t0_s"]),
        "t_read_s": noise.number("noise_model.t_read", drift["t_read_s"]),
        "scale": noise.number("noise_model.drift_scale", 1.0),
        "read_scale": noise.number("noise_model.read_noise_scale", 1.0),
        "time_s": 0.0,
        "pairs": "net",
        "compensation": "none",
    }


_NOISE_MODELS: dict[str, Callable[[_Fields, float], _Data]] = {
    "PCMLikeNoiseModel": _pcm,
    "CustomDriftPCMLikeNoiseModel": _pcm_custom_drift,
    "HermesNoiseModel": _hermes,
    "StateIndependentNoiseModel": _state_independent,
    "ReRamWan2022NoiseModel": _wan,
}
_COMPENSATIONS = {"GlobalDriftCompensation": "global", "PerColumnDriftCompensation": "column"}


def _of_lightning(fields: _Fields) -> _Data:
    fields.skip(_LIGHTNING_WITHOUT_EFFECT)
    fields.problems += [f"field {name}: there is no such field" for name in fields.objects]
    mapping: _Data = {"tile_rows": max(round(fields.number("mapping.max_input_size", -1)), 0), "split": "balanced"}

    fast = fields.truth("pre_post.input_range.fast_mode", False)
    dynamic = fields.truth("pre_post.input_range.dynamic", False) and not fast
    enabled = fields.values.get("pre_post.input_range.enable", False)
    dac = _input_range(fields)
    if dynamic and dac:
        dac = {"range": "absmax"}
    steps = fields.steps("forward.inp_res", -1)
    if steps and not enabled:
        fields.refuse("forward.inp_res", steps, "steps of a DAC without an input range")
    if steps % 2:
        fields.refuse("forward.inp_res", steps, "an odd number of steps, of which the last lies beyond the range")
    if dac:
        dac = {"model": "uniform", **dac, **_resolution(steps)}

    adc: _Data = {}
    bound, steps = fields.number("forward.out_bound", 0.0), fields.steps("forward.out_res", -1)
    if bound > 0 and not enabled:
        fields.refuse("forward.out_bound", bound, "the bound of an ADC without an input range")
    if bound > 0:
        adc = {"model": "uniform", "range": "fixed", **_resolution(steps), "bound": bound}
    elif steps:
        fields.refuse("forward.out_res", steps, "steps of an ADC without a bound")

    scales = {}
    clip = fields.word("clip.type", "NONE", ("NONE", "LAYER_GAUSSIAN", "LAYER_GAUSSIAN_PER_CHANNEL"))
    if adc:
        scales["clip.type"] = "tile_column" if clip.endswith("CHANNEL") else "tile"
    kinds = ("NONE", "DISCRETIZE", "DISCRETIZE_PER_CHANNEL")
    kind = fields.word("modifier.quantization_type", "NONE", kinds)
    fields.word("modifier.type", "NONE", ("NONE", "ADD_NORMAL", "ADD_NORMAL_PER_CHANNEL"))  # of version 1
    states = fields.steps("modifier.res", 0.0)
    if kind != "NONE":
        bits = (states + 2).bit_length() - 1
        if bits < 2 or states != 2**bits - 2:
            fields.refuse("modifier.res", states, "this number of weights, only 2^b - 2")
        mapping["weight_bits"] = bits
        scales["modifier.quantization_type"] = "tile_column" if kind.endswith("CHANNEL") else "tile"
    if len(set(scales.values())) > 1:
        fields.refuse("modifier.quantization_type", kind, "an ADC and weights that share different scales")
    if scales:
        mapping["scaling"] = next(iter(scales.values()))
    return {"mapping": mapping, "dac": dac, "adc": adc}


def _resolution(steps: int) -> _Data:
    return {"steps": steps} if steps else {"bits": 0}


def _read_json(path: Path, where: str) -> Any:
    try:
        return json.loads(read_regular(path, where))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}.") from None


def _described(value: Any) -> Any:
    """Plain data of what JSON does not know: enumerations by name, classes by name, objects by their attributes."""
    if isinstance(value, Enum):
        return value.name
    return value.__name__ if isinstance(value, type) else {"class": type(value).__name__, **vars(value)}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "class":
            yield f"{prefix}{key}", value


def _number_in(converter: Mapping[str, Any], name: str, default: float) -> float:
    value = converter.get(name)
    return default if value is None else value


def _letters(word: Any) -> str:
    """An enumeration's name or value, alone, as in `AbsMax`, `ABS_MAX` and `NoiseManagementType.ABS_MAX`."""
    return str(word).rsplit(".", 1)[-1].replace("_", "").lower()


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
