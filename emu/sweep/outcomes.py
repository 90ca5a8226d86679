"""Outcomes of single samples: packed for a database, and as a table."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emu.sweep.rows import names_with

if TYPE_CHECKING:
    import pandas as pd

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def pack(arrays: Arrays) -> bytes:
    """Arrays as a compressed .npz file, which `numpy.load` reads."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # NumPy 1.26 takes no allow_pickle
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, "np.ndarray[Any, Any]"]:
    """What `pack` packed.

    Raises:
        ValueError, OSError, EOFError: it is damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def sample_table(trials: "pd.DataFrame", outcomes: Sequence[Arrays], facts: Sequence[Arrays]) -> "pd.DataFrame":
    """One row for each sample of each trial.

    Args:
        trials: a table of trials, of which the axes that vary and the repetitions are taken, and `id`, if there is one.
        outcomes: of each trial, as `emu.evaluation.Task.outcomes`.
        facts: of the samples of each trial, as `emu.evaluation.data.DataSet.facts`.
    """
    import pandas as pd

    varied = [name for name in names_with(trials, "axis") if trials[name].nunique(dropna=False) > 1]
    names = [name for name in ("id", "study") if name in trials]
    rows = trials[[*names, *varied, *names_with(trials, "repetition")]]
    parts = []
    for arrays, known in zip(outcomes, facts, strict=True):
        sample = arrays.get("sample", np.arange(len(next(iter(arrays.values()), ()))))
        parts.append({"sample": sample, **{name: each[sample] for name, each in known.items()}, **arrays})
    count = [len(part["sample"]) for part in parts]
    table = rows.loc[rows.index.repeat(count)].reset_index(drop=True)
    columns = dict.fromkeys(name for part in parts for name in part)
    found = pd.concat([pd.DataFrame(part, columns=list(columns)) for part in parts], ignore_index=True)
    return pd.concat([table, found], axis=1)
