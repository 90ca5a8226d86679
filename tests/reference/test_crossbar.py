"""The operators as a whole: strength, heads, samples, shapes, and the dynamic product."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.reference import Stream, Trace, run_time_normals

from .nodes import EVERYTHING_DYNAMIC, EVERYTHING_STORED, dynamic, normal, stored


def product(a: Any, b: Any) -> Any:
    """The exact product, float32."""
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)


def assert_same(y: Any, expected: Any) -> None:
    """Equal up to the rounding of a product that is summed in another order."""
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@given(
    leading=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    k=st.integers(1, 30),
    n=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_with_everything_off_a_stored_site_is_a_matmul(leading, k, n, seed):
    x, w = normal(*leading, k, seed=seed), normal(k, n, seed=seed + 1)
    np.testing.assert_allclose(stored(x, w, tile_rows=4), x.astype(np.float64) @ w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((5, 7), (7, 3)),
        ((2, 4, 5, 7), (2, 4, 7, 3)),
        ((2, 4, 5, 7), (2, 1, 7, 3)),
        ((2, 4, 5, 7), (7, 3)),
        ((5, 7), (2, 4, 7, 3)),
        ((2, 1, 5, 7), (4, 7, 3)),
    ],
)
def test_with_everything_off_a_dynamic_site_is_a_broadcast_matmul(a_shape, b_shape):
    a, b = normal(*a_shape), normal(*b_shape, seed=1)
    expected = np.matmul(a.astype(np.float64), b)
    np.testing.assert_allclose(dynamic(a, b), expected, rtol=1e-6, atol=1e-6)
    through_tiles = dynamic(a, b, numbers={"read.output_noise": 0.0}, tile_rows=3)
    np.testing.assert_allclose(through_tiles, expected, rtol=1e-5, atol=1e-5)


def test_strength_zero_is_the_exact_product():
    x, w, b = normal(2, 5, 23), normal(23, 10), normal(2, 23, 10)
    np.testing.assert_array_equal(stored(x, w, strength=0.0, **EVERYTHING_STORED), product(x, w))
    np.testing.assert_array_equal(dynamic(x, b, strength=0.0, **EVERYTHING_DYNAMIC), product(x, b))


def test_a_site_reads_its_own_strength():
    from .nodes import PLAIN_STORED, controls, crossbar_matmul

    x, w = normal(2, 23), normal(23, 10)
    for own, others in ((0.0, 1.0), (1.0, 0.0)):
        node = {**PLAIN_STORED, **controls({"read.output_noise": 0.1}, site=1, sites=3)}
        node["strength"] = np.array([others, own, others], dtype=np.float32)
        assert (crossbar_matmul(x, w, **node) == product(x, w)).all() == (own == 0)


def test_results_repeat_and_depend_on_each_seed():
    x, w = normal(4, 23), normal(23, 10)
    base = stored(x, w, seed=1, read_seed=2, **EVERYTHING_STORED)
    np.testing.assert_array_equal(stored(x, w, seed=1, read_seed=2, **EVERYTHING_STORED), base)
    for change in ({"seed": 3}, {"read_seed": 3}, {"sample": 100}, {"site": 1}):
        other = stored(x, w, **{"seed": 1, "read_seed": 2, **change}, **EVERYTHING_STORED)
        assert (other != base).mean() > 0.5, change


def test_noise_of_a_site_does_not_depend_on_how_many_sites_there_are():
    x, w = normal(4, 23), normal(23, 10)
    np.testing.assert_array_equal(
        stored(x, w, site=2, sites=3, **EVERYTHING_STORED), stored(x, w, site=2, sites=9, **EVERYTHING_STORED)
    )


# Samples: splitting a batch changes nothing, whatever carries the samples.


def test_a_batch_may_be_split_when_axis_0_carries_the_samples():
    x, w = normal(4, 6, 23), normal(23, 10)
    whole = stored(x, w, sample=10, **EVERYTHING_STORED)
    parts = [stored(x[i : i + 2], w, sample=10 + i, **EVERYTHING_STORED) for i in (0, 2)]
    assert_same(np.concatenate(parts), whole)
    assert (stored(x[2:], w, sample=10, **EVERYTHING_STORED) != whole[2:]).any()


def test_a_batch_may_be_split_when_tokens_are_flattened_into_axis_0():
    x, w = normal(4, 6, 23), normal(23, 10)
    whole = stored(x, w, sample=10, **EVERYTHING_STORED)
    flat = stored(x.reshape(24, 23), w, sample=[10, 4], **EVERYTHING_STORED)
    assert_same(flat.reshape(whole.shape), whole)
    parts = [stored(x[i : i + 2].reshape(12, 23), w, sample=[10 + i, 2], **EVERYTHING_STORED) for i in (0, 2)]
    assert_same(np.concatenate(parts), flat)


def test_a_batch_may_be_split_when_axis_1_carries_the_samples():
    x, w = normal(6, 4, 3, 23), normal(23, 10)
    whole = stored(x, w, sample=10, sample_axis=1, **EVERYTHING_STORED)
    parts = [stored(x[:, i : i + 2], w, sample=10 + i, sample_axis=1, **EVERYTHING_STORED) for i in (0, 2)]
    assert_same(np.concatenate(parts, axis=1), whole)
    transposed = stored(np.swapaxes(x, 0, 1), w, sample=10, **EVERYTHING_STORED)
    assert_same(np.swapaxes(transposed, 0, 1), whole)


def test_samples_side_by_side_on_axis_1_count_matrices_and_positions_as_the_page_says():
    """Two samples of f = 3 on axis 1: matrix i0 * 3 + i1 % 3, position i2."""
    x = np.zeros((4, 6, 2, 5), dtype=np.float32)
    y = stored(x, np.zeros((5, 7)), sample=[20, 2], sample_axis=1, numbers={"read.output_noise": 1.0})
    i0, i1, i2 = (index.ravel() for index in np.indices((4, 6, 2)))
    normals = run_time_normals(0, 0, 0, Stream.READ, 20 + i1 // 3, i0 * 3 + i1 % 3, i2, part=slice(0, 7))
    np.testing.assert_allclose(y.reshape(-1, 7), normals, rtol=1e-6)


def test_without_a_sample_axis_every_run_sees_sample_0():
    x, w = normal(6, 23), normal(23, 10)
    base = stored(x, w, sample=0, sample_axis=-1, **EVERYTHING_STORED)
    np.testing.assert_array_equal(stored(x, w, sample=[77, 3], sample_axis=-1, **EVERYTHING_STORED), base)
    y = stored(np.zeros((2, 3, 5)), np.zeros((5, 7)), sample=9, sample_axis=-1, numbers={"read.output_noise": 1.0})
    matrix, position = (index.ravel() for index in np.indices((2, 3)))
    normals = run_time_normals(0, 0, 0, Stream.READ, np.zeros(6, int), matrix, position, part=slice(0, 7))
    np.testing.assert_allclose(y.reshape(6, 7), normals, rtol=1e-6)


def test_an_axis_that_is_no_multiple_of_the_batch_holds_one_sample_per_index():
    x, w = normal(5, 23), normal(23, 10)
    np.testing.assert_array_equal(
        stored(x, w, sample=[7, 3], **EVERYTHING_STORED), stored(x, w, sample=7, **EVERYTHING_STORED)
    )


def test_a_dynamic_batch_may_be_split():
    a, b = normal(4, 3, 6, 13), normal(4, 3, 13, 7, seed=1)
    whole = dynamic(a, b, sample=10, **EVERYTHING_DYNAMIC)
    parts = [dynamic(a[i : i + 2], b[i : i + 2], sample=10 + i, **EVERYTHING_DYNAMIC) for i in (0, 2)]
    assert_same(np.concatenate(parts), whole)


def test_windows_of_a_sample_count_as_one_sample():
    """Four windows of each of two samples, folded into the leading dimension and apart, are the same product."""
    a, b = normal(2, 4, 3, 6, 13), normal(2, 4, 3, 13, 7, seed=1)
    apart = dynamic(a, b, sample=10, **EVERYTHING_DYNAMIC)
    folded = dynamic(a.reshape(8, 3, 6, 13), b.reshape(8, 3, 13, 7), sample=[10, 2], **EVERYTHING_DYNAMIC)
    assert_same(folded.reshape(apart.shape), apart)


def test_writes_are_indexed_by_matrix_and_row_within_the_sample():
    k, n = 4, 6
    identity = np.broadcast_to(np.eye(k), (2, 3, k, k))
    noise = dynamic(
        identity, np.ones((2, 3, k, n)), write="gauss_prop", numbers={"write.sigma": 0.1}, sample=5, seed=1, read_seed=2
    )
    for sample in range(2):
        for matrix in range(3):
            where = np.full(k, 5 + sample), np.full(k, matrix), np.arange(k)
            normals = run_time_normals(1, 2, 0, Stream.WRITE, *where, part=slice(0, n))
            np.testing.assert_allclose(noise[sample, matrix], 1 + 0.1 * normals, rtol=1e-5)


def test_axis_0_of_the_written_operand_carries_the_samples_whatever_the_axis_of_the_other():
    a = np.broadcast_to(np.eye(3), (4, 3, 3))
    values = dynamic(
        a, np.ones((4, 3, 6)), write="gauss_prop", numbers={"write.sigma": 0.1}, sample=[5, 2], sample_axis=1
    )
    for index in range(4):
        where = np.full(3, 5 + index // 2), np.full(3, index % 2), np.arange(3)
        normals = run_time_normals(0, 0, 0, Stream.WRITE, *where, part=slice(0, 6))
        np.testing.assert_allclose(values[index], 1 + 0.1 * normals, rtol=1e-5)


def test_both_devices_of_a_written_pair_have_their_own_streams():
    numbers = {"write.sigma": 0.3, "mapping.g_min_us": 1.0, "mapping.g_max_us": 11.0}
    values = dynamic(np.eye(4)[None], np.ones((1, 4, 6)), write="lognormal_g", numbers=numbers, read_seed=3)

    def theta(stream: Stream) -> Any:
        return 0.3 * run_time_normals(0, 3, 0, stream, *np.array([[0] * 4, [0] * 4, range(4)]), part=slice(0, 6))

    expected = 1.1 * np.exp(theta(Stream.WRITE)) - 0.1 * np.exp(theta(Stream.WRITE_NEGATIVE))
    np.testing.assert_allclose(values[0], expected, rtol=1e-5)


def test_a_shared_operand_is_written_once_for_all_that_read_it():
    b = normal(1, 1, 4, 6)
    values = dynamic(np.broadcast_to(np.eye(4), (2, 3, 4, 4)), b, write="gauss_prop", numbers={"write.sigma": 0.1})
    assert (values == values[0, 0]).all() and (values != b).all()


def test_one_matrix_of_rank_2_is_written_in_the_first_sample():
    values = dynamic(np.eye(4), np.ones((4, 6)), write="gauss_prop", numbers={"write.sigma": 0.1}, sample=[5, 2])
    normals = run_time_normals(0, 0, 0, Stream.WRITE, *np.array([[5] * 4, [0] * 4, range(4)]), part=slice(0, 6))
    np.testing.assert_allclose(values, 1 + 0.1 * normals, rtol=1e-5)


def test_dynamic_noise_is_redrawn_with_the_read_seed_and_the_sample():
    a, b = normal(2, 6, 13), normal(2, 13, 7)
    only_write = {"write": "lognormal_w", "numbers": {"write.sigma": 0.1}}
    base = dynamic(a, b, **only_write)
    assert (dynamic(a, b, read_seed=1, **only_write) != base).all()
    assert (dynamic(a, b, sample=1, **only_write) != base).all()


# Heads.


def _heads_differ(y: Any, exact: Any) -> Any:
    return np.abs(y - exact) > 1e-3


@pytest.mark.parametrize(("groups", "columns"), [(1, [3, 4, 5]), (3, [1, 5, 9])])
def test_an_output_head_disturbs_its_own_columns(groups, columns):
    x, w = normal(5, 23), normal(23, 12)
    head = {"head": 1, "heads": 4, "head_axis": "output", "head_groups": groups}
    y = stored(x, w, **head, **EVERYTHING_STORED)
    everything = stored(x, w, **EVERYTHING_STORED)
    others = np.setdiff1d(np.arange(12), columns)
    np.testing.assert_array_equal(y[:, columns], everything[:, columns])
    np.testing.assert_array_equal(y[:, others], product(x, w)[:, others])
    assert _heads_differ(y, product(x, w))[:, columns].mean() > 0.9


def test_an_input_head_disturbs_what_its_own_rows_contribute():
    x, w = normal(5, 24), normal(24, 10)
    y = stored(x, w, head=2, heads=4, head_axis="input", **EVERYTHING_STORED)
    own = np.zeros_like(x)
    own[:, 12:18] = x[:, 12:18]
    expected = product(x - own, w) + stored(own, w, **EVERYTHING_STORED)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert _heads_differ(y, product(x, w)).mean() > 0.9


def test_a_matrix_head_disturbs_its_own_matrices():
    a, b = normal(2, 4, 6, 13), normal(2, 4, 13, 7, seed=1)
    y = dynamic(a, b, head=3, heads=4, head_axis="matrix", **EVERYTHING_DYNAMIC)
    np.testing.assert_array_equal(y[:, :3], product(a, b)[:, :3])
    np.testing.assert_array_equal(y[:, 3], dynamic(a, b, **EVERYTHING_DYNAMIC)[:, 3])


def _disturbed_matrices(a_shape: tuple[int, ...], **changes: Any) -> list[bool]:
    """Which of the matrices of a product are disturbed by head 1 of 2."""
    a, b = normal(*a_shape, 13), normal(*a_shape[:-1], 13, 7, seed=1)
    y = dynamic(a, b, head=1, heads=2, head_axis="matrix", **changes, **EVERYTHING_DYNAMIC)
    return list(_heads_differ(y, product(a, b)).any(axis=(-2, -1)).ravel())


def test_matrices_count_heads_from_the_start_of_each_sample():
    """Two samples of three matrices: 0 1 2, 0 1 2; head 1 of 2 is every odd one."""
    assert _disturbed_matrices((6, 5), sample=[0, 2]) == [False, True, False] * 2


def test_matrices_count_heads_when_the_rows_carry_the_samples():
    """A [heads, samples, K]: the sample axis is M, which is not counted."""
    assert _disturbed_matrices((4, 5), sample_axis=1) == [False, True] * 2


def test_grouped_query_heads_share_one_head():
    x, w = normal(5, 23), normal(23, 12)
    shared = {"heads": 2, "head_axis": "output", "head_share": 3}
    for head in range(6):
        y = stored(x, w, head=head, **shared, **EVERYTHING_STORED)
        columns = _heads_differ(y, product(x, w)).any(axis=0)
        assert columns.tolist() == ([True] * 6 + [False] * 6 if head < 3 else [False] * 6 + [True] * 6)


def test_a_site_without_heads_is_exact_when_one_head_is_chosen():
    x, w = normal(5, 23), normal(23, 12)
    np.testing.assert_array_equal(stored(x, w, head=100, **EVERYTHING_STORED), product(x, w))


# Shapes at the edge.


@pytest.mark.parametrize("shape", [(0, 23), (0, 6, 23), (4, 0, 23)])
def test_an_empty_batch_gives_an_empty_output(shape):
    trace = Trace()
    y = stored(np.zeros(shape), normal(23, 10), trace=trace, **EVERYTHING_STORED)
    assert y.shape == trace.undecided.shape == (*shape[:-1], 10)
    assert y.dtype == np.float32


def test_an_empty_dynamic_batch_gives_an_empty_output():
    assert dynamic(np.zeros((0, 3, 6, 13)), np.zeros((0, 3, 13, 7)), **EVERYTHING_DYNAMIC).shape == (0, 3, 6, 7)


def test_no_rows_of_weights_give_zeros():
    assert not stored(np.zeros((2, 0)), np.zeros((0, 3)), **EVERYTHING_STORED).any()


@pytest.mark.parametrize("head", [{}, {"head": 0, "heads": 1, "head_axis": "input"}])
def test_a_single_weight_with_everything_on_stays_near_the_product(head):
    y = stored([[2.0]], [[-3.0]], **head, **EVERYTHING_STORED)
    assert y.shape == (1, 1) and abs(y[0, 0] + 6) < 3


def test_outputs_are_float32_and_inputs_are_left_alone():
    x, w = normal(2, 5, 23), normal(23, 10)
    x_before, w_before = x.copy(), w.copy()
    assert stored(x, w, **EVERYTHING_STORED).dtype == np.float32
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(w, w_before)


def test_both_operators_read_alike():
    """Without programming, a stored product and a dynamic one with the same matrix are the same array."""
    x, w = normal(1, 6, 23), normal(23, 10)
    np.testing.assert_allclose(
        stored(x, w, program="none", **{k: v for k, v in EVERYTHING_STORED.items() if k != "program"}),
        dynamic(x, w[None], write="none", **{k: v for k, v in EVERYTHING_DYNAMIC.items() if k != "write"}),
        rtol=1e-6,
    )
