"""What the ADCs of a site convert: products of inputs behind the DAC with what its arrays hold undisturbed.

Steps 1 to 3 of "What is read" in `docs/operators.md`, with the targets of the weights in the place of what becomes of
them: no programming errors, drift, faults or wires.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from emu.contract.structure import Controls, Structure
from emu.reference.converters import input_digits, input_range, through_dac
from emu.reference.mapping import largest, normalized, scales, spread, targets
from emu.reference.storing import stored_operand


def stored_contents(w: NDArray[np.float32], structure: Structure, controls: Controls) -> list[NDArray[np.float32]]:
    """What the arrays of a stored weight `[K, N]` hold, one `[K, N]` per slice in units of g_max.

    Of pairs that are converted apart one per device. Where a unit column is read too, it is the last column.
    """
    s = spread(scales(w, structure, controls).astype(np.float64), structure, w.shape[0])
    unit = normalized(w, s.astype(np.float32), structure, controls)
    if structure.encoding == "weight":
        return [unit]
    if structure.encoding == "offset" and structure.offset_correction == "unit_column":
        unit = np.pad(unit, ((0, 0), (0, 1)))
    slices = []
    for weight_slice in range(structure.weight_slices):
        value = targets(unit, weight_slice, False, structure, controls)
        negative = targets(unit, weight_slice, True, structure, controls) if structure.has_pairs else None
        if negative is not None and not structure.converts_apart:
            value, negative = value - negative, None
        slices += [each.astype(np.float32) for each in (value, negative) if each is not None]
    return slices


def scale_of_sample(
    matrices: NDArray[np.float32], structure: Structure, controls: Controls
) -> NDArray[np.float32] | None:
    """What all matrices of a sample are scaled by, float32 `[1]`; None where each has scales of its own."""
    shared = structure.write_scaling == "sample"
    return largest(np.abs(matrices).reshape(-1, 1), controls) if shared else None


def written_contents(
    b: NDArray[np.float32], of_sample: NDArray[np.float32] | None, structure: Structure, controls: Controls
) -> list[NDArray[np.float32]]:
    """What the array of a matrix `[K, N]` holds that is written at run time, `[K, N]` in units of g_max.

    Args:
        b: the matrix.
        of_sample: of `scale_of_sample`.
        structure: of the site.
        controls: of an undisturbed run (strength 0).
    """
    return [stored_operand(b, lambda *_, **__: np.zeros(b.shape), structure, controls, of_sample).v[0]]


def tile_outputs(
    x: NDArray[np.float32],
    contents: Sequence[NDArray[np.float32]],
    structure: Structure,
    controls: Controls,
    matrix: int = 0,
) -> Iterator[tuple[tuple[int, int, int], NDArray[np.float32]]]:
    """Yields the outputs y `[rows, N]` of every row tile, weight slice and input slice, of rows that are not zero.

    Args:
        x: float32 `[R, K]`.
        contents: what the arrays hold, `[K, N]` per slice.
        structure: of the site.
        controls: the device's numbers and the calibrated input ranges.
        matrix: index in a stack.

    Yields:
        The row tile, counted over all matrices of a stack, the slice, and the device of a pair; and their outputs.
    """
    tiles, apart = structure.row_tiles(x.shape[1]), len(contents) // structure.weight_slices
    for tile, k in enumerate(tiles, matrix * len(tiles)):
        alpha = input_range(x[:, k], tile, structure, controls)
        fed = alpha[:, 0] > 0
        x1 = through_dac(x[fed, k], alpha[fed], structure, controls)
        for digits, _ in input_digits(x1, structure, controls):
            for i, v in enumerate(contents):
                yield (tile, *divmod(i, apart)), digits @ v[k]
