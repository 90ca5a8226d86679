"""Bit flips of stored codes and floats, and cells that are stuck: random ones of a chip, or a list of them.

A fault of a list is element * 256 + what, element = k N + n, in a stack of matrices (g K + k) N + n. what < 64: that
bit flips. Else (what - 64) / 4 is the weight slice, bit 1 of what the negative device, bit 0 set: stuck at g_max,
clear: at g_min.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from emu.contract.codes import Codes
from emu.contract.schema import FLOATS
from emu.contract.structure import Controls, Structure
from emu.reference.random import Stream, philox4x32

_FAULTS_PER_ELEMENT = 256
_FIRST_STUCK = 64
_ELEMENTS_PER_CHUNK = 4096
_WORD_DATA_BITS = 64
_WORD_BITS = 72
# Draws computed at once: bounds the memory.
_DRAWS_AT_ONCE = 1 << 18


def flipped_weights(w: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float32]:
    """Return the float weights [K, N] or [G, K, N] after bit flips, float32: rounded to codes if codes are stored."""
    if structure.fault_source == "none" or structure.fault_storage == "none":
        check_list(w.shape, structure, controls)
        return w
    if structure.fault_storage in FLOATS:
        changed = _changes(w.shape, structure, controls)
        bits = np.where(changed.zeroed, np.uint32(0), float_patterns(w, structure.fault_storage) ^ changed.flips)
        return floats_of(bits, structure.fault_storage)
    codes = _Codes.of(w, structure)
    changed = _changes(w.shape, structure, controls)
    weights = codes.weights(codes.patterns ^ changed.flips)
    return np.where(changed.zeroed, np.float32(0), weights)


def flipped_codes(codes: Codes, structure: Structure, controls: Controls) -> tuple[Codes, NDArray[np.bool_]]:
    """Return a quantized model's own codes, [K, N] or [G, K, N], after bit flips, and which stand for 0."""
    if structure.fault_source == "none" or structure.fault_storage == "none":
        check_list(codes.shape, structure, controls)
        return codes, np.zeros(codes.shape, dtype=np.bool_)
    changed = _changes(codes.shape, structure, controls)
    flipped = _signed(_unsigned(codes, structure.code_bits) ^ changed.flips, structure.code_bits)
    return flipped.astype(codes.dtype), changed.zeroed


def flips_of_weights(w: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.int64]:
    """Return the list of bit flips that turns the stored W [K, N] into what the array holds, int64 [F], rising.

    A word that is set to zero is the list of the bits in which it differs from zero.
    """
    if structure.fault_source == "none" or structure.fault_storage == "none":
        return np.zeros(0, dtype=np.int64)
    changed = _changes(w.shape, structure, controls)
    if structure.fault_storage in FLOATS:
        return _list_of(np.where(changed.zeroed, float_patterns(w, structure.fault_storage), changed.flips))
    codes = _Codes.of(w, structure)
    return _list_of(np.where(changed.zeroed, codes.patterns ^ codes.zero_patterns, changed.flips))


def flips_of_codes(
    codes: Codes, zero_point: NDArray[np.float32], structure: Structure, controls: Controls
) -> NDArray[np.int64]:
    """Return the list of bit flips of a quantized model's codes [K, N], int64 [F]; zero_point broadcasts to codes."""
    if structure.fault_source == "none" or structure.fault_storage == "none":
        return np.zeros(0, dtype=np.int64)
    changed = _changes(codes.shape, structure, controls)
    zero = _unsigned(np.rint(zero_point).astype(np.int64), structure.code_bits)
    return _list_of(np.where(changed.zeroed, _unsigned(codes, structure.code_bits) ^ zero, changed.flips))


def stuck(
    g: NDArray[np.float64],
    uniforms: NDArray[np.float64],
    lowest: float,
    controls: Controls,
) -> NDArray[np.float64]:
    """Return g with the cells that are stuck at random at the lowest or the highest conductance."""
    low, high = _stuck_masks(uniforms, controls)
    return np.where(low, lowest, np.where(high, 1.0, g))


