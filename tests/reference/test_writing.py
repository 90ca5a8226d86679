"""Dynamic operands as conductances: noise that grows with them, and the transform that moves them down."""

from typing import Any

import numpy as np
import pytest

from emu.reference import Stream, run_time_normals

from .nodes import dynamic, normal

# 0.1 to 10 microsiemens, a ratio of 100.
MAPPING = {"mapping.g_min_us": 0.1, "mapping.g_max_us": 10.0}
V = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.2424242424, 0.5, 1.0]


def clipformer(
    sigma: float = 0.0, gamma: float = 1.0, bits: int = 0, write: str = "clipformer", **transform: Any
) -> Any:
    """A node that writes with the ClipFormer paper's transform and noise, or with other noise."""
    numbers = {**MAPPING, "write.sigma": sigma, "write.gamma": gamma, "write.bits": bits}
    return {"write": write, "numbers": numbers | {f"write.{name}": value for name, value in transform.items()}}


def written(b: Any, **node: Any) -> Any:
    """What an array holds of one matrix."""
    b = np.asarray(b, np.float32)
    return dynamic(np.eye(len(b))[None], b[None], **node)[0]


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (1, 1, [0, 0, 0.009899, 0.039899, 0.089899, 0.189899, 0.232323, 0.489899, 0.989899]),
        (1, 0.25, [0, 0, 0.009899, 0.039899, 0.089899, 0.189899, 0.232323, 0.242424, 0.242424]),
        (2, 1, [0, 0, 0, 0.029798, 0.079798, 0.179798, 0.222222, 0.479798, 0.979798]),
        (2, 0.25, [0, 0, 0, 0.029798, 0.079798, 0.179798, 0.222222, 0.242424, 0.242424]),
    ],
)
@pytest.mark.parametrize("write", ["clipformer", "lognormal_g", "lognormal_w", "gauss_range"])
def test_weights_are_moved_down_and_limited_as_in_the_clipformer_paper(write, alpha, beta, expected):
    """Source: values worked out from the paper's transform, for conductances of 0.1 to 10 microsiemens."""
    values = written([V, np.negative(V)], **clipformer(write=write, alpha=alpha, beta=beta))
    np.testing.assert_allclose(values, [expected, np.negative(expected)], atol=1e-6)


def test_values_may_be_moved_and_limited_otherwise_than_keys():
    node = clipformer(alpha=1, beta=0.5, alpha_value=3, beta_value=0.25)
    keys, values = ([0.49, 0.0399, 0.4949], [0.2424, 0.0197, 0.2424])
    for axis, expected in (("columns", keys), ("none", keys), ("rows", values)):
        held = written([[1, 0.05, 0.51]], key_axis=axis, **node)
        np.testing.assert_allclose(held[0][1:], expected[1:], atol=1e-4)
    assert written([[1.0]], key_axis="rows", **clipformer(beta=0.5, alpha_value=0))[0] == pytest.approx(0.49 / 0.99)


def test_conductances_that_are_raised_stand_for_the_same_weight_with_more_noise():
    """Both devices of a pair rise, also that of a zero; only the top is cut off."""
    b = np.full((400, 400), 0.3)
    b[0] = [1, *[0] * 399]
    held = written(b, **clipformer(alpha=-5))
    np.testing.assert_allclose(held[:2, :2], [[0.949495, 0], [0.3, 0.3]], atol=1e-6)
    noise = written(b, **clipformer(sigma=1e-3, alpha=-5)) - held
    raised = 5 * 0.01 / 0.99
    assert noise[0, 1:].std() == pytest.approx(1e-3 * np.sqrt(2 * raised), rel=0.1)
    assert noise[1:].std() == pytest.approx(1e-3 * np.sqrt(0.3 + 2 * raised), rel=0.01)


@pytest.mark.parametrize("exponent", [0, 1, 2.5])
def test_noise_grows_with_any_power_of_what_is_written(exponent):
    b = np.full((400, 400), 0.3)
    b[0] = [1, *[0] * 399]
    noise = written(b, **clipformer(sigma=1e-3, exponent=exponent)) - b
    # Without a power both devices have it, and that of zero only upwards.
    expected = 1e-3 * np.sqrt(1 + (0.5 - 1 / (2 * np.pi))) if exponent == 0 else 1e-3 * 0.3**exponent
    assert noise[1:].std() == pytest.approx(expected, rel=0.02)
    cells = written(b, write_cells="cells", **clipformer(sigma=1e-3, exponent=exponent)) - b
    digits = np.array([0, 3, 0, 1])  # of 0.3 * 255 = 76
    share = np.where((digits == 0) & (exponent == 0), 1.0, (digits / 3) ** (2 * exponent))
    amplitude = np.sqrt(((3 * 4.0 ** np.arange(4) / 255) ** 2 * share).sum())
    if exponent:
        assert cells[1:].std() == pytest.approx(1e-3 * amplitude, rel=0.02)


