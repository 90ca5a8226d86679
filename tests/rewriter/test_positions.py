"""Run-time noise follows positions: not how a sequence is padded, decoded in steps, or split over batches."""

import functools

import numpy as np
import onnx
import pytest

from emu.device import load_profile, preset_names
from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

from .decoders import HEADS, KINDS, WIDTH, WORDS, decoder

SAMPLES, TOKENS, SOURCE = 2, 13, 7
# Ranges by row; the last two convert what they read, so that rounding may move a code by one step.
EXACT = ("clipformer", "rram_wan", "rram")
CONVERTED = ("pcm_aihwkit", "rram_adc")
STAYS = {"write.sigma_device": 0.1, "write.stuck_low": 0.02, "write.stuck_high": 0.01, "write.capacity": 8}
GRANULAR = ("isaac",)  # whose ADC needs to know levels, also of what is written
SETTINGS = {"clipformer": {"write.scaling": "token", **STAYS}}
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, WORDS, (SAMPLES, TOKENS))
STATES = RNG.normal(size=(SAMPLES, SOURCE, WIDTH)).astype(np.float32)


@functools.cache
def emulated(kind, device):
    return session(rewrite(decoder(kind), device, set=SETTINGS.get(device)).model)


@functools.cache
def plain(kind):
    return session(decoder(kind))


