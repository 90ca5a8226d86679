"""emu against aihwkit's PyTorch tile, through the importer: a configuration, and the device that it becomes.

What is random is compared by its standard deviation. Exact products differ at ties between two codes only, for which
steps are chosen whose largest code can be halved (bound management), and a share of 1 % is left. The tile manages
bounds over a whole batch, so it is fed one vector at a time; what it does not have (IR drop, noise of weights) is
compared with the compiled tile by `benchmarks/agreement`.
"""

import enum
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement.one_crossbar import Crossbar
from emu.device import import_aihwkit
from emu.errors import InputError
from tests.peers.devices import output_of_device

torch = pytest.importorskip("torch")
pytest.importorskip("aihwkit")

from aihwkit.inference import (  # noqa: E402
    CustomDriftPCMLikeNoiseModel,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
    SinglePairConductanceConverter,
    StateIndependentNoiseModel,
)
from aihwkit.inference.noise.hermes import HermesNoiseModel  # noqa: E402
from aihwkit.nn import AnalogLinear  # noqa: E402
from aihwkit.simulator.configs import InferenceRPUConfig, SingleRPUConfig, TorchInferenceRPUConfig  # noqa: E402
from aihwkit.simulator.parameters.enums import (  # noqa: E402
    BoundManagementType,
    NoiseManagementType,
)
from aihwkit.simulator.presets import StandardHWATrainingPreset  # noqa: E402

ROWS, COLUMNS, VECTORS = 50, 24, 40


@pytest.fixture(scope="module")
def w() -> Any:
    """Weights [K, N] whose tiles and columns differ in size."""
    random = np.random.default_rng(0)
    scale = np.linspace(0.2, 1, COLUMNS) * np.linspace(1, 0.3, ROWS)[:, None]
    return (random.standard_normal((ROWS, COLUMNS)) * 0.3 * scale).astype(np.float32)


def as_json(config: Any) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return value.name
        return value.__name__ if isinstance(value, type) else {"class": type(value).__name__, **vars(value)}

    return json.loads(json.dumps(config, default=plain))


def quiet(**forward: Any) -> Any:
    """A configuration without noise and without devices."""
    config = TorchInferenceRPUConfig(noise_model=None, drift_compensation=None)
    config.mapping.weight_scaling_omega = 1.0
    for name, value in {"out_noise": 0.0, **forward}.items():
        setattr(config.forward, name, value)
    return config


def layer_of(w: Any, config: Any) -> Any:
    layer = AnalogLinear(w.shape[0], w.shape[1], bias=False, rpu_config=config)
    layer.set_weights(torch.from_numpy(np.ascontiguousarray(w.T)), None)
    return layer.eval()


def output_of(layer: Any, x: Any) -> Any:
    with torch.no_grad():
        return layer(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()


def drawn_configuration(draw: np.random.Generator) -> Any:
    def one_of(*choices: Any) -> Any:
        return choices[draw.integers(len(choices))]

    config = quiet(
        inp_res=one_of(-1, 64, 1 / 256),
        inp_bound=one_of(1.0, 1.0, 0.7),
        out_res=one_of(-1, 1 / 510, 256),
        out_bound=one_of(12.0, 3.0, 1.0),
        noise_management=one_of(*[NoiseManagementType[name] for name in ("ABS_MAX", "ABS_MAX", "CONSTANT", "NONE")]),
        nm_thres=one_of(0.0, 0.8, 1.0),
        bound_management=one_of(BoundManagementType.NONE, BoundManagementType.ITERATIVE),
        max_bm_res=one_of(0.25, 0.05),
    )
    if config.forward.bound_management is BoundManagementType.NONE:
        config.pre_post.input_range.enable = one_of(False, True)
    config.pre_post.input_range.init_value, config.pre_post.input_range.init_from_data = 2.0, 0
    config.mapping.max_input_size, config.mapping.max_output_size = one_of(512, 40, 20), one_of(512, 16)
    config.mapping.weight_scaling_omega = one_of(1.0, 0.5)
    config.mapping.weight_scaling_columnwise = one_of(False, True)
    return config


def test_random_configurations_give_the_same_through_the_importer(w: Any, crossbar: Crossbar) -> None:
    shares = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        config = drawn_configuration(draw)
        x = (draw.standard_normal((VECTORS, ROWS)) * (0.5, 1, 3)[seed % 3]).astype(np.float32)
        layer = layer_of(w, config)
        theirs = np.concatenate([output_of(layer, vector[None]) for vector in x])
        ours = output_of_device(crossbar, x, w, import_aihwkit(as_json(config)))
        shares.append(np.mean(np.abs(ours - theirs) > 2e-6 * np.abs(theirs).max()))
        assert shares[-1] < 0.01, (seed, str(config))
    assert np.mean(shares) < 0.001


def test_noise_of_products(w: Any, crossbar: Crossbar) -> None:
    config = quiet(inp_res=-1, out_res=-1, out_bound=100.0, out_noise=0.06)
    config.mapping.weight_scaling_omega, config.mapping.max_input_size = 0.5, 20
    x = np.tile(np.random.default_rng(2).uniform(-1, 1, ROWS).astype(np.float32), (4000, 1))
    torch.manual_seed(0)
    theirs = output_of(layer_of(w, config), x) - x @ w
    ours = output_of_device(crossbar, x, w, import_aihwkit(as_json(config))) - x @ w
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.1)