def test_write_noise_grows_with_the_root_of_the_conductance():
    """With gamma sigma 0.05: 0.221371 microsiemens at v = 0.2 and 0.350018 at 0.5."""
    for v, expected_us in ((0.2, 0.221371), (0.5, 0.350018)):
        b = np.full((1000, 400), v)
        b[0, 0] = 1
        noise_us = (written(b, **clipformer(sigma=0.025, gamma=2.0))[1:] - v) * 9.9
        # The negative device holds 0 and has no noise.
        assert noise_us.std() == pytest.approx(expected_us, rel=0.01)


def test_written_conductances_stay_in_their_range():
    values = written(np.ones((100, 100)), **clipformer(sigma=0.3))
    assert values.max() == pytest.approx(1, abs=1e-6) and (values >= 0).all()
    assert (values == values.max()).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("code", "variance"),
    [(1, 4.6136101499423294e-05), (4, 7.381776239907727e-4), (85, 0.20156862745098036), (128, 0.3779469434832756)],
)
def test_noise_of_cells_is_that_of_their_digits(code, variance):
    """Variance over that of a full cell: code 1 4.61e-5, 4 7.38e-4, 85 (a one in every cell) 0.2016."""
    b = np.full((400, 400), code / 255)
    b[0, 0] = 1
    noise = written(b, write_cells="cells", **clipformer(sigma=1e-3))[1:] - code / 255
    assert noise.std() == pytest.approx(1e-3 * np.sqrt(variance), rel=0.01)


def test_operands_are_rounded_before_they_are_written():
    np.testing.assert_allclose(written([[1, 0.4, -0.6]], **clipformer(bits=2)), [[1, 1 / 3, -2 / 3]], atol=1e-6)


def test_written_pairs_are_the_page_formula():
    b = normal(4, 6)
    numbers = {**MAPPING, "write.sigma": 0.3}
    values = written(b, write="lognormal_g", numbers=numbers, strength=0.5, seed=1, read_seed=2)
    s, r = np.abs(b).max(), 0.01

    def theta(stream: Stream) -> Any:
        return 0.15 * run_time_normals(1, 2, 0, stream, *np.array([[0] * 4, [0] * 4, range(4)]), part=slice(0, 6))

    positive = (r + (1 - r) * np.maximum(b / s, 0)) * np.exp(theta(Stream.WRITE))
    negative = (r + (1 - r) * np.maximum(-b / s, 0)) * np.exp(theta(Stream.WRITE_NEGATIVE))
    np.testing.assert_allclose(values, s * (positive - negative) / (1 - r), rtol=1e-5, atol=1e-6)


def test_matrices_of_a_sample_may_share_one_scale():
    """Two bits keep 0, 1/3, 2/3 and 1 of the scale, so the scale shows."""
    b = np.array([[[[1.0, 0.5]], [[3.0, 1.0]]], [[[6.0, 2.0]], [[0.0, 0.0]]]])
    node = clipformer(bits=2)
    eye = np.ones((2, 2, 1, 1))
    own = dynamic(eye, b, **node)
    np.testing.assert_allclose(own.reshape(4, 2), [[1, 2 / 3], [3, 1], [6, 2], [0, 0]], rtol=1e-6)
    shared = dynamic(eye, b, write_scaling="sample", **node)
    np.testing.assert_allclose(shared.reshape(4, 2), [[1, 0], [3, 1], [6, 2], [0, 0]], rtol=1e-6, atol=1e-6)
    folded = dynamic(eye.reshape(4, 1, 1), b.reshape(4, 1, 2), write_scaling="sample", sample=[0, 2], **node)
    np.testing.assert_array_equal(folded.reshape(shared.shape), shared)
    whole = dynamic(eye, b, write_scaling="sample", sample_axis=-1, **node)
    np.testing.assert_allclose(whole.reshape(4, 2), [[0, 0], [4, 0], [6, 2], [0, 0]], rtol=1e-6, atol=1e-6)


def test_a_percentile_clips_operands_too():
    values = written([[1.0, 2, 3, 40]], numbers={"mapping.percentile": 0.75})
    np.testing.assert_allclose(values, [[1, 2, 3, 3]], rtol=1e-6)


def test_a_written_operand_is_read_as_it_is_held():
    """Through the periphery without noise: the same product."""
    a, b = normal(2, 3, 8), normal(2, 8, 5, seed=1)
    for node in (clipformer(sigma=0.1, alpha=1), {"write": "lognormal_g", "numbers": {**MAPPING, "write.sigma": 0.1}}):
        plain = dynamic(a, b, **node)
        read = dynamic(a, b, **{**node, "numbers": {**node["numbers"], "read.output_noise": 0.0}}, tile_rows=3)
        np.testing.assert_allclose(read, plain, rtol=1e-4, atol=1e-5)