def stuck_as_listed(
    g: NDArray[np.float64], weight_slice: int, negative: bool, lowest: float, controls: Controls, matrix: int
) -> NDArray[np.float64]:
    """Return g [K, N] with the cells of one device array that the list says are stuck.

    `matrix` is the index of the matrix in its stack. The list fits the stack: `check_list` has seen it.
    """
    element, what = np.divmod(controls.faults, _FAULTS_PER_ELEMENT)
    element = element - matrix * g.size
    in_array = (element >= 0) & (element < g.size) & (what >= _FIRST_STUCK)
    here = in_array & ((what - _FIRST_STUCK) >> 1 == 2 * weight_slice + negative)
    held = g.flatten()
    held[element[here]] = np.where(what[here] & 1, 1.0, lowest)
    return held.reshape(g.shape)


def stuck_list(
    uniforms: NDArray[np.float64], weight_slice: int, negative: bool, controls: Controls, matrix: int
) -> NDArray[np.int64]:
    """Return the list of the cells of one device array that are stuck at random, int64 [F].

    uniforms: float64 [K, N], those of the matrix with that index in its stack.
    """
    low, high = _stuck_masks(uniforms, controls)
    element = np.flatnonzero(low | high).astype(np.int64)
    what = _FIRST_STUCK + 4 * weight_slice + 2 * negative + high.ravel()[element].astype(np.int64)
    return (element + matrix * uniforms.size) * _FAULTS_PER_ELEMENT + what


def check_list(shape: tuple[int, ...], structure: Structure, controls: Controls) -> None:
    """Check that every fault of the list strikes a bit or a device that the array of that shape has."""
    if controls.faults.size == 0:
        return
    element, what = np.divmod(controls.faults, _FAULTS_PER_ELEMENT)
    bits = structure.fault_word_bits if structure.fault_storage != "none" else 0
    devices = 0 if structure.encoding == "weight" else 2 if structure.has_pairs else 1
    device = what - _FIRST_STUCK
    for wrong, expected in (
        ((element < 0) | (element >= int(np.prod(shape))), f"elements 0 to {int(np.prod(shape)) - 1}"),
        ((what < _FIRST_STUCK) & (what >= bits), f"bits below {bits}"),
        ((device >= 0) & (device >> 2 >= structure.weight_slices), f"slices below {structure.weight_slices}"),
        ((device >= 0) & (device >> 1 & 1 >= devices), f"{devices} devices of a weight"),
    ):
        if np.any(wrong):
            fault = int(controls.faults[np.flatnonzero(wrong)[0]])
            raise structure.error(f"input 'faults' has {fault}, which is out of the array, expected {expected}.")


def float_patterns(w: NDArray[np.float32], kind: str) -> NDArray[np.uint32]:
    """Return the bits of finite weights stored as that kind of float: rounded to even, at most its largest number."""
    if kind == "float32":
        return w.view(np.uint32)
    numbers, patterns = _numbers_of(kind)
    magnitude = np.minimum(np.abs(w).astype(np.float64), numbers[-1])
    above = np.clip(np.searchsorted(numbers, magnitude), 1, len(numbers) - 1)
    down, up = magnitude - numbers[above - 1], numbers[above] - magnitude
    nearest = np.where((up < down) | ((up == down) & (patterns[above] % 2 == 0)), above, above - 1)
    sign = np.signbit(w).astype(np.uint32) << np.uint32(FLOATS[kind].bits - 1)
    found: NDArray[np.uint32] = patterns[nearest] | sign
    return found


