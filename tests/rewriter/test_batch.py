"""Where the samples of a model lie, told by the free sizes of its inputs."""

import numpy as np
import onnx
import pytest

from emu.contract.manifest import SampleAxis
from emu.device import Profile, load_profile
from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

from .small import assert_same_results, model, values


def batch_of(inputs: str, outputs: str = "float[o, n] y", body: str = "y = MatMul(x, w)", **options) -> tuple:
    found = rewrite(model(body, inputs=inputs, outputs=outputs, w=values(4, 3)), device="ideal", **options).manifest
    return found.batch.input, found.batch.axis


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("float[batch, 4] x", ("x", 0)),
        ("float[n_, tokens, 4] x", ("x", 0)),
        ("int64[1] flag, float[b, s, 4] x", ("x", 0)),
        ("int64[s] positions, float[b, s, 4] x", ("x", 0)),
        ("int64[d1] positions, float[d0, d1, 4] x", ("x", 0)),
        ("float[2, b, p, 4] past, float[b, s, 4] x", ("x", 0)),
        ("float[2, d0, d1, 4] past, float[d0, d2, 4] x", ("x", 0)),
        ("float[sequence, batch, 4] x", ("x", 1)),
        ("float[3, 4] texts, float[images, 4] x", ("x", 0)),
        ("float[s, 4] x", ("x", 0)),
        ("float[1, s, 4] x", ("x", 0)),
        ("int64[s] positions, float[1, s, 4] x", ("x", 0)),
        ("float t, float[b, s, 4] x", ("x", 0)),
    ],
)
def test_the_batch_is_told_by_free_sizes_whatever_comes_first(inputs, expected):
    assert batch_of(inputs) == expected


def test_a_fixed_batch_is_the_leading_axis_that_inputs_share_with_outputs():
    assert batch_of("int64[1] flag, float[3, 4] other, float[5, 7, 4] x", "float[5, 7, 3] y") == ("x", 0)


def test_what_was_told_is_said():
    found = rewrite(model("y = MatMul(x, w)", inputs="float[batch, 4] x", w=values(4, 3)), only="*").manifest.batch
    assert found == SampleAxis("x", axis=0, size=None, told="by 'batch'")


TWO = "float[text_batch, 4] t, float[image_batch, 4] x"
CLIP = "u = MatMul(t, w) v = MatMul(x, w) ut = Transpose <perm = [1, 0]> (u) y = MatMul(v, ut)"


def test_two_batches_of_equal_right_are_refused_and_can_be_chosen_from():
    for outputs in ("float[image_batch, text_batch] y", "float[o, p] y"):
        with pytest.raises(InputError, match=r"say it with --batch-axis x:0 or t:0 \(batch_axis in Python\)"):
            batch_of(TWO, outputs, CLIP)
    assert batch_of(TWO, "float[image_batch, text_batch] y", CLIP, batch_axis="x:0") == ("x", 0)


def test_two_names_for_one_size_are_one_batch():
    original = "float[ids_axis_0, 4] x, float[mask_axis_0, 4] m"
    assert batch_of(original, body="h = Mul(x, m) y = MatMul(h, w)") == ("x", 0)


def test_leading_sizes_that_must_equal_the_batch_count_samples_too():
    cached = model(
        """
        k = MatMul(x, w) keys = Concat <axis = 1> (past, k) t = Transpose <perm = [0, 2, 1]> (keys)
        s = MatMul(x, t) y = MatMul(s, keys)
        """,
        inputs="float[batch, p, 4] past, float[x_axis_0, s, 4] x",
        outputs="float[o, s, 4] y",
        w=values(4, 4),
    )
    axes = [site.sample_axis for site in rewrite(cached, device="rram_adc").manifest.sites]
    assert axes == [0, 0, 0]
    split(cached, {"past": values(4, 3, 4), "x": values(4, 5, 4, seed=1)}, {"past": 0, "x": 0})


@pytest.mark.parametrize("wrong", ["z:0", "x:5", "x", "x:-1", "x:one"])
def test_an_axis_that_is_not_there_is_refused(wrong):
    with pytest.raises(InputError, match=r"expected INPUT:AXIS with an axis from 0, of x \[batch, 4\]"):
        batch_of("float[batch, 4] x", batch_axis=wrong)


def split(
    original: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    axes: dict[str, int | None],
    out: int = 0,
    device: str | Profile = "rram_adc",
) -> None:
    """Run-time noise of a data set in one batch, in halves, and one by one, is the same."""
    noisy = session(rewrite(original, device=device))
    whole = noisy.run(["y"], feeds)[0]
    assert not np.allclose(whole, session(rewrite(original, device="ideal")).run(["y"], feeds)[0])
    for size in (2, 1):
        parts = []
        for start in range(0, 4, size):
            rows = range(start, start + size)
            part = {k: v if axes[k] is None else v.take(rows, axis=axes[k]) for k, v in feeds.items()}
            parts.append(noisy.run(["y"], {**part, "emu.sample": np.int64(start)})[0])
        np.testing.assert_allclose(np.concatenate(parts, out), whole, atol=1e-5)


FLAT = "r = Reshape(xs, shape) h = MatMul(r, w) y = Reshape(h, back)"
SHAPES = {"shape": np.array([-1, 4]), "back": np.array([-1, 5, 3])}


