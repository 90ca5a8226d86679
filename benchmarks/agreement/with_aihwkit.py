"""emu against aihwkit: noise models of devices, the analog product of its torch tile and of its compiled tile.

What is compared is named after aihwkit's classes. Weights are W^T here; a tile's resolution `r` is `1 / r` steps.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from aihwkit.inference import (
    GlobalDriftCompensation,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
    StateIndependentNoiseModel,
)
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles.analog_mvm import AnalogMVM

from benchmarks.agreement.one_crossbar import Crossbar, law_of
from benchmarks.agreement.results import Result, samples, values

TARGETS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)
DRAWS = 65536
DAY = 86400.0


def compare(crossbar: Crossbar) -> Iterator[Result]:
    """Compare everything."""
    torch.manual_seed(0)
    yield from _noise_models(crossbar)
    yield from _products(crossbar)
    yield from _noisy_products(crossbar)
    yield _compensation(crossbar)


def _noise_models(crossbar: Crossbar) -> Iterator[Result]:
    models = [
        # name, model, largest conductance, preset
        ("PCMLikeNoiseModel", PCMLikeNoiseModel(), 25.0, "pcm"),
        ("HermesNoiseModel, two devices", HermesNoiseModel(num_devices=2), 20.7, "pcm_hermes"),
        ("HermesNoiseModel, one device", HermesNoiseModel(num_devices=1), 10.35, "pcm_hermes_single"),
        ("StateIndependentNoiseModel", StateIndependentNoiseModel(), 25.0, "pcm_state_independent"),
    ]
    w = np.tile(np.repeat(np.float32(TARGETS), 64), (DRAWS // 64, 1))
    w[1::2] *= -1  # both signs: the two devices of a pair change places
    sign = np.ones(w.shape, np.float32)
    sign[1::2] = -1

    def by_target(held: Any) -> Any:
        return (np.asarray(held) * sign).reshape(len(w), len(TARGETS), -1).transpose(1, 0, 2).reshape(len(TARGETS), -1)

    for name, model, g_max_us, preset in models:
        pair = {"mapping.g_min_us": 0.0, "mapping.g_max_us": g_max_us, **law_of(preset, "program")}
        settings: dict[str, Any] = {"encoding": "differential", "program": "polynomial"}
        programmed, exponents = model.apply_programming_noise(torch.from_numpy(w))
        ours = crossbar.faulty_weight(w, numbers=pair, **settings)
        yield samples("aihwkit", f"{name}: programmed", by_target(ours), by_target(programmed))
        for label, time_s in (("1 s", 1.0), ("1 day", DAY), ("1 year", 365 * DAY)):
            theirs = model.apply_drift_noise(programmed, exponents, time_s)
            drifting = {**pair, **law_of(preset, time_s=time_s)}
            ours = crossbar.faulty_weight(w, drift="power_law_fit", drift_pairs="net", numbers=drifting, **settings)
            yield samples("aihwkit", f"{name}: after {label}", by_target(ours), by_target(theirs))

    wan = ReRamWan2022NoiseModel(g_max=40.0)
    for label, time_s in (("1 s", 1.0), ("1 day", DAY), ("2 days", 2 * DAY)):
        numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 40.0, **law_of("rram_wan", "program", time_s=time_s)}
        ours = crossbar.faulty_weight(w, encoding="differential", program="polynomial", numbers=numbers)
        theirs = wan.apply_noise(torch.from_numpy(w), time_s)
        yield samples("aihwkit", f"ReRamWan2022NoiseModel: after {label}", by_target(ours), by_target(theirs))

    cmo = ReRamCMONoiseModel(acceptance_range=2)
    single = {"mapping.g_min_us": 9.0, "mapping.g_max_us": 88.199997, **law_of("rram_cmo", "program")}
    plain = w * sign
    plain[0] = -1  # one device for each weight: the lowest weight is g_min
    for label, time_s in (("1 s", 1.0), ("1 hour", 3600.0), ("1 day", DAY)):
        theirs = cmo.apply_noise(torch.from_numpy(plain), time_s).numpy()
        ours = crossbar.faulty_weight(
            plain, encoding="offset", program="polynomial", program_clip="range", drift="log_time",
            numbers={**single, **law_of("rram_cmo", time_s=time_s)},
        )  # fmt: skip
        split = [held[2:].reshape(len(w) - 2, len(TARGETS), -1).transpose(1, 0, 2) for held in (ours, theirs)]
        # Not the target g_max: aihwkit clips to the range once, at the end, emu also what was programmed.
        ours_by_target, theirs_by_target = (part.reshape(len(TARGETS), -1)[1:] for part in split)
        yield samples("aihwkit", f"ReRamCMONoiseModel: after {label}", ours_by_target, theirs_by_target)


def _io(**changes: Any) -> IOParameters:
    """Return forward parameters without noise."""
    return IOParameters(**{"inp_noise": 0.0, "out_noise": 0.0, "w_noise": 0.0, **changes})


def _numbers(dac_steps: int, adc_steps: int, adc_bound: float) -> dict[str, float]:
    return {
        "dac.bits": 0, "dac.steps": dac_steps, "dac.bound": 1.0, "adc.bits": 0, "adc.steps": adc_steps,
        "adc.bound": adc_bound, "adc.max_bound_factor": 1000.0, "adc.max_bound_resolution": 0.25,
    }  # fmt: skip


CONVERTERS = {
    # name: steps of DAC and ADC, bound of the ADC
    "7 and 9 bits, bound 12": (126, 510, 12.0),
    "8 and 8 bits, bound 10": (254, 254, 10.0),
    "256 and 256 steps, bound 2": (256, 256, 2.0),
}


def _compiled_layer(w: Any, forward: IOParameters, **changes: Any) -> Any:
    """Return a layer of aihwkit's compiled inference tiles whose weights are w [K, N]."""
    config = InferenceRPUConfig(forward=forward)
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.digital_bias = True
    config.mapping.weight_scaling_columnwise = changes.pop("per_column", False)
    config.mapping.max_input_size = changes.pop("tile_rows", 512)
    config.mapping.max_output_size = changes.pop("tile_columns", 512)
    config.drift_compensation = changes.pop("drift_compensation", None)
    config.noise_model = changes.pop("noise_model", config.noise_model)
    layer = AnalogLinear(w.shape[0], w.shape[1], bias=False, rpu_config=config)
    layer.set_weights(torch.from_numpy(np.ascontiguousarray(w.T)), None)
    return layer.eval()


