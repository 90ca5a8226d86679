"""Convolutions are products of their windows: every group an array, whatever its stride, padding and dilation."""

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from emu.cli import app
from emu.rewriter import rewrite
from emu.runtime import session

from .small import assert_same_results, attributes, crossbars, initializer, model, values


def convolution(settings: str, image: tuple[int, ...], kernel: tuple[int, ...], free: bool = False):
    sizes = ["batch", str(image[1]), *(f"d{i}" if free else str(size) for i, size in enumerate(image[2:]))]
    return model(
        f"y = Conv <{settings}> (x, w, b)",
        inputs=f"float[{', '.join(sizes)}] x",
        outputs=f"float[{', '.join('ncdef'[: len(image)])}] y",
        w=values(*kernel, seed=1),
        b=values(kernel[0], seed=2),
    )


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("ops", ["native", "python"])
@pytest.mark.parametrize(
    ("settings", "image", "kernel", "held", "window"),
    [
        ("strides = [1, 1]", (2, 3, 7, 6), (5, 3, 1, 1), (3, 5), "1,1,1,0,0;1,1,1,0,0"),
        ("strides = [2, 2]", (2, 3, 7, 6), (5, 3, 1, 1), (3, 5), "1,2,1,0,0;1,2,1,0,0"),
        (
            "strides = [4, 4], pads = [3, 3, 3, 3]",
            (2, 3, 16, 13),
            (5, 3, 7, 7),
            (147, 5),
            "7,4,1,3,3;7,4,1,3,3",
        ),
        ("strides = [2, 1], pads = [1, 0, 2, 1]", (2, 3, 7, 6), (5, 3, 3, 2), (18, 5), "3,2,1,1,2;2,1,1,0,1"),
        ("dilations = [2, 3]", (2, 3, 9, 9), (5, 3, 3, 2), (18, 5), "3,1,2,0,0;2,1,3,0,0"),
        ("group = 4, pads = [1, 1, 1, 1]", (2, 4, 6, 5), (4, 1, 3, 3), (4, 9, 1), "3,1,1,1,1;3,1,1,1,1"),
        ("group = 2", (2, 4, 6, 5), (6, 2, 1, 1), (2, 2, 3), "1,1,1,0,0;1,1,1,0,0"),
        ("pads = [1, 1]", (2, 8, 11), (6, 8, 3), (24, 6), "3,1,1,1,1"),
        ("strides = [2, 2, 2]", (2, 3, 4, 5, 6), (5, 3, 2, 2, 2), (24, 5), "2,2,1,0,0;2,2,1,0,0;2,2,1,0,0"),
    ],
)
def test_a_convolution_is_the_product_of_its_windows(settings, image, kernel, held, window, free, ops):
    original = convolution(settings, image, kernel, free)
    feeds = {"x": values(*image)}
    rewritten = assert_same_results(original, feeds, {"x": values(1, *image[1:])})
    node = crossbars(rewritten)["y"]
    assert initializer(rewritten, node.input[1]).shape == held
    assert attributes(node)["window"] == window
    plain = session(original.SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(session(rewritten, ops=ops).run(None, feeds)[0], plain, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_the_image_decides_is_written_out(padding):
    original = convolution(f'auto_pad = "{padding}", strides = [2, 2]', (2, 3, 7, 6), (5, 3, 3, 4))
    assert_same_results(original, {"x": values(2, 3, 7, 6)})


def test_padding_that_only_a_run_decides_leaves_a_convolution_digital():
    body = 'c = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) p = GlobalAveragePool(c) f = Flatten(p) '
    original = model(body + "y = MatMul(f, v)", inputs="float[batch, 3, h, k] x", w=values(5, 3, 3, 3), v=values(5, 3))
    (skipped,) = rewrite(original, device="ideal").manifest.skipped
    assert (skipped.node, skipped.reason) == ("c", "its padding depends on a free size of the image (auto_pad)")


def test_counts_of_a_grouped_convolution_are_those_of_all_groups():
    original = convolution("group = 2, pads = [1, 1, 1, 1]", (2, 4, 6, 5), (6, 2, 3, 3))
    (site,) = rewrite(original, only="*").manifest.sites
    assert (site.stack, site.shape, site.parameters) == (2, (18, 3), 2 * 18 * 3)
    assert site.macs == 6 * 5 * 2 * 18 * 3


def test_inspect_shows_how_many_arrays_a_stack_has(tmp_path):
    path = tmp_path / "grouped.onnx"
    onnx.save(convolution("group = 2, pads = [1, 1, 1, 1]", (2, 4, 6, 5), (6, 2, 3, 3)), path)
    lines = CliRunner().invoke(app, ["inspect", str(path)]).stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("index"))
    row = dict(zip(lines[head].split(), lines[head + 1].split(), strict=True))
    assert (row["shape"], row["stack"], row["parameters"]) == ("18x3", "2", "108")


@pytest.mark.parametrize("settings", ["group = 2, pads = [1, 1, 1, 1]", "strides = [2, 2]"])
def test_a_convolution_has_noise_of_its_own_in_every_group_and_place(settings):
    kernel = (6, 2, 3, 3) if "group" in settings else (6, 4, 3, 3)
    original = convolution(settings, (2, 4, 11, 11), kernel)
    feeds = {"x": np.ones((4, 4, 11, 11), np.float32)}
    clean = session(original.SerializeToString()).run(None, feeds)[0]
    noisy = session(rewrite(original, device="rram_adc"))
    whole = noisy.run(None, feeds)[0]
    difference = (whole - clean)[:, :, 1:-1, 1:-1]
    # Equal inputs everywhere: without noise of its own, a channel would have one value in all places.
    assert (difference.std(axis=(2, 3)) > 0).all()
    assert (difference.std(axis=1) > 0).all()
    halves = [
        noisy.run(None, {"x": feeds["x"][start : start + 2], "emu.sample": np.int64(start)})[0] for start in (0, 2)
    ]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)