@pytest.mark.parametrize("body", ["y = MatMul(xs, w)", FLAT])
def test_a_flag_or_a_cache_before_the_batch_changes_no_noise(body):
    x = values(4, 5, 4)
    flagged = model(
        f"xs = Where(flag, x, zero) {body}",
        inputs="bool[1] flag, float[b, s, 4] x",
        outputs="float[o, s, 3] y",
        w=values(4, 3),
        zero=np.float32(0),
        **SHAPES,
    )
    split(flagged, {"flag": np.array([True]), "x": x}, {"flag": None, "x": 0})
    cached = model(
        f"p = Gather <axis = 0> (past, one) q = ReduceMean <axes = [1], keepdims = 1> (p) xs = Add(x, q) {body}",
        inputs="float[2, b, p, 4] past, float[b, s, 4] x",
        outputs="float[o, s, 3] y",
        w=values(4, 3),
        one=np.array(1),
        **SHAPES,
    )
    split(cached, {"past": values(2, 4, 3, 4), "x": x}, {"past": 1, "x": 0})


def test_sequence_first_changes_no_noise():
    original = model("y = MatMul(x, w)", inputs="float[s, b, 4] x", outputs="float[s, b, 3] y", w=values(4, 3))
    split(original, {"x": values(5, 4, 4)}, {"x": 1}, out=1)


def test_what_does_not_grow_with_the_batch_is_the_same_for_every_sample():
    original = model(
        "u = MatMul(t, w) v = MatMul(x, w) m = ReduceMean <axes = [0], keepdims = 1> (u) y = Add(v, m)",
        inputs="float[3, 4] t, float[images, 4] x",
        w=values(4, 3),
    )
    axes = [site.sample_axis for site in rewrite(original, device="rram_adc").manifest.sites]
    assert axes == [-1, 0]
    split(original, {"t": values(3, 4), "x": values(4, 4, seed=1)}, {"t": None, "x": 0})


def test_samples_along_a_third_axis_change_no_noise():
    original = model("y = MatMul(x, w)", inputs="float[3, 2, b, 4] x", outputs="float[p, q, o, 3] y", w=values(4, 3))
    split(original, {"x": values(3, 2, 4, 4)}, {"x": 2}, out=2)


@pytest.mark.parametrize(
    "body",
    [
        # both halves of guidance in one batch
        "two = Concat <axis = 0> (x, x) h = MatMul(two, w) u, v = Split <axis = 0> (h) y = Sub(u, v)",
        # windows of an image before the batch
        """
        parts = Reshape(x, cut) led = Transpose <perm = [1, 0, 2, 3]> (parts) flat = Reshape(led, joined)
        h = MatMul(flat, w) apart = Reshape(h, whole) y = Transpose <perm = [1, 0, 2, 3]> (apart)
        """,
        # heads before the batch, both operands written
        """
        heads = Reshape(x, cut) led = Transpose <perm = [1, 0, 2, 3]> (heads) flat = Reshape(led, joined)
        h = MatMul(flat, w) t = Transpose <perm = [0, 2, 1]> (h) scores = MatMul(h, t) apart = Reshape(scores, squares)
        y = Transpose <perm = [1, 0, 2, 3]> (apart)
        """,
    ],
)
def test_samples_between_other_things_of_one_axis_change_no_noise(body):
    sizes = {"cut": [-1, 3, 2, 4], "joined": [-1, 2, 4], "whole": [3, -1, 2, 3], "squares": [3, -1, 2, 2]}
    original = model(
        body,
        inputs="float[batch, 6, 4] x",
        outputs="float y",
        w=values(4, 3),
        **{name: np.array(each) for name, each in sizes.items() if name in body},
    )
    original.graph.output[0].type.tensor_type.ClearField("shape")
    assert_same_results(original, {"x": values(2, 6, 4)})
    split(original, {"x": values(4, 6, 4)}, {"x": 0})


def test_pictures_of_all_samples_one_after_the_other_change_no_noise():
    video = model(
        """
        led = Transpose <perm = [1, 0, 2, 3, 4]> (x) flat = Reshape(led, images) c = Conv <group = 2> (flat, w, b)
        apart = Reshape(c, frames) y = Transpose <perm = [1, 0, 2, 3, 4]> (apart)
        """,
        inputs="float[batch, 3, 4, 5, 5] x",
        outputs="float[o, p, q, r, s] y",
        w=values(8, 2, 3, 3),
        b=values(8),
        images=np.array([-1, 4, 5, 5]),
        frames=np.array([3, -1, 8, 3, 3]),
    )
    assert_same_results(video, {"x": values(2, 3, 4, 5, 5)})
    split(video, {"x": values(4, 3, 4, 5, 5)}, {"x": 0})


@pytest.mark.parametrize("device", ["rram_adc", load_profile("clipformer", {"write.scaling": "matrix"})])
def test_heads_before_samples_change_no_noise_of_what_is_written(device):
    original = model(
        """
        q = MatMul(x, w) heads = Reshape(q, cut) led = Transpose <perm = [2, 0, 1, 3]> (heads)
        k = Transpose <perm = [0, 1, 3, 2]> (led) s = MatMul(led, k) y = Transpose <perm = [1, 0, 2, 3]> (s)
        """,
        inputs="float[batch, 5, 4] x",
        outputs="float[a, b, c, d] y",
        w=values(4, 6),
        cut=np.array([-1, 5, 2, 3]),
    )
    split(original, {"x": values(4, 5, 4)}, {"x": 0}, device=device)