def _output(layer: Any, x: Any) -> Any:
    with torch.no_grad():
        return layer(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()


def _products(crossbar: Crossbar) -> Iterator[Result]:
    random = np.random.default_rng(0)
    w = random.uniform(-1, 1, (96, 40)).astype(np.float32)
    w[0, 0] = 1
    x = random.standard_normal((64, 96)).astype(np.float32)
    for name, (dac_steps, adc_steps, bound) in CONVERTERS.items():
        forward = {"inp_res": 1 / dac_steps, "out_res": 1 / adc_steps, "out_bound": bound}
        numbers = _numbers(dac_steps, adc_steps, bound)
        for management in ("none", "iterative"):
            io = _io(bound_management=BoundManagementType[management.upper()], **forward)
            ours = crossbar.stored(x, w, dac="absmax", adc="fixed", bound_management=management, numbers=numbers)
            step = 2 * bound / adc_steps * float(np.abs(x).max(axis=1).min())
            # The torch tile manages bounds over a whole batch: one vector at a time.
            torch_tile = torch.cat([
                AnalogMVM.matmul(torch.from_numpy(w.T.copy()), torch.from_numpy(vector[None]), io, is_test=True)
                for vector in x
            ])  # fmt: skip
            what = f"{name}, bound management {management}"
            yield values("aihwkit", f"AnalogMVM: {what}", ours, torch_tile, step)
            yield values("aihwkit", f"inference tile: {what}", ours, _output(_compiled_layer(w, io), x), step)

    io = _io(inp_res=1 / 126, out_res=1 / 510, out_bound=3.0, bound_management=BoundManagementType.NONE)
    for name, scaling, per_column in (("tile", "tile", False), ("column of a tile", "tile_column", True)):
        ours = crossbar.stored(
            x, w, dac="absmax", adc="fixed", scaling=scaling, tile_rows=40, tile_columns=16, tile_split="balanced",
            numbers=_numbers(126, 510, 3.0),
        )  # fmt: skip
        layer = _compiled_layer(w, io, per_column=per_column, tile_rows=40, tile_columns=16)
        step = 2 * 3.0 / 510 * float(np.abs(x.reshape(64, 3, 32)).max(axis=2).min()) * float(np.abs(w).max(0).min())
        yield values(
            "aihwkit", f"inference tile: tiles of 32 x 14, scale per {name}", ours, _output(layer, x), 0.9 * step
        )

    ratio = IOParameters().ir_drop_g_ratio
    io = _io(inp_res=-1, out_res=-1, out_bound=0.0, ir_drop=1.0, bound_management=BoundManagementType.NONE)
    io.noise_management = NoiseManagementType.NONE
    io.inp_bound = 0.0
    positive = np.abs(w)
    numbers = {"read.ir_drop": 1.0, "read.ir_drop_ratio": ratio}
    inputs = np.clip(x, -1, 1)
    ours = crossbar.stored(inputs, positive, ir_drop="formula", numbers=numbers)
    yield values("aihwkit", "inference tile: IR drop", ours, _output(_compiled_layer(positive, io), inputs))


def _noisy_products(crossbar: Crossbar) -> Iterator[Result]:
    random = np.random.default_rng(1)
    w = np.tile(random.uniform(-1, 1, (64, 1)), (1, 64)).astype(np.float32)
    w[:, 1:] *= np.linspace(0.1, 1, 63)
    w /= np.abs(w).max()
    vectors = random.standard_normal((4, 64)).astype(np.float32)
    x = np.repeat(vectors, 2048, axis=0)
    cases = [
        ("output noise", {"out_noise": 0.06}, {"read.output_noise": 0.06}, "none"),
        (
            "weight noise ADDITIVE_CONSTANT",
            {"w_noise": 0.02, "w_noise_type": WeightNoiseType.ADDITIVE_CONSTANT},
            {"read.weight_noise": 0.02},
            "additive_constant",
        ),
        (
            "weight noise PCM_READ",
            {"w_noise": 0.0175, "w_noise_type": WeightNoiseType.PCM_READ},
            {"read.weight_noise": 0.0175},
            "pcm_read",
        ),
        ("input noise", {"inp_noise": 0.05}, {"read.input_noise": 0.05}, "none"),
    ]
    for name, forward, numbers, read_noise in cases:
        io = _io(inp_res=-1, out_res=-1, out_bound=1000.0, bound_management=BoundManagementType.NONE, **forward)
        dac = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1.0}
        ours = crossbar.stored(x, w, dac="absmax", read_noise=read_noise, numbers={**dac, **numbers})
        theirs = _output(_compiled_layer(w, io), x)
        split = [y.reshape(4, 2048, 8, 8).transpose(0, 2, 1, 3) for y in (ours - x @ w, theirs - x @ w)]
        ours_by_group, theirs_by_group = (part.reshape(32, -1) for part in split)
        if name == "input noise":  # one number for all columns of a product: a column is its own sample
            ours_by_group, theirs_by_group = ((y - x @ w)[:, ::8].reshape(4, 2048, 8) for y in (ours, theirs))
            ours_by_group = ours_by_group.transpose(0, 2, 1).reshape(32, -1)
            theirs_by_group = theirs_by_group.transpose(0, 2, 1).reshape(32, -1)
        yield samples("aihwkit", f"inference tile: {name}", ours_by_group, theirs_by_group)


