"""The operators of the domain `emu` as plain functions, and what one chip holds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.contract.codes import Codes, numbers_of, read_codes
from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT, QUANTIZED, STORED
from emu.contract.structure import Controls, Structure, check_controls, parse_structure
from emu.reference import faults as bit_faults
from emu.reference import windows
from emu.reference.mapping import changes_targets, clips_to_scale, largest
from emu.reference.periphery import Trace, read
from emu.reference.places import (
    CellsOfRows,
    Places,
    check_places,
    keys_that_count,
    places,
    rows_of_operand,
    samples_along,
)
from emu.reference.programming import DeviceArray
from emu.reference.storing import Stored, stored, stored_operand


def crossbar_matmul(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    ranges: ArrayLike,
    faults: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike,
    position: ArrayLike | None = None,
    head: ArrayLike = -1,
    *,
    trace: Trace | None = None,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return Y of `emu::CrossbarMatMul`, float32 [..., N].

    x: float32 [..., K], rank 2 or more; w: float32 [K, N]; the controls and attributes as in `docs/operators.md`.
    Or a stack of matrices: x [..., G, M, K], [..., 1, M, K] or [M, K], w [G, K, N]; the result is [..., G, M, N].
    Or with the attribute `window` a convolution: x [B, G C, d1, ..], K = C times the places of the window, the result
    is [B, G N, d1', ..].
    A `trace` learns which outputs another implementation may decide otherwise.
    Raises InputError for a wrong type, rank, shape, range, attribute or entry.
    """
    structure = parse_structure(STORED, attributes)
    controls = check_controls(structure, device, strength, ranges, faults, seed, read_seed, sample, position, head=head)
    _check_operand(structure, "X", x, "rank 2 or more", x.ndim >= 2)
    _check_weights(structure, w)
    return _stored_product(x, w, lambda: _arrays(w, structure, controls), structure, controls, trace, "W")


