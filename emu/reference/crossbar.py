"""The operators of the domain `emu` as plain functions."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.reference.periphery import Trace, read
from emu.reference.programming import programmed, scales, written
from emu.reference.structure import (
    DYNAMIC,
    FAULTY_WEIGHT,
    QUANTIZED,
    STORED,
    Controls,
    Structure,
    check_controls,
    parse_structure,
)


def crossbar_matmul(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike,
    head: ArrayLike,
    *,
    trace: Trace | None = None,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return Y of `emu::CrossbarMatMul`, float32 [..., N].

    x: float32 [..., K], rank 2 or more; w: float32 [K, N]; the controls and attributes as in `docs/operators.md`.
    A `trace` learns which outputs another implementation may decide otherwise.
    Raises InputError for a wrong type, rank, shape, range, attribute or entry.
    """
    structure = parse_structure(STORED, attributes)
    controls = check_controls(structure, device, strength, seed, read_seed, sample, head)
    _check_operand(structure, "X", x, "rank 2 or more", x.ndim >= 2)
    _check_operand(structure, "W", w, "rank 2", w.ndim == 2)
    _check_products(structure, x, w, "X", "W")
    return _crossbar(x, w, structure, controls, trace)


def crossbar_matmul_quantized(
    x: NDArray[np.float32],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike,
    head: ArrayLike,
    *,
    trace: Trace | None = None,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return Y of `emu::CrossbarMatMulQuantized`, float32 [..., N].

    x: float32 [..., K], rank 2 or more; codes: int8 [K, N]; scale and zero_point: float32 [], [N] or, with the
    attribute `block_rows` b > 0, [ceil(K / b), N]; the controls and attributes as in `docs/operators.md`.
    Raises InputError for a wrong type, rank, shape, range, attribute or entry, or a code that needs more bits.
    """
    structure = parse_structure(QUANTIZED, attributes)
    controls = check_controls(structure, device, strength, seed, read_seed, sample, head)
    _check_operand(structure, "X", x, "rank 2 or more", x.ndim >= 2)
    w = _dequantized(codes, scale, zero_point, structure)
    _check_products(structure, x, w, "X", "codes")
    return _crossbar(x, w, structure, controls, trace)


def faulty_weight(
    w: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
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
    controls = check_controls(structure, device, strength, seed, read_seed, head=head)
    _check_operand(structure, "W", w, "rank 1 or more", w.ndim >= 1)
    if controls.strength == 0 or controls.head is not None or w.size == 0:
        return w.copy()
    return programmed(w.reshape(-1, w.shape[-1]), structure, controls).reshape(w.shape).copy()


def crossbar_matmul_dynamic(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike,
    head: ArrayLike,
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
    controls = check_controls(structure, device, strength, seed, read_seed, sample, head)
    _check_operand(structure, "A", a, "rank 2 or more", a.ndim >= 2)
    _check_operand(structure, "B", b, "rank 2 or more", b.ndim >= 2)
    _check_products(structure, a, b, "A", "B")
    return _crossbar(a, b, structure, controls, trace)


def programmed_weight(
    w: NDArray[np.float32],
    device: ArrayLike,
    strength: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    **attributes: int | str,
) -> NDArray[np.float32]:
    """Return W' of `emu::CrossbarMatMul`, float32 [K, N]: what the crossbar holds after programming w, float32 [K, N].

    Raises InputError as the operator does.
    """
    structure = parse_structure(STORED, attributes)
    controls = check_controls(structure, device, strength, seed, read_seed)
    _check_operand(structure, "W", w, "rank 2", w.ndim == 2)
    return programmed(w, structure, controls).copy()


def _dequantized(
    codes: NDArray[np.int8], scale: NDArray[np.float32], zero_point: NDArray[np.float32], structure: Structure
) -> NDArray[np.float32]:
    """Return (code - zero_point) * scale, float32 [K, N]."""
    if codes.dtype != np.int8 or codes.ndim != 2:
        raise structure.error(f"input 'codes' is {codes.dtype} of rank {codes.ndim}, expected int8 of rank 2.")
    rows, columns = codes.shape
    block = structure.block_rows
    expected = (-(-rows // block), columns) if block else () if scale.ndim == 0 else (columns,)
    if scale.shape != expected or zero_point.shape != expected:
        raise structure.error(
            f"inputs 'scale' {list(scale.shape)} and 'zero_point' {list(zero_point.shape)} do not fit codes "
            f"{list(codes.shape)}, expected {list(expected)}."
        )
    limit = 2 ** (structure.code_bits - 1)
    if codes.size and not -limit <= int(codes.min()) <= int(codes.max()) < limit:
        raise structure.error(f"input 'codes' holds codes that need more than {structure.code_bits} bits.")
    if block:
        scale, zero_point = (np.repeat(each, block, axis=0)[:rows] for each in (scale, zero_point))
    return ((codes.astype(np.float32) - zero_point) * scale).astype(np.float32)


def _crossbar(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
    trace: Trace | None,
) -> NDArray[np.float32]:
    """Return the product of x [..., M, K] and w [..., K, N] in which strength and head say what is disturbed."""
    batch = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    shape = (*batch, x.shape[-2], w.shape[-1])
    head = controls.head
    if trace is not None:
        trace.undecided = np.zeros(shape, dtype=np.bool_)
    is_empty = math.prod((*shape, w.shape[-2])) == 0
    if is_empty or controls.strength == 0 or (head is not None and structure.head_axis == "none"):
        return _exact(x, w)
    if head is None:
        return _disturbed(x, w, structure, controls, trace)
    if structure.head_axis == "input":
        of_head = np.arange(w.shape[-2]) // (w.shape[-2] // structure.heads) == head
        zero = np.float32(0)
        disturbed = _disturbed(np.where(of_head, x, zero), w, structure, controls, trace)
        return _exact(np.where(of_head, zero, x), w) + disturbed
    if structure.head_axis == "output":
        group = w.shape[-1] // structure.head_groups
        of_head = np.arange(w.shape[-1]) % group // (group // structure.heads) == head
    else:
        _, matrix = _places(batch, structure.sample_axis, controls)
        of_head = (matrix % structure.heads == head)[..., None, None]
    disturbed = _disturbed(x, w, structure, controls, trace)
    if trace is not None:
        trace.undecided &= of_head
    return np.where(of_head, disturbed, _exact(x, w))


def _exact(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product without any crossbar, summed in float64, rounded once."""
    product: NDArray[np.float32] = np.matmul(x.astype(np.float64), w.astype(np.float64)).astype(np.float32)
    return product


def _disturbed(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
    trace: Trace | None,
) -> NDArray[np.float32]:
    """Return the crossbar's product of x [..., M, K] and w [..., K, N], all of it."""
    shape = (*np.broadcast_shapes(x.shape[:-2], w.shape[:-2]), x.shape[-2], w.shape[-1])
    sample, row = _places(shape[:-1], structure.sample_axis, controls)
    stored = programmed(w, structure, controls) if structure.op != DYNAMIC else _written(w, structure, controls)
    if not structure.has_periphery:
        return _exact(x, stored)
    if structure.op != DYNAMIC:
        # One matrix serves every row, so all rows go through it together.
        x, sample, row = x.reshape(-1, x.shape[-1]), sample.reshape(-1), row.reshape(-1)

    batch = sample.shape[:-1]
    x, w, stored = (np.broadcast_to(array, batch + array.shape[-2:]) for array in (x, w, stored))
    y = np.empty(sample.shape + w.shape[-1:], dtype=np.float32)
    undecided = np.empty(y.shape, dtype=np.bool_)
    tolerance = trace.tolerance if trace is not None else None
    for index in np.ndindex(batch):
        s = scales(w[index], structure)
        y[index], undecided[index] = read(
            x[index], stored[index], s, structure, controls, sample[index], row[index], tolerance
        )
    if trace is not None:
        trace.undecided = undecided.reshape(shape)
    return y.reshape(shape)


def _written(b: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float32]:
    """Return B' [..., K, N]: every matrix of B as the crossbar holds it; axis 0 of B carries the samples, or none."""
    sample, matrix = _places(b.shape[:-2], min(structure.sample_axis, 0), controls)
    stored = np.empty_like(b)
    for index in np.ndindex(b.shape[:-2]):
        stored[index] = written(b[index], int(matrix[index]), int(sample[index]), structure, controls)
    return stored


def _places(leading: tuple[int, ...], axis: int, controls: Controls) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for every index of the leading dimensions its sample and its place within that sample, both int64.

    `axis` carries the samples: -1 for none (all is sample 0), beyond these dimensions for the first sample only.
    """
    size = math.prod(leading)
    if axis < 0 or axis >= len(leading):
        sample = 0 if axis < 0 else controls.first_sample
        return np.full(leading, sample, dtype=np.int64), np.arange(size, dtype=np.int64).reshape(leading)
    length = leading[axis]
    samples = length if controls.samples is None else controls.samples
    # An axis that is not a multiple of the number of samples holds one sample per index.
    f = length // samples if samples > 0 and length > 0 and length % samples == 0 else 1
    before, after = leading[:axis], leading[axis + 1 :]
    split = (*before, length // f, f, *after)
    position = np.arange(length // f, dtype=np.int64).reshape(-1, 1, *(1,) * len(after))
    within = np.arange(math.prod((*before, f, *after)), dtype=np.int64).reshape(*before, 1, f, *after)
    return (
        np.broadcast_to(controls.first_sample + position, split).reshape(leading),
        np.broadcast_to(within, split).reshape(leading),
    )


def _check_operand(
    structure: Structure, name: str, value: NDArray[np.float32], expected: str, right_rank: bool
) -> None:
    if value.dtype != np.float32:
        raise structure.error(f"input '{name}' is {value.dtype}, expected float32.")
    if not right_rank:
        raise structure.error(f"input '{name}' has rank {value.ndim}, expected {expected}.")


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
    if structure.head_axis == "output" and n % (structure.head_groups * structure.heads) != 0:
        raise structure.error(
            f"attribute 'heads' is {structure.heads} in {structure.head_groups} groups, "
            f"expected a divisor of the {n} columns of '{w_name}'."
        )
    if structure.head_axis == "input" and k % structure.heads != 0:
        raise structure.error(
            f"attribute 'heads' is {structure.heads}, expected a divisor of the {k} rows of '{w_name}'."
        )
