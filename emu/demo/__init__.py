"""Small trained models with their held-out data, and a first study on them.

The models are described in this folder's README.md; `examples/` holds the scripts that trained them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emu.errors import InputError
from emu.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DATA", "MODELS", "Row", "data_path", "model_path", "run_demo"]

MODELS = ("digits_vit", "digits_deit", "listops_bert")
DATA = {"digits_vit": "digits_test", "digits_deit": "digits_test", "listops_bert": "listops_test"}


@dataclass(frozen=True)
class Row:
    """Accuracies at one device-to-device spread sigma, all as shares from 0 to 1.

    `std` and the 95 % t interval `low` to `high` of the mean are over chips; None for a single chip, the interval also
    for equal chips.
    """

    sigma: float
    clean: float
    mean: float
    std: float | None
    low: float | None
    high: float | None
    worst: float
    best: float
    chips: int
    samples: int


def model_path(name: str) -> Path:
    """The ONNX file of a demo model: `digits_vit`, `digits_deit` or `listops_bert`.

    Raises:
        InputError: there is no such model.
    """
    return _package_file(name, ".onnx", MODELS)


def data_path(name: str) -> Path:
    """The held-out data (.npz) by its own name or by the name of a demo model.

    Raises:
        InputError: there is no such data.
    """
    return _package_file(DATA.get(name, name), ".npz", sorted(set(DATA.values())))


def run_demo(
    folder: str | Path,
    echo: Callable[[str], object] = print,
    chips: int = 5,
    sigmas: Sequence[float] = (0.05, 0.1, 0.15, 0.3, 0.5),
) -> Path:
    """How accurate is a ViT whose weights lie in resistive memory? A study in under a minute.

    The digits ViT is rewritten once for the device `rram`; then every sigma and every chip is a matter of control
    inputs. Prints a table and writes `digits_vit.rram.onnx`, `accuracy.csv` and, with matplotlib,
    `accuracy_vs_sigma.png`. Without the native library the NumPy operators serve, which take about 5 s for each chip
    and sigma.

    Args:
        folder: where to write; made if missing.
        echo: prints a line.
        chips: chips per sigma, at least 1.
        sigmas: standard deviations of the natural logarithm of a stored weight, 0 to 10.

    Returns:
        The folder.

    Raises:
        InputError: the folder cannot be made, or a setting is out of its range.
    """
    from emu.evaluation import evaluate
    from emu.rewriter import rewrite
    from emu.runtime import library_path

    if not sigmas:
        raise InputError("sigmas is empty: give at least one standard deviation, such as 0.1.")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made a folder for the results ({error.strerror}): choose another."
        ) from None

    ops: Literal["native", "python"] = "native"
    try:
        library_path()
    except InputError:
        ops = "python"
        echo("The native operators are not installed: the NumPy ones serve, with the same results, but slowly.")
    emulated = rewrite(model_path("digits_vit"), device="rram")
    rewritten = folder / "digits_vit.rram.onnx"
    emulated.save(rewritten)
    echo(f"Rewrote the digits ViT for device 'rram': {len(emulated.manifest.sites)} sites, {rewritten}")

    rows = []
    for sigma in sigmas:
        result = evaluate(rewritten, data_path("digits_vit"), chips=chips, set={"program.sigma": sigma}, ops=ops)
        accuracies, spread = [chip.accuracy for chip in result.chips], result.spread
        assert spread is not None  # the model has a device
        low, high = spread.ci95 or (None, None)
        rows.append(
            Row(
                sigma=float(sigma),
                clean=result.clean.accuracy,
                mean=spread.mean,
                std=spread.std,
                low=low,
                high=high,
                worst=min(accuracies),
                best=max(accuracies),
                chips=len(accuracies),
                samples=result.clean.samples,
            )
        )
    for line in _table(rows):
        echo(line)

    _write(folder / "accuracy.csv", _as_csv(rows))
    echo(f"Table: {folder / 'accuracy.csv'}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        echo("No figure, because matplotlib is not installed: pip install matplotlib")
    else:
        image = io.BytesIO()
        _draw(Figure(figsize=(6.4, 4.2), layout="constrained"), rows).savefig(image, format="png", dpi=150)
        _write(folder / "accuracy_vs_sigma.png", image.getvalue())
        echo(f"Figure: {folder / 'accuracy_vs_sigma.png'}")
    return folder


def _package_file(name: str, suffix: str, known: Sequence[str]) -> Path:
    if name not in known:
        raise InputError(f"There is no demo file '{name}{suffix}': choose one of {', '.join(known)}.")
    from importlib.resources import files

    return Path(str(files(__name__) / f"{name}{suffix}"))


def _table(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    lines = [
        f"Accuracy in % on {first.samples} held-out digits, {first.chips} chip{'s' * (first.chips > 1)} per sigma; "
        f"clean: {100 * first.clean:.2f}",
        f"{'sigma':>6} {'mean':>7} {'std':>6} {'95 % interval':>17} {'worst':>7} {'best':>7} {'clean':>7}",
    ]
    for row in rows:
        std = "-" if row.std is None else f"{100 * row.std:.2f}"
        low, high = _interval(row)
        interval = "-" if row.low is None else f"{100 * low:.2f} to {100 * high:.2f}"
        lines.append(
            f"{row.sigma:>6g} {100 * row.mean:>7.2f} {std:>6} {interval:>17} "
            f"{100 * row.worst:>7.2f} {100 * row.best:>7.2f} {100 * row.clean:>7.2f}"
        )
    return lines


def _interval(row: Row) -> tuple[float, float]:
    """The interval as it is shown: within 0 to 1, and just the mean for a single chip."""
    if row.low is None or row.high is None:
        return row.mean, row.mean
    return max(row.low, 0.0), min(row.high, 1.0)


def _as_csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()


def _draw(figure: Figure, rows: Sequence[Row]) -> Figure:
    """Mean accuracy against sigma with its 95 % interval, the range over chips, and the clean accuracy."""
    rows = sorted(rows, key=lambda row: row.sigma)
    axes = figure.add_subplot()
    sigmas, means = [row.sigma for row in rows], [100 * row.mean for row in rows]
    ends = [_interval(row) for row in rows]
    margins = [
        [100 * (row.mean - low) for row, (low, _) in zip(rows, ends, strict=True)],
        [100 * (high - row.mean) for row, (_, high) in zip(rows, ends, strict=True)],
    ]
    several = f"{rows[0].chips} chips" if rows[0].chips > 1 else "1 chip"
    axes.axhline(100 * rows[0].clean, color="0.35", linestyle="--", label=f"clean, {100 * rows[0].clean:.2f} %")
    worst, best = [100 * row.worst for row in rows], [100 * row.best for row in rows]
    axes.fill_between(sigmas, worst, best, color="C0", alpha=0.15, linewidth=0, label="worst to best chip")
    axes.errorbar(
        sigmas, means, yerr=margins, color="C0", marker="o", capsize=4, label=f"mean of {several}, 95 % interval"
    )
    axes.set_xlabel("device-to-device variation sigma (lognormal)")
    axes.set_ylabel(f"accuracy on {rows[0].samples} held-out digits (%)")
    axes.set_title("Digits ViT with its weights in RRAM")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def _write(path: Path, content: bytes) -> None:
    """Write atomically: beside the target, then over it."""
    with whole_file(path) as part:
        part.write_bytes(content)
