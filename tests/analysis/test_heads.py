"""Heads: what one head costs, how many bits it holds, and how far it looks."""

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest

from emu import Bench, Trial, rewrite
from emu.analysis.heads import attention_distances, distance_sums, draw_distances, draw_heads, heads, patch_grid
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.statistics import crossed


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(
        model_path("digits_vit"), data_path("digits_test"), device="int8_flips", set={"faults.ber": 0.05}, samples=50
    )


@pytest.fixture(scope="module")
def table(bench: Bench) -> pd.DataFrame:
    return heads(bench, chips=3, first_seed=2).table


def attention_of(name: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The attention of each layer, `[samples, heads, tokens, tokens]`, from the exported model itself."""
    model = onnx.load(model_path(name))
    outputs = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    for output in outputs:
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(model.SerializeToString()).run(outputs, feeds)


def test_a_head_costs_what_trials_with_only_it_lose(bench: Bench, table: pd.DataFrame) -> None:
    lost = [bench.clean.accuracy - bench.run(Trial(seed, head=3, only="layer=0")).accuracy for seed in (2, 3, 4)]
    row = table[(table["layer"] == 0) & (table["head"] == 3)].iloc[0]
    assert row["loss"] == pytest.approx(np.mean(lost))
    values, clean = [bench.run(Trial(seed, head=3, only="layer=0")).values for seed in (2, 3, 4)], bench.clean.values
    assert clean is not None
    found = crossed(clean.astype(float) - np.array(values, float), -1, 1)
    assert (row["low"], row["high"]) == pytest.approx((found.low, found.high))
    assert len(table) == 4 * 4


def test_bits_of_a_head_are_its_share_of_the_four_projections(table: pd.DataFrame) -> None:
    assert (table["bits"] == 4 * 48 * 48 // 4 * 8).all()
    np.testing.assert_allclose(table["loss_per_megabit"], table["loss"] / (18432 / 1e6))


def test_a_device_without_bits_has_no_loss_per_bit() -> None:
    analog = Bench(
        model_path("digits_vit"), data_path("digits_test"), device="rram", only="layer=1 component=query", samples=20
    )
    found = heads(analog, chips=1).table
    assert found["layer"].unique().tolist() == [1]
    assert found["bits"].isna().all()
    assert (found["distance"] > 0).all()  # attention products are digital, and looked at all the same
    found = heads(analog, chips=1, attention=model_path("digits_vit")).table
    assert found["distance"].notna().all()


@pytest.mark.parametrize(
    ("grid", "patch", "tokens", "weight", "distance"),
    [
        ((24, 24), 16, 576, 1 / 576, 200.048),
        ((14, 14), 16, 196, 1 / 196, 116.492),
        ((12, 12), 32, 144, 1 / 144, 199.506),
        ((2, 2), 16, 4, 1 / 4, 13.656854),
        ((2, 2), 16, 5, 1 / 5, 10.925483),  # what falls on the class token is left out, nothing is normalized again
    ],
)
def test_uniform_attention_has_the_distances_of_its_grid(
    grid: tuple[int, int], patch: int, tokens: int, weight: float, distance: float
) -> None:
    total, queries = distance_sums(np.full((2, 1, tokens, tokens), weight), grid)
    assert queries == 2 * grid[0] * grid[1]
    assert patch * total[0] / queries == pytest.approx(distance, rel=5e-6)


def test_distances_of_text_are_those_of_positions_of_queries_that_count() -> None:
    attention = np.zeros((1, 1, 3, 3))
    attention[0, 0] = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    total, queries = distance_sums(attention, None, np.array([[1, 1, 0]]))
    assert (total[0], queries) == (2, 2)


@pytest.mark.parametrize(
    ("tokens", "image", "grid"),
    [
        (197, (224, 224), (14, 14)),
        (198, (224, 224), (14, 14)),
        (577, (384, 384), (24, 24)),
        (17, (8, 8), (4, 4)),
        (201, (224, 224), (14, 14)),
        (9, (32, 64), (2, 4)),
        (100, (224, 224), (10, 10)),
        (140, (224, 224), None),
    ],
)
def test_patches_are_square_and_few_tokens_are_none(
    tokens: int, image: tuple[int, int], grid: tuple[int, int] | None
) -> None:
    assert patch_grid(tokens, image) == grid


def test_distances_of_images_are_those_of_the_exported_model(bench: Bench, table: pd.DataFrame) -> None:
    attention = attention_of("digits_vit", {"pixel_values": bench.dataset.arrays["pixel_values"]})
    place = [(patch // 4, patch % 4) for patch in range(16)]
    distance = np.array([[np.hypot(a - c, b - d) for c, d in place] for a, b in place])
    for layer, probabilities in enumerate(attention):
        expected = (probabilities[:, :, 1:, 1:] * distance).sum(axis=3).mean(axis=(0, 2))
        rows = table[table["layer"] == layer].sort_values("head")
        np.testing.assert_allclose(rows["distance"], expected, rtol=1e-5)
        np.testing.assert_allclose(rows["distance_px"], 2 * expected, rtol=1e-5)
        assert set(rows["unit"]) == {"patches"}


def test_distances_of_text_leave_masked_queries_out() -> None:
    text = Bench(model_path("listops_bert"), data_path("listops_test"), device="ideal", samples=30)
    table = attention_distances(model_path("listops_bert"), text.dataset)
    feeds = {name: text.dataset.arrays[name] for name in ("input_ids", "attention_mask")}
    queries = feeds["attention_mask"].astype(bool)
    apart = np.abs(np.arange(32)[:, None] - np.arange(32))
    for layer, probabilities in enumerate(attention_of("listops_bert", feeds)):
        looked = (probabilities * apart).sum(axis=3)  # [samples, heads, queries]
        expected = [looked[:, head][queries].mean() for head in range(4)]
        rows = table[table["layer"] == layer].sort_values("head")
        np.testing.assert_allclose(rows["distance"], expected, rtol=1e-5)
        assert set(rows["unit"]) == {"tokens"}
        assert rows["distance_px"].isna().all()


def test_distances_are_of_the_undisturbed_model(bench: Bench, table: pd.DataFrame) -> None:
    strong = rewrite(model_path("digits_vit"), device="rram", set={"program.sigma": 3})
    found = attention_distances(strong, bench.dataset)
    np.testing.assert_allclose(found["distance"], table["distance"], rtol=1e-5)


def test_a_model_without_heads_on_the_device_is_refused() -> None:
    bench = Bench(
        model_path("digits_vit"), data_path("digits_test"), device="rram", only="component=ffn_up", samples=10
    )
    with pytest.raises(InputError, match="heads"):
        heads(bench)


def test_figures_show_every_head(table: pd.DataFrame) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_heads(axes, table)
    assert len(axes.texts) == 16
    axes = Figure().add_subplot()
    draw_distances(axes, table)
    assert axes.get_xlabel() == "mean attention distance (pixels)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"layer {layer}" for layer in range(4)]