@pytest.mark.parametrize(
    "model",
    [
        PCMLikeNoiseModel(g_converter=SinglePairConductanceConverter(g_max=40, g_min=2), prog_noise_scale=1.5),
        PCMLikeNoiseModel(prog_coeff=[0.5, 1.0, 0.2, -0.1], g_max=20, t_0=5.0, t_read=1e-6, read_noise_scale=2.0),
        CustomDriftPCMLikeNoiseModel(
            {"g_lst": [0.0, 10.0, 25.0], "nu_mean_lst": [0.1, 0.06, 0.03], "nu_std_lst": [0.04, 0.02, 0.01]}
        ),
        HermesNoiseModel(num_devices=1),
        StateIndependentNoiseModel(g_max=15.0, drift_nu_mean=0.08, drift_scale=1.5),
        ReRamWan2022NoiseModel(g_max=40.0, noise_scale=0.5),
    ],
    ids=lambda model: type(model).__name__,
)
def test_noise_of_devices(w: Any, model: Any, crossbar: Crossbar) -> None:
    config = TorchInferenceRPUConfig(noise_model=model, drift_compensation=None)
    config.forward.is_perfect, config.mapping.weight_scaling_omega = True, 1.0
    torch.manual_seed(0)
    unit, theirs, draws = np.eye(ROWS, dtype=np.float32), [], 40
    layer = layer_of(w, config)
    for _ in range(draws):
        layer.program_analog_weights()
        layer.drift_analog_weights(86400.0)
        theirs.append(output_of(layer, unit))
    time = "program.time_s" if isinstance(model, ReRamWan2022NoiseModel) else "drift.time_s"
    profile = import_aihwkit(as_json(config), {time: "1d"})
    ours = [output_of_device(crossbar, unit, w, profile, seed=seed) for seed in range(draws)]
    # By weight: largest, middle and smallest third.
    order = np.argsort(np.abs(w).ravel())
    for part in np.array_split(order, 3):
        a, b = (np.array(held).reshape(draws, -1)[:, part] - w.ravel()[part] for held in (ours, theirs))
        sign = np.sign(w.ravel()[part])
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.03)
        assert float((a * sign).mean()) == pytest.approx(float((b * sign).mean()), abs=0.06 * float(b.std()))


def test_whole_configurations_have_no_field_that_the_importer_does_not_know() -> None:
    configs = [InferenceRPUConfig(), TorchInferenceRPUConfig(), SingleRPUConfig(), StandardHWATrainingPreset()]
    configs.append(InferenceRPUConfig(noise_model=ReRamCMONoiseModel()))
    for config in configs:
        try:
            import_aihwkit(as_json(config))
        except InputError as refusal:
            assert "no such field" not in str(refusal), refusal