def crossbar_matmul_quantized(
    x: NDArray[np.float32],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    ranges: ArrayLike,
    faults: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike,
    position: ArrayLike | None = None,
    head: ArrayLike = -1,
    *,
    trace: Trace | None = None,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return Y of `emu::CrossbarMatMulQuantized`, float32 [..., N].

    x: float32 [..., K], rank 2 or more; codes: int8 [K, N], of 16 bits [K, N, 2]; scale and zero_point: float32 [],
    [N] or, with the attribute `block_rows` b > 0, [ceil(K / b), N]; for a stack of codes [G, K, N] [], [G, N] or
    [G, ceil(K / b), N]; the controls and attributes as in `docs/operators.md`.
    Raises InputError for a wrong type, rank, shape, range, attribute or entry, or a code that needs more bits.
    """
    structure = parse_structure(QUANTIZED, attributes)
    controls = check_controls(structure, device, strength, ranges, faults, seed, read_seed, sample, position, head=head)
    _check_operand(structure, "X", x, "rank 2 or more", x.ndim >= 2)
    held_codes = _codes(codes, structure)
    _check_parameters(held_codes, scale, zero_point, structure)
    w = numbers_of(held_codes, scale, zero_point, structure.block_rows)
    _check_weights(structure, w)

    def held() -> dict[tuple[int, ...], Stored]:
        flipped, zeroed = bit_faults.flipped_codes(held_codes, structure, controls)
        faulty = numbers_of(flipped, scale, zero_point, structure.block_rows)
        return _stored(w, np.where(zeroed, np.float32(0), faulty), structure, controls)

    return _stored_product(x, w, held, structure, controls, trace, "codes")


def crossbar_matmul_dynamic(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    ranges: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike,
    position: ArrayLike | None = None,
    keys: ArrayLike | None = None,
    head: ArrayLike = -1,
    *,
    trace: Trace | None = None,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return Y of `emu::CrossbarMatMulDynamic`, float32 [..., M, N].

    a: float32 [..., M, K], b: float32 [..., K, N], rank 2 or more, broadcast as in MatMul; the controls and attributes
    as in `docs/operators.md`. A `trace` learns which outputs another implementation may decide otherwise.
    Raises InputError for a wrong type, rank, shape, range, attribute or entry.
    """
    structure = parse_structure(DYNAMIC, attributes)
    controls = check_controls(structure, device, strength, ranges, None, seed, read_seed, sample, position, keys, head)
    _check_operand(structure, "A", a, "rank 2 or more", a.ndim >= 2)
    _check_operand(structure, "B", b, "rank 2 or more", b.ndim >= 2)
    _check_products(structure, a, b, "A", "B")
    structure.check_range_tiles(len(structure.row_tiles(b.shape[-2])), "B")
    return _crossbar(a, b, None, structure, controls, trace)


def faulty_weight(
    w: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    faults: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    head: ArrayLike,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return W' of `emu::FaultyWeight`: what an array holds for a stored tensor that feeds no product.

    w: float32, rank 1 or more; the result has its shape. With a head of 0 or more it is w.
    Raises InputError for a wrong type, rank, range, attribute or entry.
    """
    structure = parse_structure(FAULTY_WEIGHT, attributes)
    controls = check_controls(structure, device, strength, None, faults, seed, read_seed, head=head)
    _check_weights(structure, w, least_rank=1)
    if controls.strength == 0 or controls.head is not None or w.size == 0:
        return w.copy()
    return _arrays(w.reshape(-1, w.shape[-1]), structure, controls)[()].weights.reshape(w.shape).copy()


def stored_weight(
    w: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    faults: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return W' of `emu::CrossbarMatMul`, of the shape of w: what the array of one chip holds, in units of weights.

    w: float32 [K, N] or [G, K, N]; the controls and attributes as in `docs/operators.md`. With strength 0 it is w.
    Raises InputError as the operator does.
    """
    structure = parse_structure(STORED, attributes)
    controls = check_controls(structure, device, strength, None, faults, seed, read_seed)
    _check_weights(structure, w)
    if controls.strength == 0 or w.size == 0:
        return w.copy()
    arrays = _arrays(w, structure, controls)
    return np.array([arrays[index].weights for index in np.ndindex(w.shape[:-2])]).reshape(w.shape)


def flipped_bits(
    w_or_codes: NDArray[np.float32] | Codes,
    device: ArrayLike,
    strength: ArrayLike,
    faults: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    *,
    zero_point: ArrayLike = 0.0,
    **attributes: int | str,
) -> NDArray[np.int64]:
    """Return the bits that flip in the array of one chip, int64 [F], numbered and in the order of a list of faults.

    w_or_codes: float32 [K, N] or [G, K, N] with the attributes of `CrossbarMatMul`, or codes of that shape, int8 or
    int16, with the attributes of `CrossbarMatMulQuantized`; the zero points of codes, which broadcast to them, matter
    only if words are set to zero. As a list, this and `stuck_cells` give the same W' again.
    Raises InputError as the operators do.
    """
    is_codes = w_or_codes.dtype.kind == "i"
    structure = parse_structure(QUANTIZED if is_codes else STORED, attributes)
    controls = check_controls(structure, device, strength, None, faults, seed, read_seed)
    if controls.strength == 0 or w_or_codes.size == 0:
        return np.zeros(0, dtype=np.int64)
    if is_codes:
        codes = cast(Codes, w_or_codes)
        zero = np.broadcast_to(np.asarray(zero_point, dtype=np.float32), codes.shape)
        return bit_faults.flips_of_codes(codes, zero, structure, controls)
    w = w_or_codes.astype(np.float32)
    _check_weights(structure, w)
    return bit_faults.flips_of_weights(w, structure, controls)


def stuck_cells(
    w_or_codes: NDArray[np.float32] | Codes,
    device: ArrayLike,
    strength: ArrayLike,
    faults: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    **attributes: int | str,
) -> NDArray[np.int64]:
    """Return the cells that are stuck in the array of one chip, int64 [F], numbered as in a list of faults.

    Operands and errors as for `flipped_bits`; only their shape matters.
    """
    structure = parse_structure(QUANTIZED if w_or_codes.dtype.kind == "i" else STORED, attributes)
    controls = check_controls(structure, device, strength, None, faults, seed, read_seed)
    if controls.strength == 0 or w_or_codes.size == 0:
        return np.zeros(0, dtype=np.int64)
    listed = controls.faults[controls.faults % 256 >= 64]
    if not structure.has_stuck_cells:
        return np.sort(listed)
    *stack, rows, columns = w_or_codes.shape
    lists = []
    for matrix in range(math.prod(stack)):
        for weight_slice in range(structure.weight_slices):
            for negative in (False, True) if structure.has_pairs else (False,):
                array = DeviceArray(structure, controls, rows, columns, weight_slice, negative, matrix=matrix)
                uniforms = array.stuck_uniforms()
                lists.append(bit_faults.stuck_list(uniforms, weight_slice, negative, controls, matrix))
    random = np.concatenate(lists)
    # A cell that is on the list is stuck as it says there.
    return np.sort(np.concatenate([random[~np.isin(random // 2, listed // 2)], listed]))


def _arrays(w: NDArray[np.float32], structure: Structure, controls: Controls) -> dict[tuple[int, ...], Stored]:
    """Return what the arrays hold of float weights, [K, N] or [G, K, N], by the index of the matrix."""
    return _stored(w, bit_faults.flipped_weights(w, structure, controls), structure, controls)


def _stored(
    w: NDArray[np.float32], faulty: NDArray[np.float32], structure: Structure, controls: Controls
) -> dict[tuple[int, ...], Stored]:
    return {
        index: stored(w[index], faulty[index], structure, controls, matrix)
        for matrix, index in enumerate(np.ndindex(w.shape[:-2]))
    }


def _codes(stored_as: NDArray[np.int8], structure: Structure) -> Codes:
    """Return the codes [K, N] or [G, K, N] of the input, which are such that so many bits hold them."""
    two_bytes = structure.code_bits > 8
    if (
        stored_as.dtype != np.int8
        or stored_as.ndim - two_bytes not in (2, 3)
        or (two_bytes and stored_as.shape[-1] != 2)
    ):
        expected = "[K, N, 2] or [G, K, N, 2]" if two_bytes else "[K, N] or [G, K, N]"
        raise structure.error(
            f"input 'codes' is {stored_as.dtype} {list(stored_as.shape)}, expected int8 {expected} for codes of "
            f"{structure.code_bits} bits."
        )
    codes = read_codes(stored_as, structure.code_bits)
    limit = 2 ** (structure.code_bits - 1)
    if codes.size and not -limit <= int(codes.min()) <= int(codes.max()) < limit:
        raise structure.error(f"input 'codes' holds codes that need more than {structure.code_bits} bits.")
    return codes


def _check_parameters(
    codes: Codes, scale: NDArray[np.float32], zero_point: NDArray[np.float32], structure: Structure
) -> None:
    """Check that scale and zero point have a shape that fits the codes."""
    *stack, rows, columns = codes.shape
    block = structure.block_rows
    expected = (*stack, -(-rows // block), columns) if block else () if scale.ndim == 0 else (*stack, columns)
    if scale.shape != expected or zero_point.shape != expected:
        raise structure.error(
            f"inputs 'scale' {list(scale.shape)} and 'zero_point' {list(zero_point.shape)} do not fit codes "
            f"{list(codes.shape)}, expected {list(expected)}."
        )


def _stored_product(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    held: Callable[[], dict[tuple[int, ...], Stored]],
    structure: Structure,
    controls: Controls,
    trace: Trace | None,
    w_name: str,
) -> NDArray[np.float32]:
    """Return the product of rows of x, or of what a window cuts out of images x, with a constant w."""
    matrices = len(w) if w.ndim == 3 else 1
    structure.check_range_tiles(matrices * len(structure.row_tiles(w.shape[-2])), w_name)
    if not structure.window:
        _check_products(structure, x, w, "X", w_name)
        return _crossbar(x, w, held, structure, controls, trace)
    stack = w if w.ndim == 3 else w[None]
    rows, positions = windows.rows_of(x, stack.shape, structure)

    def image(y: NDArray[Any]) -> NDArray[Any]:
        return np.swapaxes(y, -1, -2).reshape(len(x), -1, *positions)

    def held_by_stack() -> dict[tuple[int, ...], Stored]:
        arrays = held()
        return arrays if w.ndim == 3 else {(0,): arrays[()]}

    # Also a single group has its dimension here, which is that of the matrices and not the one of the samples.
    y = _crossbar(rows, stack, held_by_stack, structure, controls, trace)
    if trace is not None:
        trace.undecided = image(trace.undecided)
    return image(y)


def _crossbar(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    held: Callable[[], dict[tuple[int, ...], Stored]] | None,
    structure: Structure,
    controls: Controls,
    trace: Trace | None,
) -> NDArray[np.float32]:
    """Return the product of x [..., M, K] and w [..., K, N] in which strength and head say what is disturbed.

    `held` makes what the arrays hold of a constant w; None for an operand that is written for every sample.
    """
    batch = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    shape = (*batch, x.shape[-2], w.shape[-1])
    _check_samples(shape[:-1], _sample_axis_of_y(x, w.shape, structure), structure, controls)
    if held is None:
        _check_samples(w.shape[:-2], min(structure.sample_axis, 0), structure, controls)
    head = controls.head
    if trace is not None:
        trace.undecided = np.zeros(shape, dtype=np.bool_)
    is_empty = math.prod((*shape, w.shape[-2])) == 0
    if is_empty or controls.strength == 0 or (head is not None and structure.head_axis == "none"):
        return _exact(x, w)
    if head is None:
        return _disturbed(x, w, held, structure, controls, trace)
    if structure.head_axis == "input":
        of_head = np.arange(w.shape[-2]) // (w.shape[-2] // structure.heads) == head
        zero = np.float32(0)
        disturbed = _disturbed(np.where(of_head, x, zero), w, held, structure, controls, trace)
        return _without_lost_rows(_exact(np.where(of_head, zero, x), w) + disturbed, x, structure)
    if structure.head_axis == "output":
        group = w.shape[-1] // structure.head_groups
        of_head = np.arange(w.shape[-1]) % group // (group // structure.heads) == head
    elif held is not None:
        of_head = (np.arange(len(w)) % structure.heads == head)[:, None, None]
    else:
        of_head = (places(batch, structure.sample_axis, controls).within % structure.heads == head)[..., None, None]
    disturbed = _disturbed(x, w, held, structure, controls, trace)
    if trace is not None:
        trace.undecided &= of_head
    y = np.where(of_head, disturbed, _exact(x, w))
    return y if structure.head_axis == "matrix" else _without_lost_rows(y, x, structure)


def _without_lost_rows(y: NDArray[np.float32], x: NDArray[np.float32], structure: Structure) -> NDArray[np.float32]:
    """Return Y with NaN in the rows of which a part was read and whose X is not finite."""
    if not structure.has_periphery:
        return y
    return np.where(np.isfinite(x).all(axis=-1, keepdims=True), y, np.float32(np.nan))


def _exact(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product without any crossbar, summed in float64, rounded once."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN pass through
        product: NDArray[np.float32] = np.matmul(x.astype(np.float64), w.astype(np.float64)).astype(np.float32)
    return product


def _disturbed(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    held: Callable[[], dict[tuple[int, ...], Stored]] | None,
    structure: Structure,
    controls: Controls,
    trace: Trace | None,
) -> NDArray[np.float32]:
    """Return the crossbar's product of x [..., M, K] and w [..., K, N], all of it."""
    leading = (*np.broadcast_shapes(x.shape[:-2], w.shape[:-2]), x.shape[-2])
    of_stack = _is_stack(w.shape, structure)
    check_places(leading, _sample_axis_of_y(x, w.shape, structure), structure, controls, of_stack)
    if held is not None:
        arrays = {index: _Held.whole(array, structure) for index, array in held().items()}
        return _through_arrays(x, arrays, w.shape, structure, controls, trace)
    if not structure.has_periphery and _writes_exactly(structure, controls):
        return _exact(x, w)
    lost = _lost_matrices(w, structure, controls)
    written = _written(np.where(lost, np.float32(0), w), structure, controls)
    return np.where(lost, np.float32(np.nan), _through_arrays(x, written, w.shape, structure, controls, trace))


def _through_arrays(
    x: NDArray[np.float32],
    arrays: dict[tuple[int, ...], "_Held"],
    w_shape: tuple[int, ...],
    structure: Structure,
    controls: Controls,
    trace: Trace | None,
) -> NDArray[np.float32]:
    """Return the product of x [..., M, K] with what the array of each matrix of W [..., K, N] holds."""
    shape = (*np.broadcast_shapes(x.shape[:-2], w_shape[:-2]), x.shape[-2], w_shape[-1])
    axis, of_stack = _sample_axis_of_y(x, w_shape, structure), _is_stack(w_shape, structure)
    where = places(shape[:-1], axis, controls, of_stack)
    if len(w_shape) == 2:  # one matrix serves every row, so all rows go through it together
        x, where = x.reshape(-1, x.shape[-1]), where.arranged(np.ravel)
    if not structure.has_periphery:
        weights = np.empty(w_shape, dtype=np.float32)
        for index, held in arrays.items():
            weights[index] = held.weights
        return _exact(x, weights).reshape(shape)

    batch = where.sample.shape[:-1]
    x = np.broadcast_to(x, batch + x.shape[-2:])
    y = np.zeros(where.sample.shape + w_shape[-1:], dtype=np.float32)
    undecided = np.zeros(y.shape, dtype=np.bool_)
    tolerance = trace.tolerance if trace is not None else None
    for index in np.ndindex(batch):
        own = index[len(index) - (len(w_shape) - 2) :]
        held = arrays[tuple(place if size > 1 else 0 for place, size in zip(own, w_shape[:-2], strict=True))]
        if held.array.weights.size:
            result = read(x[index][:, held.rows], held.array, held.structure, controls, where[index], tolerance)
            y[index][:, held.columns], undecided[index][:, held.columns] = result
    if trace is not None:
        trace.undecided = undecided.reshape(shape)
    return y.reshape(shape)


@dataclass(frozen=True)
class _Held:
    """What the array of one matrix holds: the matrix, or the part of it that counts."""

    array: Stored
    structure: Structure
    """That of the node, for the part."""
    rows: slice
    columns: slice
    weights: NDArray[np.float32]
    """Of the whole matrix, as a product without periphery finds it."""

    @staticmethod
    def whole(array: Stored, structure: Structure) -> "_Held":
        return _Held(array, structure, slice(None), slice(None), array.weights)


def _writes_exactly(structure: Structure, controls: Controls) -> bool:
    """Whether writing changes nothing."""
    if structure.write == "clipformer" or clips_to_scale(structure, controls) or changes_targets(structure, controls):
        return False
    varies = controls.numbers.get("write.sigma_device", 0) or "write.stuck_low" in controls.numbers
    return structure.write == "none" or not (controls.strength * controls.numbers["write.sigma"] or varies)


def _lost_matrices(b: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.bool_]:
    """Return which matrices of B [..., K, N] have no scale, because they are not finite, bool [..., 1, 1]."""
    where = _matrices(b, structure, controls)
    lost = np.zeros(b.shape[:-2], np.bool_)
    for index in np.ndindex(lost.shape):
        rows, columns, _ = keys_that_count(b.shape, int(where.of_batch[index]), structure, controls)
        lost[index] = not np.isfinite(b[index][rows, columns]).all()
    if structure.write_scaling == "sample":
        lost = np.isin(where.sample, where.sample[lost])
    return lost[..., None, None]


def _written(b: NDArray[np.float32], structure: Structure, controls: Controls) -> dict[tuple[int, ...], _Held]:
    """Return what the arrays hold of every matrix of B [..., K, N]; axis 0 of B carries the samples, or none."""
    where = _matrices(b, structure, controls)
    parts = {i: keys_that_count(b.shape, i, structure, controls) for i in np.unique(where.of_batch).tolist()}
    of_sample: dict[int, NDArray[np.float32]] = {}
    if structure.write_scaling == "sample":
        for number, (rows, columns, _) in parts.items():
            magnitude = np.abs(b[where.of_batch == number][:, rows, columns]).reshape(-1, 1)
            of_sample[number] = largest(magnitude, controls)
    arrays: dict[tuple[int, ...], _Held] = {}
    for index in np.ndindex(b.shape[:-2]):
        number = int(where.of_batch[index])
        rows, columns, first = parts[number]
        part, own = b[index][rows, columns], replace(structure, first_key=first)
        of_rows = rows_of_operand(where[index], own.first_row, len(part))
        normals, cells = partial(of_rows.normals, own, controls), CellsOfRows(of_rows, own, controls)
        array = stored_operand(part, normals, own, controls, of_sample.get(number), cells)
        weights = b[index].copy()
        weights[rows, columns] = array.weights
        arrays[index] = _Held(array, own, rows, columns, weights)
    return arrays


def _matrices(b: NDArray[np.float32], structure: Structure, controls: Controls) -> Places:
    """Return where the matrices of B [..., K, N] lie: `within` is their index within the sample."""
    return places(b.shape[:-2], min(structure.sample_axis, 0), controls)


def _is_stack(w_shape: tuple[int, ...], structure: Structure) -> bool:
    return structure.op != DYNAMIC and len(w_shape) > 2 and w_shape[0] > 1


def _sample_axis_of_y(x: NDArray[np.float32], w_shape: tuple[int, ...], structure: Structure) -> int:
    """Return the axis of Y that carries the samples: that of X, but for rows that go into every matrix of a stack."""
    rows_for_all = structure.op != DYNAMIC and x.ndim < len(w_shape)
    return structure.sample_axis + (1 if rows_for_all and structure.sample_axis >= 0 else 0)


def _check_samples(leading: tuple[int, ...], axis: int, structure: Structure, controls: Controls) -> None:
    """Check that the index of every sample of the batch fits a word of the counter."""
    if axis < 0 or axis >= len(leading):
        return
    last = controls.first_sample + samples_along(leading[axis], controls) - 1
    if last >= 2**32:
        raise structure.error(f"input 'sample' is such that the last sample is {last}, expected at most 2^32 - 1.")


def _check_operand(
    structure: Structure, name: str, value: NDArray[np.float32], expected: str, right_rank: bool
) -> None:
    if value.dtype != np.float32:
        raise structure.error(f"input '{name}' is {value.dtype}, expected float32.")
    if not right_rank:
        raise structure.error(f"input '{name}' has rank {value.ndim}, expected {expected}.")


def _check_weights(structure: Structure, w: NDArray[np.float32], least_rank: int = 2) -> None:
    """Check a constant W: its type, its rank (2 or 3, or `least_rank` and more), and that every weight is finite."""
    if least_rank == 2:
        _check_operand(structure, "W", w, "rank 2 or 3", w.ndim in (2, 3))
    else:
        _check_operand(structure, "W", w, f"rank {least_rank} or more", w.ndim >= least_rank)
    if not np.isfinite(w).all():
        raise structure.error("input 'W' has an infinite value or a NaN, expected finite weights.")


def _check_products(
    structure: Structure, x: NDArray[np.float32], w: NDArray[np.float32], x_name: str, w_name: str
) -> None:
    """Check that the operands fit each other, the sample axis and the heads."""
    k, n = w.shape[-2:]
    if x.shape[-1] != k:
        raise structure.error(
            f"input '{x_name}' has {x.shape[-1]} columns, expected {k}, the number of rows of '{w_name}'."
        )
    try:
        np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    except ValueError:
        raise structure.error(
            f"input '{w_name}' has shape {list(w.shape)}, "
            f"expected leading dimensions that broadcast with those of '{x_name}', {list(x.shape)}."
        ) from None
    if structure.sample_axis == 1 and x.ndim < 3:
        raise structure.error(f"input '{x_name}' has rank {x.ndim}, expected 3 or more because 'sample_axis' is 1.")
    if structure.op != DYNAMIC:
        _check_stack(structure, x, w.shape, w_name)
    if structure.head_axis == "output" and n % (structure.head_groups * structure.heads) != 0:
        raise structure.error(
            f"attribute 'heads' is {structure.heads} in {structure.head_groups} groups, "
            f"expected a divisor of the {n} columns of '{w_name}'."
        )
    if structure.head_axis == "input" and k % structure.heads != 0:
        raise structure.error(
            f"attribute 'heads' is {structure.heads}, expected a divisor of the {k} rows of '{w_name}'."
        )


def _check_stack(structure: Structure, x: NDArray[np.float32], w_shape: tuple[int, ...], w_name: str) -> None:
    """Check what only a stack of matrices, or only a single matrix, may have."""
    is_stack = len(w_shape) == 3
    if (structure.head_axis == "matrix" and not is_stack) or (structure.head_axis in ("output", "input") and is_stack):
        raise structure.error(
            f"attribute 'head_axis' is '{structure.head_axis}', expected another one for '{w_name}' {list(w_shape)}: "
            "'output' and 'input' are of one matrix, 'matrix' is of a stack."
        )
    if is_stack and w_shape[0] != 1 and x.ndim >= 3:
        if x.shape[-3] not in (1, w_shape[0]):
            raise structure.error(
                f"input 'X' has shape {list(x.shape)}, expected [..., {w_shape[0]}, M, K] or [..., 1, M, K] for "
                f"'{w_name}' {list(w_shape)}."
            )
        if structure.sample_axis == x.ndim - 3:
            raise structure.error(
                f"attribute 'sample_axis' is {structure.sample_axis}, expected another axis of X {list(x.shape)} than "
                f"that of the matrices of '{w_name}'."
            )