def test_a_transposed_convolution_whose_stride_is_its_kernel_is_a_product_of_pixels():
    for sides, image in (([2, 3], (2, 4, 3, 5)), ([4], (2, 4, 6))):
        original = model(
            f"y = ConvTranspose <strides = {sides}> (x, w, b)",
            inputs=f"float[batch, {', '.join(map(str, image[1:]))}] x",
            outputs=f"float[{', '.join('ncde'[: len(image)])}] y",
            w=values(4, 5, *sides, seed=1),
            b=values(5, seed=2),
        )
        rewritten = assert_same_results(original, {"x": values(*image)})
        weight = initializer(rewritten, crossbars(rewritten)["y"].input[1])
        assert weight.shape == (4, 5 * int(np.prod(sides)))


def test_a_transposed_convolution_with_overlap_stays_digital_and_says_how_much_that_is():
    original = model(
        "c = ConvTranspose <strides = [1, 1]> (x, w) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, v)",
        inputs="float[batch, 4, 3, 3] x",
        w=values(4, 5, 2, 2),
        v=values(5, 3),
    )
    manifest = rewrite(original, device="ideal").manifest
    (skipped,) = manifest.skipped
    assert "blocks overlap" in skipped.reason
    assert skipped.macs == 4 * 9 * 5 * 4
    assert manifest.digital_share == pytest.approx(720 / (720 + 15))


@pytest.mark.parametrize("sides", [[2], [2, 3]])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_of_groups_is_a_stack(groups, sides):
    original = model(
        f"y = ConvTranspose <strides = {sides}, group = {groups}> (x, w, b)",
        inputs=f"float[batch, 4, {', '.join(['5'] * len(sides))}] x",
        outputs=f"float[{', '.join('abcd'[: len(sides) + 2])}] y",
        w=values(4, 6 // groups, *sides),
        b=values(6),
    )
    rewritten = assert_same_results(original, {"x": values(3, 4, *[5] * len(sides))})
    assert len(crossbars(rewritten)) == 1


@pytest.mark.parametrize(
    "kernel", ["k = Mul(w, w)", "q, s, z = DynamicQuantizeLinear(w) k = DequantizeLinear(q, s, z)", "k = Transpose(w)"]
)
def test_the_kernel_of_a_transposed_convolution_may_be_computed(kernel):
    original = model(
        f'{kernel} y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, k)',
        inputs="float[batch, 2, 5, 6] x",
        outputs="float[a, b, c, d] y",
        w=values(2, 2, 2, 2),
    )
    assert len(crossbars(assert_same_results(original, {"x": values(3, 2, 5, 6)}))) == 1
