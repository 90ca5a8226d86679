"""The decoder of SECDED(72, 64), written again from the page: what becomes of words whose bits flip."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

DATA_BITS, WORD_BITS = 64, 72
_TRIPLES = sorted(sum(1 << bit for bit in three) for three in combinations(range(8), 3))
_FIVES = [sum(1 << (i + step) % 8 for step in range(5)) for i in range(8)]
COLUMNS = np.array([*_TRIPLES, *_FIVES, *(2**i for i in range(8))])


def decoded(flipped: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which data bits are wrong after decoding, bool [words, 64], and where an error is detected, bool [words].

    flipped: bool [words, 72].
    """
    syndrome = np.bitwise_xor.reduce(np.where(flipped, COLUMNS, 0), axis=1)
    found = syndrome[:, None] == COLUMNS
    return (flipped ^ found)[:, :DATA_BITS], (syndrome != 0) & ~found.any(axis=1)


def random_words(flips: int, count: int = 100_000) -> NDArray[np.bool_]:
    """Return words with that many of 72 bits flipped, drawn evenly, bool [count, 72]."""
    order = np.argsort(np.random.default_rng(flips).random((count, WORD_BITS)), axis=1)
    return order < flips
