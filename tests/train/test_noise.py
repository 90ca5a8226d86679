"""A PyTorch model on an emulated chip: the same chip as in ONNX, and gradients that reach the clean weights."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("transformers", reason="needs the extra 'train'")

from torch.utils.checkpoint import checkpoint

import emu
from emu.errors import InputError
from emu.train.exporting import onnx_of
from emu.train.noise import Chip
from tests.train import tiny

# One device for every model of programming, drift, faults, writing and reading.
DEVICES = (
    "clipformer", "fefet", "ideal", "int16_flips", "int4_flips", "int8_flips", "int8_secded", "pcm", "pcm_aihwkit",
    "pcm_hermes", "pcm_joshi", "pcm_state_independent", "rram", "rram_adc", "rram_cmo", "rram_crosssim_wan",
    "rram_memtorch", "rram_milo", "rram_mnsim", "rram_neurosim", "rram_wan", "sonos", "stuck_at",
)  # fmt: skip


_graphs: dict[str, Any] = {}


def shared_export(model: Any, example: dict[str, Any]) -> Any:
    """The graph of a model; of equal models the same one, as an export takes seconds."""
    config = getattr(model, "config", None)
    weights = [f"{name} {value.shape} {float(value.double().sum())!r}" for name, value in model.state_dict().items()]
    inputs = [f"{name} {value.shape} {value.dtype}" for name, value in example.items()]
    facts = [config, getattr(config, "_attn_implementation", ""), getattr(model, "batch_first", ""), model.training]
    key = "\n".join([repr(model), *map(str, facts), *weights, *inputs])
    if key not in _graphs:
        _graphs[key] = onnx_of(model, example)
    return _graphs[key]


@pytest.fixture(scope="module", autouse=True)
def shared_exports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emu.train.noise.onnx_of", shared_export)
        yield


def exported(model: Any, example: dict[str, Any]) -> Any:
    return shared_export(model, {name: value[:2] for name, value in example.items()})


def onnx_logits(rewritten: Any, inputs: dict[str, Any], **controls: int) -> Any:
    feeds = {name: value.numpy() for name, value in inputs.items()}
    feeds |= {f"emu.{name}": np.int64(value) for name, value in controls.items()}
    session = emu.session(rewritten, threads=1)
    return session.run(None, feeds)[0]


def torch_logits(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        outputs = model(**inputs)
    return getattr(outputs, "logits", outputs).numpy()


def assert_same_chip(model: Any, inputs: dict[str, Any], device: str, **settings: Any) -> None:
    """Logits agree to 1e-4, but for samples in which a converter's code lay between two steps: few of them.

    Every product is on the device, unless `settings` say otherwise.
    """
    settings = {"only": "*", **settings}
    if device == "clipformer":  # not calibrated here
        settings["set"] = {"write.scaling": "matrix", **settings.get("set", {})}
    rewritten = emu.rewrite(exported(model, inputs), device, **settings)
    chip = Chip(model, device, seed=3, read_seed=11, example={name: x[:2] for name, x in inputs.items()}, **settings)
    chip.sample = 40
    disturbed = torch_logits(model, inputs)
    chip.remove()
    expected = onnx_logits(rewritten, inputs, seed=3, read_seed=11, sample=40)
    difference = np.abs(disturbed - expected).reshape(len(expected), -1).max(axis=1)
    converted = has_converters(rewritten)
    agree = difference <= 1e-4 * max(1.0, np.abs(expected).max())
    assert agree.mean() >= (0.75 if converted else 1), difference
    if device not in ("ideal", "int8_secded", "int16_flips"):
        assert np.abs(torch_logits(model, inputs) - expected).max() > 1e-3, "the device does nothing here"


def has_converters(rewritten: Any) -> bool:
    profiles = [device.profile for device in rewritten.manifest.devices.values()]
    return any(
        each["adc"].get("range", "none") != "none" or each["dac"].get("range", "none") != "none" for each in profiles
    )


@pytest.mark.parametrize("device", DEVICES)
def test_the_chip_of_a_seed_is_the_one_in_onnx(device: str) -> None:
    assert_same_chip(tiny.vit(), tiny.images(), device)


@pytest.mark.parametrize("device", ["rram", "pcm_aihwkit", "int8_flips"])
@pytest.mark.parametrize(
    "make", [tiny.bert, tiny.albert, tiny.gpt2, lambda: tiny.bert("sdpa"), lambda: tiny.vit("eager")]
)
def test_the_chip_is_the_same_in_every_architecture(make: Any, device: str) -> None:
    model = make()
    assert_same_chip(model, tiny.images() if hasattr(model.config, "image_size") else tiny.texts(), device)


@pytest.mark.parametrize("device", ["rram", "pcm_aihwkit", "clipformer"])
@pytest.mark.parametrize("make", [tiny.PlainEncoder, lambda: tiny.PlainEncoder(False), tiny.PlainAttention])
def test_the_chip_is_the_same_in_the_attention_of_pytorch(make: Any, device: str) -> None:
    inputs = {"x": torch.randn((6, 7, 32), generator=torch.Generator().manual_seed(2))}
    assert_same_chip(make().eval(), inputs, device)


@pytest.mark.parametrize(("device", "scaling"), [("clipformer", "matrix"), ("clipformer", "token"), ("rram_wan", None)])
def test_padding_lies_in_pytorch_where_it_lies_in_the_file(device: str, scaling: str | None) -> None:
    inputs = tiny.texts()
    mask = inputs["attention_mask"]
    for row, count in enumerate((3, 5, 4)):
        mask[row, count:] = 0
    mask[3, :2] = 0  # padding in front
    settings = {"set": {"write.scaling": scaling}} if scaling else {}
    assert_same_chip(tiny.bert(), inputs, device, **settings)


@pytest.mark.parametrize("model", ["proportional", "independent"])
@pytest.mark.parametrize("device", ["pcm_hermes", "rram_milo", "clipformer"])
def test_read_noise_of_devices_is_the_same(device: str, model: str) -> None:
    noise = {"read.weight_noise_model": model, "read.weight_noise": 0.02}
    assert_same_chip(tiny.vit(), tiny.images(), device, set=noise)


@pytest.mark.parametrize("model", ["clipformer", "lognormal_g", "gauss_range"])
def test_what_is_written_is_moved_and_limited_alike(model: str) -> None:
    transform = {"write.alpha": -2.0, "write.beta": 0.5, "write.alpha_value": 3.0, "write.beta_value": 0.25}
    settings = {"write.model": model, "write.sigma": 0.02, **transform, "write.bits": 5}
    if model == "clipformer":
        settings["write.exponent"] = 1.5
    assert_same_chip(tiny.vit(), tiny.images(), "clipformer", set=settings)


def test_without_a_selection_the_profile_says_which_products_are_on_the_chip() -> None:
    assert_same_chip(tiny.vit(), tiny.images(), "rram", only=None)
    chip = Chip(tiny.vit(), "rram")
    blocks = {"query", "key", "value", "attention_output", "ffn_up", "ffn_down"}
    assert {site.component for site in chip.sites} == blocks


def test_settings_maps_and_selections_mean_the_same_as_in_rewrite() -> None:
    settings = {"only": "layer=0-1", "map": ["component=ffn_*:pcm"], "set": {"rram:program.sigma": 0.2}}
    assert_same_chip(tiny.vit(), tiny.images(), "rram", **settings)


def test_a_rewritten_file_gives_sites_devices_and_calibrated_ranges() -> None:
    model, inputs = tiny.vit(), tiny.images()
    plain = exported(model, inputs)
    arrays = {"pixel_values": inputs["pixel_values"].numpy()}
    rewritten = emu.calibrate(emu.rewrite(plain, "prime"), arrays)
    chip = Chip(model, rewritten=rewritten, example=tiny.images(2), seed=4)
    disturbed, expected = torch_logits(model, inputs), onnx_logits(rewritten, inputs, seed=4)
    chip.remove()
    assert np.mean(np.abs(disturbed - expected).max(axis=1) < 1e-4) >= 0.75


def test_a_rewritten_file_of_other_weights_is_refused() -> None:
    model, inputs = tiny.vit(), tiny.images(2)
    rewritten = emu.rewrite(exported(model, inputs), "rram", "*")
    with torch.no_grad():
        model.vit.encoder.layer[0].attention.attention.key.weight *= 1.5
    with pytest.raises(InputError, match="holds other weights than the PyTorch model at site 1"):
        Chip(model, rewritten=rewritten)


def test_training_draws_a_new_chip_for_every_forward() -> None:
    model, inputs = tiny.vit(), tiny.images()
    chip = Chip(model, "rram_adc")
    model.train()
    torch.manual_seed(5)
    first, second = torch_logits(model, inputs), torch_logits(model, inputs)
    assert np.abs(first - second).max() > 1e-3
    torch.manual_seed(5)
    np.testing.assert_array_equal(torch_logits(model, inputs), first)
    model.eval()
    np.testing.assert_array_equal(torch_logits(model, inputs), torch_logits(model, inputs))
    chip.remove()


def test_the_model_itself_stays_clean() -> None:
    model, inputs = tiny.vit(), tiny.images()
    clean, names = torch_logits(model, inputs), list(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chip = Chip(model, "rram")
    assert np.abs(torch_logits(model, inputs) - clean).max() > 1e-3
    assert list(model.state_dict()) == names
    with chip.off():
        np.testing.assert_array_equal(torch_logits(model, inputs), clean)
    chip.strength = 0
    np.testing.assert_array_equal(torch_logits(model, inputs), clean)
    chip.remove()
    np.testing.assert_array_equal(torch_logits(model, inputs), clean)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_the_selected_component_is_disturbed() -> None:
    model = tiny.vit()
    chip = Chip(model, "rram", only="component=query layer=1")
    assert [name for name, _ in chip.parameters()] == ["vit.encoder.layer.1.attention.attention.query.weight"]
    assert [site.component for site in chip.sites] == ["query"]
    chip.remove()


class Twice(torch.nn.Module):
    """A plain module whose only weight serves two products one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.block = torch.nn.Linear(16, 16)
        self.checkpointing = False

    def forward(self, x: Any) -> Any:
        for _ in range(2):
            x = checkpoint(self._step, x, use_reentrant=False) if self.checkpointing else self._step(x)
        return SimpleNamespace(logits=x) if self.training else x

    def _step(self, x: Any) -> Any:
        return torch.tanh(self.block(x))


