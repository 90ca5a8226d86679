"""emu against aihwkit-lightning's AnalogLinear: the same layer, computed by two programs that share no code.

What is called differently there, and how it is converted:

- resolution: `inp_res` and `out_res` are numbers of steps over the whole range, `dac.steps` and `adc.steps` here;
- ranges: a static input range is `dac` `fixed`, a dynamic one `absmax`; `out_bound` is `adc.bound`, in units of the
  largest input times the largest weight of the slice (`scaling` `tile`), or of the column of the slice (`tile_column`)
  when its weights are clipped per channel;
- slices of the input are row tiles, `balanced`; weights are W^T here;
- weights of n = 2^b - 2 states are `weight_bits` b;
- `out_noise` there is divided by the square root of the number of slices, `read.output_noise` acts on every tile, so it
  is set to that quotient;
- noise there acts in training only, so the layer is in training mode where noise is compared.

Values agree to 1e-5 of the largest output, except where a converter stands at a tie between two codes: there the two
programs round differently.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement.one_crossbar import Crossbar
from emu.calibration import import_ranges
from emu.device import import_aihwkit
from emu.rewriter import rewrite
from emu.runtime import session
from tests.peers.devices import output_of_device
from tests.statistics.laws import assert_unrelated

torch = pytest.importorskip("torch")
pytest.importorskip("aihwkit_lightning")

from aihwkit_lightning.nn import AnalogLinear  # noqa: E402
from aihwkit_lightning.nn.conversion import convert_to_analog  # noqa: E402
from aihwkit_lightning.simulator.configs import (  # noqa: E402
    TorchInferenceRPUConfig,
    WeightClipType,
    WeightNoiseInjectionType,
    WeightQuantizationType,
)

ROWS, COLUMNS, VECTORS = 50, 24, 40
STATIC_RANGE = 2.0


@pytest.fixture(scope="module")
def w() -> Any:
    """Weights [K, N] whose tiles and columns differ in size."""
    random = np.random.default_rng(0)
    scale = np.linspace(0.2, 1, COLUMNS) * np.linspace(1, 0.3, ROWS)[:, None]
    return (random.standard_normal((ROWS, COLUMNS)) * 0.3 * scale).astype(np.float32)


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(1).standard_normal((VECTORS, ROWS)).astype(np.float32)


def configuration(slice_rows: int = -1) -> Any:
    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = slice_rows
    return config


def with_range(config: Any, dynamic: bool) -> Any:
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.dynamic = dynamic
    config.pre_post.input_range.init_value = STATIC_RANGE
    config.pre_post.input_range.init_from_data = 0
    return config


def layer_of(w: Any, config: Any, training: bool = False) -> Any:
    layer = AnalogLinear(w.shape[0], w.shape[1], bias=False, rpu_config=config)
    layer.set_weights(torch.from_numpy(np.ascontiguousarray(w.T)))
    return layer.train(training)


def output_of(layer: Any, x: Any) -> Any:
    with torch.no_grad():
        return layer(torch.from_numpy(np.array(x, np.float32))).numpy()


def slices_of(rows: int, largest: int) -> list[slice]:
    """Return the slices of a split that is as equal as possible."""
    count = -(-rows // largest) if largest > 0 else 1
    edges = np.cumsum([0, *(rows // count + (i < rows % count) for i in range(count))])
    return [slice(*pair) for pair in pairwise(edges)]


def input_range(x: Any, part: slice, dynamic: bool) -> Any:
    return np.abs(x[:, part]).max(axis=1, keepdims=True) if dynamic else np.float32(STATIC_RANGE)


def away_from_ties(x: Any, parts: list[slice], dynamic: bool, steps: int) -> Any:
    """Return x with values near the middle between two codes of the DAC moved a little."""
    moved = x.copy()
    for part in parts:
        step = 2 * input_range(x, part, dynamic) / steps
        from_tie = np.abs(moved[:, part] / step % 1 - 0.5)
        moved[:, part] += np.where(from_tie < 0.02, 0.04 * step, 0)
    return moved


def assert_same(ours: Any, theirs: Any, undecided: Any = False) -> None:
    assert np.mean(undecided) < 0.01
    limit = 1e-5 * np.abs(theirs).max()
    np.testing.assert_array_less(np.where(undecided, 0, np.abs(ours - theirs)), limit)


@pytest.mark.parametrize("slice_rows", [-1, 50, 20, 16, 7])
def test_the_split_into_balanced_slices(x: Any, w: Any, slice_rows: int, crossbar: Crossbar) -> None:
    layer = layer_of(w, configuration(slice_rows))
    parts = slices_of(ROWS, slice_rows)
    assert layer.in_sizes == [part.stop - part.start for part in parts]
    # A quantized input makes the split visible: every tile has its own range.
    config = with_range(configuration(slice_rows), dynamic=True)
    config.forward.inp_res = 6
    moved = away_from_ties(x, parts, True, 6)
    numbers = {"dac.bits": 0, "dac.steps": 6, "dac.bound": 1}
    ours = crossbar.stored(moved, w, dac="absmax", tile_rows=max(slice_rows, 0), scaling="tile", numbers=numbers)
    assert_same(ours, output_of(layer_of(w, config), moved))


@pytest.mark.parametrize("steps", [6, 30, 254, 2**10 - 2])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_input_ranges_and_steps_of_the_dac(x: Any, w: Any, dynamic: bool, steps: int, crossbar: Crossbar) -> None:
    config = with_range(configuration(20), dynamic)
    config.forward.inp_res = steps
    moved = away_from_ties(x, slices_of(ROWS, 20), dynamic, steps)
    numbers = {"dac.bits": 0, "dac.steps": steps, "dac.bound": 1}
    numbers |= {} if dynamic else {"dac.max": STATIC_RANGE}
    ours = crossbar.stored(moved, w, dac="absmax" if dynamic else "fixed", tile_rows=20, numbers=numbers)
    assert_same(ours, output_of(layer_of(w, config), moved))


def test_a_static_range_clips_without_quantization(x: Any, w: Any, crossbar: Crossbar) -> None:
    config = with_range(configuration(), dynamic=False)
    numbers = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1, "dac.max": STATIC_RANGE}
    theirs = output_of(layer_of(w, config), x)
    assert np.abs(x).max() > STATIC_RANGE
    assert_same(crossbar.stored(x, w, dac="fixed", numbers=numbers), theirs)


@pytest.mark.parametrize("per_channel", [False, True], ids=["slice", "channel"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("out_bound", "out_res"), [(3.0, 254), (0.8, 30), (0.5, -1)])
def test_bounds_and_steps_of_the_adc(
    x: Any, w: Any, out_bound: float, out_res: int, dynamic: bool, per_channel: bool, crossbar: Crossbar
) -> None:
    steps = 126
    config = with_range(configuration(20), dynamic)
    config.forward.inp_res = steps
    config.forward.out_bound = out_bound
    config.forward.out_res = out_res
    if per_channel:  # the type alone says what the bound is relative to; nothing is clipped here
        config.clip.type = WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL
    parts = slices_of(ROWS, 20)
    moved = away_from_ties(x, parts, dynamic, steps)
    numbers = {"dac.bits": 0, "dac.steps": steps, "dac.bound": 1}
    numbers |= {} if dynamic else {"dac.max": STATIC_RANGE}
    numbers |= {"adc.bits": 0, "adc.steps": max(out_res, 0), "adc.bound": out_bound}
    ours = crossbar.stored(
        moved, w, dac="absmax" if dynamic else "fixed", adc="fixed", tile_rows=20,
        scaling="tile_column" if per_channel else "tile", numbers=numbers,
    )  # fmt: skip

    undecided = np.zeros((VECTORS, COLUMNS), np.bool_)
    saturated = 0
    for part in parts:
        largest = input_range(moved, part, dynamic).astype(np.float64)
        codes = np.clip(np.rint(moved[:, part] / largest * (steps / 2)) / (steps / 2), -1, 1)
        bound = out_bound * largest * np.abs(w[part]).max(axis=0 if per_channel else None)
        y = (codes * largest) @ w[part].astype(np.float64)
        saturated += np.count_nonzero(np.abs(y) > bound)
        if out_res > 0:
            undecided |= np.abs(y / (2 * bound / out_res) % 1 - 0.5) < 1e-3
    assert saturated > 0 or out_bound > 1
    assert_same(ours, output_of(layer_of(w, config), moved), undecided)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True], ids=["slice", "channel"])
def test_quantized_weights(x: Any, w: Any, per_channel: bool, bits: int, crossbar: Crossbar) -> None:
    config = configuration(20)
    quantization = WeightQuantizationType
    config.modifier.quantization_type = quantization.DISCRETIZE_PER_CHANNEL if per_channel else quantization.DISCRETIZE
    config.modifier.res = 2**bits - 2
    moved = w.copy()
    for part in slices_of(ROWS, 20):
        step = np.abs(w[part]).max(axis=0 if per_channel else None) / (2 ** (bits - 1) - 1)
        from_tie = np.abs(moved[part] / step % 1 - 0.5)
        moved[part] += np.where(from_tie < 0.01, 0.02 * step, 0).astype(np.float32)
    ours = crossbar.stored(
        x, moved, tile_rows=20, scaling="tile_column" if per_channel else "tile", weight_bits=bits
    )  # fmt: skip
    assert_same(ours, output_of(layer_of(moved, config), x))


DRAWS = 60


@pytest.mark.parametrize("per_channel", [False, True], ids=["slice", "channel"])
def test_the_spread_of_noisy_weights(w: Any, per_channel: bool, crossbar: Crossbar) -> None:
    config = configuration(20)
    types = WeightNoiseInjectionType
    config.modifier.noise_type = types.ADD_NORMAL_PER_CHANNEL if per_channel else types.ADD_NORMAL
    config.modifier.std_dev = 0.05
    layer = layer_of(w, config, training=True)
    torch.manual_seed(0)
    unit = np.eye(ROWS, dtype=np.float32)
    theirs = np.stack([output_of(layer, unit) for _ in range(DRAWS)]) - w

    settings: dict[str, Any] = {"tile_rows": 20, "scaling": "tile_column" if per_channel else "tile"}
    numbers = {"program.sigma": 0.05, "program.sigma_cycle": 0.0}
    settings |= {"program": "gauss_range", "numbers": numbers}
    ours = np.stack([crossbar.held(w, seed=seed, **settings) for seed in range(DRAWS)]) - w
    assert_same_spread(ours, theirs, slices_of(ROWS, 20), per_channel)
    if not per_channel:  # the modifier is always relative to the tile, whatever shares a scale
        modified = np.stack([
            crossbar.held(w, seed=seed, tile_rows=20, numbers={"program.modifier": 0.05}) for seed in range(DRAWS)
        ])  # fmt: skip
        assert_same_spread(modified - w, theirs, slices_of(ROWS, 20), per_channel)


def assert_same_spread(ours: Any, theirs: Any, parts: list[slice], per_column: bool) -> None:
    """Compare standard deviations: over all draws, and over those of each slice or column of a slice."""
    for part in parts:
        for columns in [slice(i, i + 1) for i in range(COLUMNS)] if per_column else [slice(None)]:
            a, b = ours[:, part, columns], theirs[:, part, columns]
            assert a.std() == pytest.approx(b.std(), rel=4.5 / np.sqrt(a.size))
    whole = [np.concatenate([values[:, part].ravel() for part in parts]) for values in (ours, theirs)]
    assert len(whole[0]) >= 40_000
    assert whole[0].std() == pytest.approx(whole[1].std(), rel=0.025)
    assert_unrelated(*whole)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["slice", "channel"])
def test_the_spread_of_noisy_outputs(w: Any, per_channel: bool, dynamic: bool, crossbar: Crossbar) -> None:
    config = with_range(configuration(20), dynamic)
    config.forward.out_noise = 0.06
    config.forward.out_noise_per_channel = per_channel
    vectors = np.tile(np.random.default_rng(2).uniform(-1, 1, ROWS).astype(np.float32), (2000, 1))
    torch.manual_seed(0)
    theirs = output_of(layer_of(w, config, training=True), vectors)

    slices = len(slices_of(ROWS, 20))
    numbers = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1, "read.output_noise": 0.06 / np.sqrt(slices)}
    numbers |= {} if dynamic else {"dac.max": STATIC_RANGE}
    ours = crossbar.stored(
        vectors, w, dac="absmax" if dynamic else "fixed", tile_rows=20,
        scaling="tile_column" if per_channel else "tile", numbers=numbers,
    )  # fmt: skip
    exact = vectors.astype(np.float64) @ w
    errors = ours - exact, theirs - exact
    assert errors[0].size >= 40_000
    np.testing.assert_allclose(errors[0].std(axis=0), errors[1].std(axis=0), rtol=4.5 / np.sqrt(len(vectors)))
    relative = [error / np.std(errors[1], axis=0) for error in errors]
    assert relative[0].std() == pytest.approx(relative[1].std(), rel=0.025)
    assert np.abs(errors[0].mean(axis=0) / errors[0].std(axis=0)).max() < 4.5 / np.sqrt(len(vectors))


class Drawn:
    """A random configuration, its device as imported from JSON, and data that stay away from ties.

    Inputs are up to three times the static range, so that both converters saturate.
    """

    def __init__(self, seed: int, w: Any, file: Path) -> None:
        draw = np.random.default_rng(seed)

        def one_of(*choices: Any) -> Any:
            return choices[draw.integers(len(choices))]

        self.kind = one_of("none", "static", "static", "dynamic", "dynamic")
        self.slice_rows, self.steps = one_of(-1, 50, 20, 16, 7), one_of(-1, 6, 30, 254)
        self.config = configuration(self.slice_rows)
        self.parts = slices_of(ROWS, self.slice_rows)
        self.bound, self.bits, self.per_channel = 0.0, one_of(0, 0, 4, 8), bool(draw.integers(2))
        if self.kind == "none":
            self.steps = -1
        else:
            with_range(self.config, self.kind == "dynamic")
            self.bound = one_of(0.0, 3.0, 0.8, 0.5)
            self.config.forward.inp_res = 1 / self.steps if self.steps > 0 and draw.integers(2) else self.steps
        self.adc_steps = one_of(-1, 30, 254) if self.bound else -1
        self.config.forward.out_bound, self.config.forward.out_res = self.bound, self.adc_steps
        if self.per_channel:
            self.config.clip.type = WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL
        if self.bits:
            kinds = WeightQuantizationType
            self.config.modifier.quantization_type = (
                kinds.DISCRETIZE_PER_CHANNEL if self.per_channel else kinds.DISCRETIZE
            )
            self.config.modifier.res = 2**self.bits - 2
        self.config.forward.out_noise = self.config.modifier.std_dev = 0.1  # of training
        self.config.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL
        file.write_text(json.dumps(self.config, default=lambda each: getattr(each, "name", None) or vars(each)))
        self.profile = import_aihwkit(file)

        self.x = (draw.standard_normal((VECTORS, ROWS)) * one_of(0.5, 1, 3)).astype(np.float32)
        self.w = w.copy()
        if self.steps > 0:
            self.x = away_from_ties(self.x, self.parts, self.kind == "dynamic", self.steps)
        for part in self.parts if self.bits else []:
            step = self.weight_step(part)
            from_tie = np.abs(self.w[part] / step % 1 - 0.5)
            self.w[part] += np.where(from_tie < 0.01, 0.02 * step, 0).astype(np.float32)

    def weight_step(self, part: slice) -> Any:
        largest = np.abs(self.w[part]).max(axis=0 if self.per_channel else None)
        return largest / (2 ** (self.bits - 1) - 1)

    def saturated_and_undecided(self) -> tuple[int, Any]:
        """How often the converters clip, and the outputs of which a part stands at a tie of the ADC."""
        clipped, undecided = 0, np.zeros((VECTORS, COLUMNS), np.bool_)
        for part in self.parts:
            x, w = self.x[:, part].astype(np.float64), self.w[part].astype(np.float64)
            largest = np.abs(w).max(axis=0 if self.per_channel else None)
            if self.bits:
                w = np.rint(w / self.weight_step(part)) * self.weight_step(part)
            if self.kind == "none":
                continue
            alpha = input_range(x, part=slice(None), dynamic=self.kind == "dynamic")
            clipped += np.count_nonzero(np.abs(x) > alpha)
            x = np.clip(x / alpha, -1, 1)
            x = alpha * (np.rint(x * (self.steps / 2)) / (self.steps / 2) if self.steps > 0 else x)
            if self.bound:
                bound = self.bound * alpha * largest
                clipped += np.count_nonzero(np.abs(x @ w) > bound)
                if self.adc_steps > 0:
                    undecided |= np.abs(x @ w / (2 * bound / self.adc_steps) % 1 - 0.5) < 1e-3
        return clipped, undecided


def test_random_configurations_give_the_same_through_the_importer(w: Any, crossbar: Crossbar, tmp_path: Path) -> None:
    saturated, left_out = [0, 0], []
    for seed in range(60):
        drawn = Drawn(seed, w, tmp_path / f"drawn{seed}.json")
        clipped, undecided = drawn.saturated_and_undecided()
        saturated[int(clipped > 0)] += 1
        ours = output_of_device(crossbar, drawn.x, drawn.w, drawn.profile)
        left_out.append(np.mean(undecided))  # much only where codes of few bits meet at ties by design
        theirs = output_of(layer_of(drawn.w, drawn.config), drawn.x)
        limit = 1e-5 * np.abs(theirs).max()
        assert np.where(undecided, 0, np.abs(ours - theirs)).max() < limit, (seed, drawn.config)
    assert min(saturated) > 10
    assert np.mean(left_out) < 0.03 and np.median(left_out) < 0.001


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_input_ranges_of_a_state_dict(kind: str, tmp_path: Path) -> None:
    """A model of two layers, exported before it was made analog, with the ranges that its layers learned since."""
    draw = np.random.default_rng(5)
    model = torch.nn.Sequential(torch.nn.Linear(ROWS, COLUMNS), torch.nn.ReLU(), torch.nn.Linear(COLUMNS, 7))
    x = draw.standard_normal((VECTORS, ROWS)).astype(np.float32)
    torch.onnx.export(
        model, (torch.from_numpy(x),), str(tmp_path / "model.onnx"), input_names=["x"], dynamo=False,
        dynamic_axes={"x": {0: "batch"}},
    )  # fmt: skip
    config = with_range(configuration(20), dynamic=False)
    config.forward.inp_res, config.forward.out_bound = 254, 0.9
    config.forward.out_res = -1
    analog = convert_to_analog(model, config).eval()
    for layer, learned in ((analog[0], (1.1, 2.3, 0.7)), (analog[2], (0.31, 0.52))):
        layer.input_range.data = torch.tensor(learned)
    if kind == "pt":
        torch.save(analog.state_dict(), tmp_path / "state.pt")
    else:
        pytest.importorskip("safetensors.torch").save_file(analog.state_dict(), tmp_path / "state.safetensors")

    device = {
        "mapping": {"tile_rows": 20, "split": "balanced", "scaling": "tile"},
        "dac": {"model": "uniform", "range": "calibrated", "range_per": "tile", "steps": 254},
        "adc": {"model": "uniform", "range": "fixed", "bound": 0.9, "bits": 0},
    }
    emulated = import_ranges(rewrite(tmp_path / "model.onnx", device), tmp_path / f"state.{kind}")
    found, theirs = session(emulated).run(None, {"x": x})[0], output_of(analog, x)
    assert_same(found, theirs)
    assert np.abs(output_of(model, x) - theirs).max() > 1e-2 * np.abs(theirs).max(), "nothing was clipped"
