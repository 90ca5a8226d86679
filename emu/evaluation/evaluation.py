"""Runs a model on data: once clean, then once for each chip, in one onnxruntime session."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from emu.device import Overrides
from emu.errors import InputError
from emu.evaluation.bench import Bench, Score, Settings, Trial, check_calibrated, runnable_model, seeds_of
from emu.evaluation.controls import control_feeds
from emu.evaluation.data import convert_inputs, model_inputs, read_arrays
from emu.evaluation.metrics import SHARES, metric_spread
from emu.evaluation.sources import DataSource
from emu.evaluation.statistics import Estimate, Spread, crossed, wilson_interval

if TYPE_CHECKING:
    import onnx

    from emu.rewriter import EmulatedModel


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model, clean and over chips.

    Two spreads are kept apart: `spread` is over chips with the samples fixed, `clean_ci95` (Wilson) is over samples
    that could have been drawn for the test set. `about_sites` says which products are on no device, and which are exact
    on theirs; `about_classes` who numbers the classes; `warnings` why the clean score may not be believed.
    """

    clean: Score
    chips: tuple[Score, ...]
    seeds: tuple[int, ...]
    read_seed: int
    model: str
    data: str
    device: str | None
    settings: dict[str, float]
    sites: int
    batch_size: int
    ignored: tuple[str, ...]
    task: str
    task_was_guessed: bool
    primary: str
    notes: tuple[str, ...]
    about_sites: tuple[str, ...]
    about_classes: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def spread(self) -> Spread | None:
        """The primary metric of the task over chips, for classification the accuracy; None without a device."""
        return self.spread_of(self.primary) if self.chips else None

    def spread_of(self, metric: str) -> Spread:
        """One metric over chips; if it is not finite on one of them, without a standard deviation."""
        return metric_spread(metric, [chip.metrics[metric] for chip in self.chips])

    @property
    def lost(self) -> Estimate | None:
        """What chips lose of the primary metric, paired with the clean model by sample, over chips and samples.

        None without a device, and for a metric that is no mean over samples. Of one chip it is over samples alone.
        """
        clean, values = self.clean.values, [chip.values for chip in self.chips]
        if not values or clean is None or any(each is None for each in values):
            return None
        return crossed(clean.astype(float) - np.array(values, float), -1, 1)

    @property
    def over_both(self) -> Estimate | None:
        """The primary metric for other chips and other samples, where it is a share; None as `lost` is."""
        if self.primary not in SHARES or self.lost is None:
            return None
        return crossed(np.array([chip.values for chip in self.chips], float), 0, 1)

    @property
    def clean_ci95(self) -> tuple[float, float] | None:
        """95 % interval of the clean accuracy for the choice of test samples; None where none is measured on them."""
        clean = self.clean
        if round(clean.metrics.get("accuracy", -1) * clean.samples) != clean.correct:
            return None  # no accuracy, or one of tokens
        return wilson_interval(clean.correct, clean.samples)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        `accuracy` is null without a device or for tasks without it, every `std` and `ci95` is null for one chip, `ci95`
        for equal chips, and so is a number that is not finite, such as the signal to noise of equal outputs.
        """
        metrics = {name: self._as_dict(name) for name in self.clean.metrics} if self.chips else None
        return {
            "accuracy": (metrics or {}).get("accuracy"),
            "metrics": metrics,
            "lost": _estimate(self.lost),
            "over_chips_and_samples": _estimate(self.over_both),
            "clean": {
                "accuracy": self.clean.metrics.get("accuracy"),
                "ci95": self.clean_ci95 and list(self.clean_ci95),
                "metrics": {name: _finite(value) for name, value in self.clean.metrics.items()},
            },
            "task": self.task,
            "primary": self.primary,
            "samples": self.clean.samples,
            "chips": len(self.chips),
            "seeds": list(self.seeds),
            "read_seed": self.read_seed,
            "device": self.device,
            "settings": self.settings,
            "sites": self.sites,
            "undefined_outputs": {
                "clean": self.clean.undefined,
                "per_chip": [chip.undefined for chip in self.chips],
            },
            "model": self.model,
            "data": self.data,
            "batch_size": self.batch_size,
            "ignored_arrays": list(self.ignored),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "about_sites": list(self.about_sites),
            "classes": self.about_classes or None,
        }

    def _as_dict(self, metric: str) -> dict[str, Any]:
        spread = self.spread_of(metric)
        return {
            "mean": _finite(spread.mean),
            "std": spread.std,
            "ci95": spread.ci95 and list(spread.ci95),
            "per_chip": [_finite(chip.metrics[metric]) for chip in self.chips],
        }


def evaluate(
    model: "Bench | str | Path | onnx.ModelProto | EmulatedModel",
    data: "str | Path | Mapping[str, Any] | DataSource | None" = None,
    chips: int = 10,
    *,
    first_seed: int = 0,
    read_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Unpack[Settings],
) -> Evaluation:
    """Measures a model, clean and on several chips: a classifier's accuracy, or what `task` says.

    Args:
        model: a bench; or a model, of which one is made, as `Bench` takes it with `data` and `settings`. A plain model
            without `device` has its clean accuracy alone.
        data: for a model, as `Bench` takes them.
        chips: number of chips, seeds `first_seed`, `first_seed` + 1, ...
        first_seed: seed of the first chip, 0 to 2^32 - 1.
        read_seed: seed of the run-time noise, the same for all chips.
        progress: called with the batches done and the batches in total.
        settings: for a model, see `emu.evaluation.Settings`.

    Returns:
        The clean score and one score per chip.

    Raises:
        InputError: the model, the data or a setting is wrong.
    """
    if isinstance(model, Bench):
        if data is not None or settings:
            raise InputError("A bench has its data and settings: give them where it is made.")
        bench = model
    elif data is None:
        raise InputError("A model is evaluated on data: give both, or a bench.")
    else:
        bench = Bench(model, data, **settings)
    asked = seeds_of(chips, first_seed)
    seeds = tuple(asked) if bench.manifest else ()
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, bench.batches * (1 + len(seeds)))

    clean = bench.run_clean(step)
    scores = tuple(bench.run(Trial(seed=seed, read_seed=read_seed), step) for seed in seeds)
    return Evaluation(
        clean=clean,
        chips=scores,
        seeds=seeds,
        read_seed=read_seed,
        model=bench.name,
        data=bench.dataset.where,
        device=bench.device_names or None,
        settings=bench.settings,
        sites=len(bench.sites),
        batch_size=bench.batch_size,
        ignored=bench.dataset.ignored,
        task=bench.task.name,
        task_was_guessed=bench.task_was_guessed,
        primary=bench.task.primary,
        notes=bench.dataset.notes,
        about_sites=bench.about_sites,
        about_classes=bench.dataset.about_classes,
        warnings=bench.warnings,
    )


def run(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    inputs: str | Path | Mapping[str, Any],
    *,
    seed: int | None = None,
    read_seed: int | None = None,
    sample: int | None = None,
    head: int | None = None,
    set: Overrides | None = None,
    ops: Literal["native", "python"] = "native",
    threads: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Runs a model once.

    Args:
        model: a plain or rewritten model.
        inputs: an .npz file or a mapping with one array per model input.
        seed: which chip of a rewritten model; None for the model's default, as for the other controls.
        read_seed: which repetition on that chip.
        sample: index of the first sample.
        head: disturb this head only; -1 for all.
        set: numbers of the device.
        ops: `native` or `python`.
        threads: threads of the session; None for onnxruntime's default.

    Returns:
        The outputs by name.

    Raises:
        InputError: the model, an input or a control is wrong.
    """
    from emu.rewriter import read_manifest
    from emu.runtime import session as open_session

    runnable, name = runnable_model(model)
    manifest = read_manifest(runnable)
    given: dict[str, Any] = {"seed": seed, "read_seed": read_seed, "sample": sample, "head": head}
    if manifest is None:
        controls = [key for key, value in {**given, "set": set}.items() if value is not None]
        if controls:
            raise InputError(
                f"{name} is not rewritten and has no control '{controls[0]}': rewrite it for a device first."
            )
        feeds = {}
    else:
        check_calibrated(manifest, name)
        feeds = control_feeds(manifest, set=set, **given)
    session = open_session(runnable, ops=ops, threads=threads)
    arrays, where = read_arrays(inputs)
    feeds |= convert_inputs(arrays, model_inputs(session), where)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    """As JSON has it."""
    if found is None:
        return None
    return {"mean": found.mean, "ci95": None if math.isnan(found.low) else [found.low, found.high], "p": found.p}


def _finite(value: float) -> float | None:
    """As JSON has it."""
    return value if math.isfinite(value) else None