def floats_of(patterns: NDArray[np.uint32], kind: str) -> NDArray[np.float32]:
    """Return the numbers, float32, that bits of that kind of float stand for: exactly, infinities and NaN included."""
    patterns = patterns.astype(np.uint32)
    if kind == "float32":
        return patterns.view(np.float32)
    row = FLOATS[kind]
    bias = 2 ** (row.exponent - 1) - 1
    field = (patterns >> np.uint32(row.mantissa)).astype(np.int64) & (2**row.exponent - 1)
    fraction = (patterns & np.uint32(2**row.mantissa - 1)).astype(np.float64) / 2**row.mantissa
    value = np.ldexp(np.where(field == 0, fraction, 1 + fraction), np.maximum(field, 1) - bias)
    last = field == 2**row.exponent - 1
    if row.has_infinity:
        value = np.where(last, np.where(fraction == 0, np.inf, np.nan), value)
    else:
        value = np.where(last & (fraction == 1 - 2.0**-row.mantissa), np.nan, value)
    sign = np.where(patterns >> np.uint32(row.bits - 1) & np.uint32(1) == 1, -1.0, 1.0)
    return np.copysign(value, sign).astype(np.float32)


@cache
def _numbers_of(kind: str) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Return all finite numbers from 0 on of a kind of float of at most 16 bits, rising, and their bits."""
    patterns = np.arange(2 ** (FLOATS[kind].bits - 1), dtype=np.uint32)
    numbers = floats_of(patterns, kind).astype(np.float64)
    finite = np.isfinite(numbers)
    return numbers[finite], patterns[finite]


@dataclass(frozen=True)
class _Changes:
    """What happens to every element."""

    flips: NDArray[np.uint32]
    """The bits that flip."""
    zeroed: NDArray[np.bool_]
    """Elements of words that were found broken and stand for the value 0."""


@dataclass(frozen=True)
class _Codes:
    """Float weights as codes; all decided in float32."""

    patterns: NDArray[np.uint32]
    """The stored bits of each weight."""
    bits: int
    is_signed: bool
    scale: NDArray[np.float32]
    zero: NDArray[np.float32]

    @classmethod
    def of(cls, w: NDArray[np.float32], structure: Structure) -> "_Codes":
        """Return the codes of W [K, N] or [G, K, N] of `fault_bits` bits."""
        bits = structure.fault_bits
        axis = -2 if structure.fault_scale == "column" else None
        one = np.float32(1)
        if structure.fault_range == "symmetric":
            scale = np.max(np.abs(w), axis=axis, initial=0, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
            scale = np.where(scale == 0, one, scale)
            codes = np.rint(w / scale)
            return cls(_unsigned(codes.astype(np.int64), bits), bits, True, scale, np.zeros_like(scale))
        low, high = np.min(w, axis=axis, keepdims=True), np.max(w, axis=axis, keepdims=True)
        most = np.float32(2**bits - 1)
        scale = (high - low) / most
        scale = np.where(scale == 0, one, scale)
        zero = np.rint(-low / scale)
        codes = np.clip(np.rint(w / scale) + zero, np.float32(0), most)
        return cls(_unsigned(codes.astype(np.int64), bits), bits, False, scale, zero)

    @property
    def zero_patterns(self) -> NDArray[np.uint32]:
        """The code nearest to the value 0."""
        most = 2**self.bits - 1
        return _unsigned(np.clip(self.zero, 0, most).astype(np.int64), self.bits)

    def weights(self, patterns: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Return the weights that stored bits stand for, float32."""
        codes = _signed(patterns, self.bits) if self.is_signed else patterns.astype(np.int64)
        weights: NDArray[np.float32] = (codes.astype(np.float32) - self.zero) * self.scale
        return weights


def _unsigned(codes: Codes, bits: int) -> NDArray[np.uint32]:
    """Return two's complement codes as bit patterns."""
    patterns: NDArray[np.uint32] = (codes.astype(np.int64) & (2**bits - 1)).astype(np.uint32)
    return patterns


def _signed(patterns: NDArray[np.uint32], bits: int) -> NDArray[np.int64]:
    """Return bit patterns as two's complement codes."""
    sign = 1 << (bits - 1)
    return (patterns.astype(np.int64) ^ sign) - sign


