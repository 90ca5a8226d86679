"""Runs a model on data: once clean, then once for each chip, in one onnxruntime session."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from emu.device.loading import Overrides
from emu.errors import InputError
from emu.evaluation.bench import Bench, Score, Trial, check_calibrated, runnable_model
from emu.evaluation.controls import LARGEST_SEED, control_feeds
from emu.evaluation.data import convert_inputs, model_inputs, read_arrays
from emu.evaluation.statistics import Spread, chip_spread, wilson_interval

if TYPE_CHECKING:
    import onnx

    from emu.rewriter import Device, EmulatedModel, Rule, Share


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of a model, clean and over chips.

    Two spreads are kept apart: `spread` is over chips with the samples fixed, `clean_ci95` (Wilson) is over samples
    that could have been drawn for the test set.
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

    @property
    def spread(self) -> Spread | None:
        """Accuracy over chips; None for a model without a device."""
        return chip_spread([chip.accuracy for chip in self.chips]) if self.chips else None

    @property
    def clean_ci95(self) -> tuple[float, float]:
        """95 % interval of the clean accuracy for the choice of test samples."""
        return wilson_interval(self.clean.correct, self.clean.samples)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON. `accuracy` is null without a device; its `std` and `ci95` are null for one chip."""
        spread = self.spread
        return {
            "accuracy": spread
            and {
                "mean": spread.mean,
                "std": spread.std,
                "ci95": spread.ci95 and list(spread.ci95),
                "per_chip": [chip.accuracy for chip in self.chips],
            },
            "clean": {"accuracy": self.clean.accuracy, "ci95": list(self.clean_ci95)},
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
        }


def evaluate(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    data: str | Path | Mapping[str, Any],
    chips: int = 10,
    device: "Device | None" = None,
    set: Overrides | None = None,
    only: str | None = None,
    exclude: str | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    first_seed: int = 0,
    read_seed: int = 0,
    samples: int | None = None,
    ops: Literal["native", "python"] = "native",
    progress: Callable[[int, int], None] | None = None,
    map: "Sequence[Rule]" = (),
    share: "Share | None" = None,
    stored: str | None = None,
) -> Evaluation:
    """Measures top-1 accuracy, clean and on several chips.

    Args:
        model: a rewritten model; or a plain model, which is rewritten in memory for `device`; or a plain model without
            `device`, for its clean accuracy alone.
        data: an .npz file or a mapping: one array per model input, samples along the first axis, and `labels`.
        chips: number of chips, seeds `first_seed`, `first_seed` + 1, ...
        device: a profile for a plain model.
        set: settings of the device; of a rewritten model only the numbers of its device tensor.
        only: sites to emulate, when rewriting.
        exclude: sites to leave digital, when rewriting.
        batch_size: samples at once; it does not change the result.
        threads: threads of the session; None for onnxruntime's default.
        first_seed: seed of the first chip, 0 to 2^32 - 1.
        read_seed: seed of the run-time noise, the same for all chips.
        samples: use only the first so many samples.
        ops: `native` for the C++ operators, `python` for their NumPy twin.
        progress: called with the batches done and the batches in total.
        map: other devices for some sites, when rewriting.
        share: which sites share one physical array, when rewriting.
        stored: tensors that feed no product to put into arrays too, when rewriting.

    Returns:
        The clean score and one score per chip. The prediction of a sample is the argmax over the last axis of the
        output `logits`, or of the first output if none is named so.

    Raises:
        InputError: the model, the data or a setting is wrong.
    """
    bench = Bench(
        model,
        data,
        device=device,
        set=set,
        only=only,
        exclude=exclude,
        map=map,
        share=share,
        stored=stored,
        batch_size=batch_size,
        threads=threads,
        samples=samples,
        ops=ops,
    )
    if chips < 1 or first_seed < 0 or first_seed + chips - 1 > LARGEST_SEED:
        raise InputError(f"{chips} chips from seed {first_seed} on: give at least one chip, with seeds 0 to 2^32 - 1.")
    seeds = tuple(range(first_seed, first_seed + chips)) if bench.manifest else ()
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, bench.batches * (1 + len(seeds)))

    clean = bench.run_clean(step)
    scores = tuple(bench.run(Trial(seed=seed, read_seed=read_seed), step) for seed in seeds)
    manifest = bench.manifest
    return Evaluation(
        clean=clean,
        chips=scores,
        seeds=seeds,
        read_seed=read_seed,
        model=bench.name,
        data=bench.dataset.where,
        device=", ".join(manifest["devices"]) if manifest else None,
        settings=bench.settings,
        sites=len(bench.sites),
        batch_size=bench.batch_size,
        ignored=bench.dataset.ignored,
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
    given = {"seed": seed, "read_seed": read_seed, "sample": sample, "head": head}
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