def gradient_of(model: Any, inputs: dict[str, Any], name: str) -> Any:
    model.zero_grad()
    (model(**inputs).logits ** 2).sum().backward()
    return model.get_parameter(name).grad.clone()


CLASSIFIER = "classifier.weight"


@pytest.mark.parametrize("gradient", ["straight_through", "reparametrized"])
def test_gradients_reach_the_clean_weights(gradient: str) -> None:
    """dL/dW is that of the disturbed weight, times the factor of each weight if it is reparametrized."""
    model, inputs = tiny.vit(), tiny.images()
    chip = Chip(model, "rram", only="component=classifier", set={"program.sigma": 0.3}, gradient=gradient)
    found = gradient_of(model, inputs, CLASSIFIER)
    chip.remove()
    clean = model.classifier.weight.detach().clone()
    from emu.runtime.library import programmed_weight

    node = next(iter(chip._emulated.nodes().values()))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    numbers = np.asarray([0.3, 0.0], np.float32)
    disturbed = torch.from_numpy(programmed_weight(clean.numpy().T, attributes, numbers, seed=0).T.copy())
    with torch.no_grad():
        model.classifier.weight.copy_(disturbed)
    expected = gradient_of(model, inputs, CLASSIFIER)
    if gradient == "reparametrized":
        expected *= disturbed / clean
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient_through_converters_and_writes() -> None:
    model = tiny.vit()
    chip = Chip(model, "pcm_aihwkit", only="*")
    model.train()
    (model(**tiny.images()).logits ** 2).sum().backward()
    chip.remove()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # The softmax does not change when all scores of a row move together, as the bias of a key moves them.
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name