def _compensation(crossbar: Crossbar) -> Result:
    """Compare the factor of global drift compensation over chips, read with output noise."""
    chips = 2000
    w = np.random.default_rng(2).uniform(-1, 1, (24, 24)).astype(np.float32)
    w[0, 0] = 1
    forward = _io(
        inp_res=-1, out_res=-1, out_bound=1000.0, out_noise=0.04, bound_management=BoundManagementType.NONE
    )  # fmt: skip
    layer = _compiled_layer(
        w, forward, noise_model=PCMLikeNoiseModel(), drift_compensation=GlobalDriftCompensation()
    )  # fmt: skip
    (tile,) = layer.analog_tiles()
    theirs = []
    for _ in range(chips):
        layer.program_analog_weights()
        layer.drift_analog_weights(DAY)
        theirs.append(float(tile.alpha))
    numbers = {
        "mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0, **law_of("pcm", "program"), **law_of("pcm", time_s=DAY),
        "read.output_noise": 0.04,
    }  # fmt: skip
    settings: dict[str, Any] = {"encoding": "differential", "program": "polynomial", "drift": "power_law_fit"}
    settings |= {"drift_pairs": "net", "numbers": numbers}
    ours = []
    for seed in range(chips):
        compensated = crossbar.faulty_weight(w, compensation="global", seed=seed, **settings)
        drifted = crossbar.faulty_weight(w, seed=seed, **settings)
        ours.append(float(compensated[0, 0] / drifted[0, 0]))
    return samples("aihwkit", "GlobalDriftCompensation: factor after 1 day, over chips", [ours], [theirs])
