"""Every preset's stored values and outputs, as they were when recorded: a chip keeps its identity.

`python -m tests.golden.test_unchanged` records outputs anew, for a change of the numbers that is meant and that the
changelog names. What a chip stores stays as first recorded: a seed is the name of a chip.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emu.device import load_profile, preset_names
from emu.runtime import library
from tests.custom_ops.one_node import controls, run_one_node
from tests.reference.nodes import PLAIN_DYNAMIC, PLAIN_QUANTIZED, PLAIN_STORED

RECORD = Path(__file__).with_name("presets.npz")
_RNG = np.random.default_rng(2)
X = _RNG.standard_normal((3, 12), np.float32)
W = _RNG.standard_normal((12, 10), np.float32)
CODES = _RNG.integers(-128, 128, (12, 10), np.int8)
OPERANDS: dict[str, tuple[dict[str, Any], tuple[NDArray[Any], ...]]] = {
    "CrossbarMatMul": (PLAIN_STORED, (X, W)),
    "CrossbarMatMulQuantized": (PLAIN_QUANTIZED, (X, CODES, np.float32(0.01), np.float32(3))),
    "CrossbarMatMulDynamic": (PLAIN_DYNAMIC, (X, W)),
}


def values_of(preset: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What is stored and what comes out of each operator; nothing of an operator that cannot be of this device."""
    profile = load_profile(preset)
    numbers = list(profile.entries().values())
    feeds = controls(numbers, seed=5, read_seed=7, sample=11, ranges=(2.5, -6.0, 7.0, 2.0))
    for op, (plain, operands) in OPERANDS.items():
        given = {name: value for name, value in profile.structure().items() if name in plain}
        attributes = {**plain, **given, "tile_rows": 8, "tile_columns": 6}
        if op == "CrossbarMatMul":
            # Devices read after drift were recorded when that reading was the same for every repetition, the first.
            read_seed = 0 if "drift.read_scale" in profile.entries() else 7
            stored = library.programmed_weight(W, attributes, np.float32(numbers), seed=5, read_seed=read_seed)
            yield f"{preset}/stored", stored
        try:
            yield f"{preset}/{op}", run_one_node(op, attributes, operands, feeds)
        except Exception as refusal:
            assert "granular" in str(refusal) or "float32" in str(refusal), refusal


def recorded() -> dict[str, NDArray[np.float32]]:
    with np.load(RECORD) as record:
        return {name: record[name] for name in record.files}


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_gives_what_it_gave(preset: str) -> None:
    expected = {name: value for name, value in recorded().items() if name.split("/")[0] == preset}
    values = dict(values_of(preset))
    assert values.keys() == expected.keys()
    for name, value in values.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6 * scale, err_msg=name)


if __name__ == "__main__":
    stays = {name: value for name, value in recorded().items() if name.endswith("/stored")}
    np.savez_compressed(RECORD, **dict(pair for preset in preset_names() for pair in values_of(preset)) | stays)
