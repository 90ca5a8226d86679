"""A made-up task for sequence models: evaluate nested operations on lists of digits, after ListOps.

`[MAX 3 [MIN 7 4 9 ] 1 ]` is 4. The answer is a digit, so there are ten classes. Operations are MAX, MIN, FIRST and
LAST; a list may hold lists, but those hold digits only; an expression with its class token is at most 32 tokens long.
After Nangia and Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning" (2018), with shorter and shallower
lists, and without median and sum modulo 10, which need a larger model or longer training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LENGTH = 32
CLASSES = 10
MAX_DEPTH = 2
MAX_ITEMS = 4

PAD, CLASS = "[PAD]", "[CLS]"
OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[FIRST": lambda items: items[0],
    "[LAST": lambda items: items[-1],
}
CLOSE = "]"
VOCABULARY = (PAD, CLASS, *(str(digit) for digit in range(10)), *OPERATIONS, CLOSE)
TOKEN_IDS = {token: index for index, token in enumerate(VOCABULARY)}


class Samples(NamedTuple):
    """`input_ids` and `attention_mask` int64 `[N, 32]`, `labels` int64 `[N]`."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def generate(count: int, seed: int, exclude: Samples | None = None) -> Samples:
    """Make distinct random expressions and their values, the same for the same arguments.

    Args:
        count: number of expressions.
        seed: of NumPy's PCG64 generator.
        exclude: samples that must not appear, such as the held-out ones.
    """
    random = np.random.default_rng(seed)
    seen = set() if exclude is None else {row.tobytes() for row in exclude.input_ids}
    input_ids = np.zeros((count, LENGTH), dtype=np.int64)
    labels = np.zeros(count, dtype=np.int64)
    filled = 0
    while filled < count:
        tokens, value = _expression(random, depth=1)
        if len(tokens) >= LENGTH:
            continue
        row = np.zeros(LENGTH, dtype=np.int64)
        row[: len(tokens) + 1] = [TOKEN_IDS[token] for token in [CLASS, *tokens]]
        if (key := row.tobytes()) in seen:
            continue
        seen.add(key)
        input_ids[filled], labels[filled] = row, value
        filled += 1
    return Samples(input_ids, (input_ids != TOKEN_IDS[PAD]).astype(np.int64), labels)


def text_of(input_ids: npt.NDArray[np.int64]) -> str:
    """Spell the expression that one row of `input_ids` holds, such as `[MAX 3 [MIN 7 4 ] ]`."""
    return " ".join(VOCABULARY[index] for index in input_ids if VOCABULARY[index] not in (PAD, CLASS))


def _expression(random: np.random.Generator, depth: int) -> tuple[list[str], int]:
    """Tokens and value of a random list whose items are digits or, above the greatest depth, lists."""
    operation = list(OPERATIONS)[random.integers(len(OPERATIONS))]
    tokens: list[str] = [operation]
    values: list[int] = []
    for _ in range(random.integers(2, MAX_ITEMS + 1)):
        if depth < MAX_DEPTH and random.random() < 0.4:
            inner, value = _expression(random, depth + 1)
            tokens += inner
        else:
            value = int(random.integers(10))
            tokens.append(str(value))
        values.append(value)
    return [*tokens, CLOSE], OPERATIONS[operation](values)