def logits(opened, steps, before=0, after=0, before_source=0):
    """Logits [samples, tokens, words] of tokens behind padding, a step at a time."""
    ids = np.pad(IDS, ((0, 0), (before, after)))
    mask = np.pad(np.ones_like(IDS), ((0, 0), (before, after)))
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    source = ((0, 0), (before_source, 3 if before_source else 0))
    extra = {
        "encoder_hidden_states": np.pad(STATES, (*source, (0, 0))),
        "encoder_attention_mask": np.pad(np.ones((SAMPLES, SOURCE), np.int64), source),
    }
    taken = {each.name: each.shape for each in opened.get_inputs()}
    past = {
        name: np.zeros((SAMPLES, shape[1], 0, WIDTH // HEADS), np.float32)
        for name, shape in taken.items()
        if name.startswith("past")
    }
    results, start = [], 0
    for step in steps:
        now = slice(start, start + step)
        feeds = {"input_ids": ids[:, now], "attention_mask": mask[:, : now.stop], "position_ids": places[:, now]}
        y, *present = opened.run(None, {k: v for k, v in (feeds | extra | past).items() if k in taken})
        results.append(y)
        past = dict(zip(past, present, strict=True))
        start += step
    whole = np.concatenate(results, axis=1)
    return whole[:, before : before + TOKENS]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def same(one, other, device):
    largest = np.abs(one).max()
    if device in CONVERTED:  # a code may fall on the other side of a tie; most do not
        return np.median(np.abs(one - other).max(axis=-1)) < 1e-5 * largest
    return np.abs(one - other).max() < 1e-5 * largest


@pytest.mark.parametrize("device", [*EXACT, *CONVERTED])
def test_tokens_decoded_one_by_one_equal_those_read_at_once(kind, device):
    noisy = emulated(kind, device)
    at_once = logits(noisy, [TOKENS])
    assert np.abs(at_once - logits(plain(kind), [TOKENS])).max() > 1e-3
    assert same(at_once, logits(noisy, [1] * TOKENS), device)
    if kind != "window":  # whose cache ends with its window
        assert same(at_once, logits(noisy, [4, 1, TOKENS - 5]), device)


@pytest.mark.parametrize("device", [*EXACT, *CONVERTED])
def test_padding_before_the_tokens_changes_nothing(kind, device):
    noisy = emulated(kind, device)
    expected = logits(noisy, [TOKENS])
    for before in (1, 17):
        padded = logits(noisy, [before + 4, *[1] * (TOKENS - 4)], before, before_source=before)
        assert same(expected, padded, device)
        assert same(expected, logits(noisy, [before + TOKENS], before), device)


def test_padding_behind_the_tokens_changes_nothing(kind):
    noisy = emulated(kind, "clipformer")
    expected = logits(noisy, [TOKENS])
    for after in (1, 96):
        assert same(expected, logits(noisy, [TOKENS + after], after=after), "clipformer")


@pytest.mark.parametrize("device", preset_names())
@pytest.mark.parametrize("kind", ["masked", "llama"])
def test_padding_changes_nothing_on_any_preset(kind, device):
    profile, model = load_profile(device), rewrite(decoder(kind), device, "*" if device not in GRANULAR else None).model
    for initializer in model.graph.initializer:
        if initializer.name == "emu.ranges":  # of those that want a calibration
            ranges = np.tile(np.float32([4, -6, 6, 2]), (initializer.dims[0], initializer.dims[1] // 4))
            initializer.CopyFrom(onnx.numpy_helper.from_array(ranges, "emu.ranges"))
    noisy = session(model)
    expected = logits(noisy, [TOKENS])
    converts = profile.dac.model != "none" or profile.adc.model != "none"
    for padding in (0, 1, 17, 96):
        for side in ("before", "after"):
            difference = np.abs(logits(noisy, [TOKENS + padding], **{side: padding}) - expected).max(axis=-1)
            # A code may fall on the other side of a tie, in one token of many.
            assert np.quantile(difference, 0.8 if converts else 1.0) < 1e-5 * np.abs(expected).max(), (side, padding)


def test_steps_have_noise_of_their_own(kind):
    """The same token at another position is read with other noise."""
    head = rewrite(decoder(kind), "ideal", set={"read.output_noise": 0.05}, only="component=classifier").model
    noise = logits(session(head), [1] * TOKENS) - logits(plain(kind), [TOKENS])
    assert np.abs(np.corrcoef(noise.reshape(SAMPLES * TOKENS, -1)) - np.eye(SAMPLES * TOKENS)).max() < 0.6
    assert noise.std() > 0


def test_a_cache_that_grows_needs_a_scale_of_each_token_or_of_none(kind):
    for scaling in ("matrix", "sample"):
        with pytest.raises(InputError, match="a cache that grows.*set it to token or calibrated"):
            rewrite(decoder(kind), "clipformer", set={"write.scaling": scaling})


def test_a_model_of_images_has_no_positions():
    x = onnx.helper.make_tensor_value_info("x", 1, ["batch", 5, 8])
    y = onnx.helper.make_tensor_value_info("y", 1, ["batch", 5, 8])
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32) * 0.5, "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = onnx.helper.make_graph([node], "plain", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    (crossbar,) = [node for node in rewrite(model, "rram", "*").model.graph.node if node.domain == "emu"]
    assert "emu.no_position" in crossbar.input


def test_positions_that_no_word_holds_are_refused():
    opened = emulated("gpt", "rram_wan")
    shape = next(each.shape for each in opened.get_inputs() if each.name.startswith("past"))
    past = {
        each.name: np.zeros((1, shape[1], 0, WIDTH // HEADS), np.float32)
        for each in opened.get_inputs()
        if each.name.startswith("past")
    }
    ids = np.ones((1, 3), np.int64)
    for place in (-5, 2**40):
        feeds = {"input_ids": ids, "attention_mask": ids, "position_ids": ids * 0 + place, **past}
        with pytest.raises(Exception, match="position|indices"):
            opened.run(None, feeds)


def test_a_mask_of_anything_else_tells_no_positions():
    """Patches of an image that a model hides from itself."""
    small = [
        onnx.helper.make_tensor_value_info("pixel_values", 1, ["batch", 3, 8, 8]),
        onnx.helper.make_tensor_value_info("bool_masked_pos", onnx.TensorProto.BOOL, ["batch", 64]),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["pixel_values", "w"], ["y"], "product")
    y = onnx.helper.make_tensor_value_info("y", 1, ["batch", 3, 8, 8])
    graph = onnx.helper.make_graph([node], "images", small, [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    emulated = rewrite(model, "rram", only="*")
    assert emulated.manifest.notes == () and emulated.positions() is None