def test_inputs_beyond_the_range_of_a_converter_pass_no_gradient() -> None:
    model, inputs = tiny.vit(), tiny.images(2)
    inputs["pixel_values"][0, 0, 0, 0] = 50.0
    inputs["pixel_values"].requires_grad_()
    settings = {"dac.range": "fixed", "dac.bits": 8, "dac.max": 10.0}
    chip = Chip(model, "rram_adc", only="component=patch_embedding", set=settings)
    model(**inputs).logits.sum().backward()
    chip.remove()
    gradient = inputs["pixel_values"].grad
    assert gradient[0, 0, 0, 0] == 0
    assert (gradient[0, 0, 0, 1:4] != 0).all()


@pytest.mark.parametrize(
    ("make", "weight"),
    [
        (tiny.vit, "vit.encoder.layer.0.attention.attention.query.weight"),
        (lambda: Twice(), "block.weight"),
    ],
)
def test_recomputed_activations_have_the_noise_of_their_forward(make: Any, weight: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make()
        if isinstance(model, Twice):
            model.checkpointing = checkpointing
        elif checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = {"x": torch.ones(4, 6, 16)} if isinstance(model, Twice) else tiny.images()
        chip = Chip(model, "pcm_aihwkit", example=inputs)
        model.train()
        torch.manual_seed(3)
        gradients.append(gradient_of(model, inputs, weight))
        chip.remove()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_connect_sets_that_share_of_the_weights_to_zero() -> None:
    model, inputs = tiny.vit(), tiny.images()
    chip = Chip(model, "ideal", only="component=ffn_up layer=0", drop_connect=0.25)
    seen = []
    layer = model.vit.encoder.layer[0].intermediate.dense
    model.train()
    torch.manual_seed(0)
    emulator = next(iter(chip._emulators.values()))
    model(**inputs)
    dropped = emulator._differentiable(layer.weight.detach().clone())
    seen.append((dropped == 0).float().mean().item())
    assert seen[0] == pytest.approx(0.25, abs=0.03)
    chip.remove()


def test_an_interrupted_forward_leaves_nothing_behind() -> None:
    model, inputs = tiny.vit(), tiny.images(2)
    chip = Chip(model, "rram_adc")
    before = torch_logits(model, inputs)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    inner = model.vit.encoder.layer[1].intermediate.dense.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**inputs)
    inner.remove()
    other, ones = torch.nn.Linear(32, 64), torch.ones(1, 32)
    torch.testing.assert_close(other(ones), ones @ other.weight.T + other.bias)
    np.testing.assert_array_equal(torch_logits(model, inputs), before)
    chip.remove()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_on_a_chip_is_clean(copied: Any) -> None:
    model, inputs = tiny.vit(), tiny.images(2)
    clean = torch_logits(model, inputs)
    chip = Chip(model, "rram")
    twin = copied(model)
    np.testing.assert_array_equal(torch_logits(twin, inputs), clean)
    disturbed = torch_logits(model, inputs)
    with torch.no_grad():
        twin.classifier.weight *= 3
    np.testing.assert_array_equal(torch_logits(model, inputs), disturbed)
    chip.remove()


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("read_seed", 2**32), ("sample", -3), ("strength", -0.5), ("strength", float("nan"))],
)
def test_controls_out_of_range_are_refused(name: str, value: float) -> None:
    model = tiny.vit()
    chip = Chip(model, "rram", **({name: value} if name != "sample" else {}))
    setattr(chip, name, value)
    with pytest.raises(InputError, match=f"The chip's {name} is {value} and must be 0"):
        model(**tiny.images(2))
    chip.remove()