def _list_of(flips: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return every set bit as a fault of the list, in rising order."""
    flat = flips.ravel()
    element = np.flatnonzero(flat).astype(np.int64)
    bit = np.arange(32, dtype=np.int64)
    is_set = (flat[element, None] >> bit.astype(np.uint32)) & np.uint32(1) == 1
    listed: NDArray[np.int64] = (element[:, None] * _FAULTS_PER_ELEMENT + bit)[is_set]
    return listed


def _changes(shape: tuple[int, ...], structure: Structure, controls: Controls) -> _Changes:
    elements = int(np.prod(shape))
    flips, zeroed = np.zeros(elements, dtype=np.uint32), np.zeros(elements, dtype=np.bool_)
    if structure.fault_source == "random" and structure.fault_protection == "none":
        _flip_unprotected(flips, structure, controls)
    elif structure.fault_source == "random":
        _flip_protected(flips, zeroed, structure, controls)
    check_list(shape, structure, controls)
    element, what = np.divmod(controls.faults, _FAULTS_PER_ELEMENT)
    is_bit = what < _FIRST_STUCK
    np.bitwise_xor.at(flips, element[is_bit], np.uint32(1) << what[is_bit].astype(np.uint32))
    return _Changes(flips.reshape(shape), zeroed.reshape(shape))


def _flip_unprotected(flips: NDArray[np.uint32], structure: Structure, controls: Controls) -> None:
    bits = np.array([bit for bit in range(32) if structure.usable_fault_mask >> bit & 1], dtype=np.uint32)
    if len(bits) == 0:
        return
    chunk, position = _flipped_positions(_chunk_sizes(len(flips)) * len(bits), structure, controls)
    element = chunk * _ELEMENTS_PER_CHUNK + position // len(bits)
    np.bitwise_xor.at(flips, element, np.uint32(1) << bits[position % len(bits)])


def _flip_protected(
    flips: NDArray[np.uint32], zeroed: NDArray[np.bool_], structure: Structure, controls: Controls
) -> None:
    """SECDED(72, 64): what a decoder makes of every word; check bits flip like data."""
    bits = structure.fault_word_bits
    in_word = _WORD_DATA_BITS // bits
    words = -(-_chunk_sizes(len(flips)) // in_word)
    chunk, position = _flipped_positions(words * _WORD_BITS, structure, controls)
    word_in_chunk, bit_of_word = np.divmod(position, _WORD_BITS)
    # Only the last word of the last chunk may be short, so words can be numbered through.
    word = chunk * (_ELEMENTS_PER_CHUNK // in_word) + word_in_chunk
    broken, which = np.unique(word, return_inverse=True)
    syndrome = np.zeros(len(broken), dtype=np.int64)
    np.bitwise_xor.at(syndrome, which, _PARITY_COLUMNS[bit_of_word])
    corrected = _bit_of_syndrome()[syndrome]
    repaired = corrected >= 0
    # A decoder flips one more bit, which undoes a single flip.
    word = np.concatenate([word, broken[repaired]])
    bit_of_word = np.concatenate([bit_of_word, corrected[repaired]])
    element = word * in_word + bit_of_word // bits
    here = (bit_of_word < _WORD_DATA_BITS) & (element < len(flips))
    np.bitwise_xor.at(flips, element[here], np.uint32(1) << (bit_of_word[here] % bits).astype(np.uint32))
    if structure.fault_protection == "secded_zero":
        detected = broken[(syndrome != 0) & ~repaired]
        lost = (detected[:, None] * in_word + np.arange(in_word)).ravel()
        zeroed[lost[lost < len(flips)]] = True


def _parity_columns() -> NDArray[np.int64]:
    """Return the columns of the parity-check matrix by bit of the word, of odd weight (Hsiao 1970), int64 [72]."""
    triples = [number for number in range(256) if number.bit_count() == 3]
    quintuples = [(31 << i | 31 >> (8 - i)) & 255 for i in range(8)]
    return np.array([*triples, *quintuples, *(1 << i for i in range(8))])


def _bit_of_syndrome() -> NDArray[np.int64]:
    """Return for every syndrome the bit of the word that has it as its column, -1 where none has, int64 [256]."""
    bits = np.full(256, -1)
    bits[_PARITY_COLUMNS] = np.arange(_WORD_BITS)
    return bits


_PARITY_COLUMNS = _parity_columns()


def _chunk_sizes(elements: int) -> NDArray[np.int64]:
    """Return the number of elements of every chunk."""
    starts = np.arange(0, elements, _ELEMENTS_PER_CHUNK, dtype=np.int64)
    return np.minimum(elements - starts, _ELEMENTS_PER_CHUNK)


def _flipped_positions(
    sizes: NDArray[np.int64], structure: Structure, controls: Controls
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the chunk and the position in it of every bit that flips; `sizes` says how many bits each chunk has.

    The distance from one of many independent events to the next is geometrically distributed, so that the cost grows
    with the flips, not with the bits.
    """
    p = float(controls.probability("faults.ber"))
    chunks: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    positions: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    if p == 0:
        return chunks[0], positions[0]
    largest = int(np.max(sizes, initial=0))
    # Enough draws for nearly every chunk; the few that need more go round again.
    draws = int(largest * p + 6 * np.sqrt(largest * p) + 8) // 2 * 2
    at_once = max(1, _DRAWS_AT_ONCE // draws)
    for start in range(0, len(sizes), at_once):
        waiting = np.arange(start, min(len(sizes), start + at_once), dtype=np.int64)
        reached = np.full(len(waiting), -1, dtype=np.int64)
        first_draw = 0
        while len(waiting) > 0:
            distance = _distances(waiting, first_draw, draws, p, largest, structure, controls)
            position = reached[:, None] + np.cumsum(distance, axis=1)
            inside = position < sizes[waiting, None]
            chunks.append(np.broadcast_to(waiting[:, None], position.shape)[inside])
            positions.append(position[inside])
            more = inside[:, -1]
            waiting, reached = waiting[more], position[more, -1]
            first_draw += draws
    return np.concatenate(chunks), np.concatenate(positions)


def _distances(
    chunk: NDArray[np.int64],
    first_draw: int,
    draws: int,
    p: float,
    longest: int,
    structure: Structure,
    controls: Controls,
) -> NDArray[np.int64]:
    """Return how far each of an even number of draws moves on, int64 [chunks, draws], at most past the chunk's end."""
    if p == 1:
        return np.ones((len(chunk), draws), dtype=np.int64)
    block = np.arange(first_draw // 2, (first_draw + draws) // 2, dtype=np.uint64)
    x0, x1, x2, x3 = philox4x32(
        block, chunk[:, None].astype(np.uint64), structure.array, int(Stream.BIT_FLIPS), controls.seed, 0
    )
    u = np.stack([_fine_uniform(x0, x1), _fine_uniform(x2, x3)], axis=-1).reshape(len(chunk), draws)
    distances: NDArray[np.int64] = 1 + np.floor(np.minimum(np.log(u) / np.log1p(-p), longest)).astype(np.int64)
    return distances


def _fine_uniform(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return ((x >> 5) * 2^26 + (y >> 6) + 1) * 2^-53: 2^53 values in (0, 1]."""
    high, low = (x >> np.uint32(5)).astype(np.float64), (y >> np.uint32(6)).astype(np.float64)
    return (high * 2.0**26 + low + 1) * 2.0**-53


def _stuck_masks(uniforms: NDArray[np.float64], controls: Controls) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    low = uniforms <= float(controls.probability("faults.stuck_low"))
    high = ~low & (uniforms > 1.0 - float(controls.probability("faults.stuck_high")))
    return low, high