def test_a_model_is_on_one_chip() -> None:
    model = tiny.vit()
    chip = Chip(model, "rram")
    with pytest.raises(InputError, match="on a chip already: take it off first"):
        Chip(model, "pcm")
    chip.remove()
    Chip(model, "pcm").remove()


def test_models_in_two_threads_do_not_meet() -> None:
    inputs = tiny.images(4)
    models = [tiny.vit(), tiny.vit()]
    chips = [Chip(model, "rram_adc") for model in models]
    expected = torch_logits(models[0], inputs)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda model: [torch_logits(model, inputs) for _ in range(12)], models))
    assert all(np.array_equal(result, expected) for of_model in results for result in of_model)
    for chip in chips:
        chip.remove()


def test_the_number_of_samples_is_that_of_the_first_input() -> None:
    model, inputs = tiny.bert(), tiny.texts()
    chip = Chip(model, "pcm_aihwkit", example=tiny.texts(2))
    places = {"position_ids": torch.arange(9)[None]}
    np.testing.assert_array_equal(torch_logits(model, {**places, **inputs}), torch_logits(model, {**inputs, **places}))
    chip.remove()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gradient": "magic"}, "gradient is 'magic' and must be straight_through or reparametrized"),
        ({"device": "pcm", "gradient": "reparametrized"}, "disturbs conductances: use 'straight_through'"),
        ({"drop_connect": 1.0}, "drop_connect is 1.0 and must be 0 or greater and less than 1"),
        ({"device": "no_such"}, "no_such"),
        ({"only": "component=nothing"}, "nothing"),
        ({"device": "prime"}, "not calibrated yet"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    model = tiny.vit()
    hooks = len(model._forward_pre_hooks)
    with pytest.raises(InputError, match=sentence):
        Chip(model, **arguments)
    assert len(model._forward_pre_hooks) == hooks
