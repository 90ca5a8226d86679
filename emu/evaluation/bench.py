"""A model and its data in one onnxruntime session, in which any number of trials run."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from emu.contract.manifest import Manifest, plain
from emu.contract.selection import select
from emu.contract.site import Site
from emu.device import DeviceNumbers, Overrides, load_profile, parse_overrides
from emu.errors import InputError
from emu.evaluation.controls import LARGEST_SEED, control_feeds
from emu.evaluation.data import DataSet, fixed_batch, model_inputs
from emu.evaluation.plausibility import Answers, refuse_below_chance, warnings_of
from emu.evaluation.preparing import load
from emu.evaluation.sources import DataSource
from emu.evaluation.tasks import Kept, Task, task_by_name
from emu.rewriter.devices import Rewriting

if TYPE_CHECKING:
    import onnx

    from emu.device import Profile
    from emu.rewriter import EmulatedModel

DEFAULT_BATCH = 32
COSTS = ("energy_uj", "latency_us", "area_mm2")

_NOTHING_ACTS = "Nothing is disturbed: '{}' leaves all sites exact, and chips are the clean model, not a robust one."


@dataclass(frozen=True)
class Trial:
    """One setting of all controls of a rewritten model; plain data, equal trials give equal results.

    Args:
        seed: which chip, 0 to 2^32 - 1.
        read_seed: which repetition on that chip, 0 to 2^32 - 1.
        head: disturb this attention head only; -1 for all.
        strength: factor on every disturbance of the sites that `only` and `exclude` leave.
        only: disturb these sites only, as `emu.contract.selection.Selection` reads it; the others are digital.
        exclude: leave these sites digital.
        set: numbers of the device, by the names of `Bench.settings`.
        faults: a list of faults as `(array, number)`, as `docs/operators.md` has them; None for the model's own.
    """

    seed: int = 0
    read_seed: int = 0
    head: int = -1
    strength: float = 1.0
    only: str | None = None
    exclude: str | None = None
    set: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[tuple[int, int]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `Trial(**plain)` is the same trial."""
        given = {name: value for name, value in asdict(self).items() if name != "faults" or value is not None}
        return {**given, "set": dict(self.set)}


@dataclass(frozen=True)
class Score:
    """What one trial measured.

    Args:
        metrics: value of each metric by name, `accuracy` among them for classification; shares are 0 to 1. Those that
            compare with the clean model are 1 or infinite for equal outputs.
        correct: samples answered right, for tasks that have right answers; else 0.
        samples: number of samples.
        undefined: samples whose outputs hold NaN where the task reads them, or have no defined answer for another
            reason that `docs/evaluation.md` lists by task; they count as wrong, or are left out of means.
        outcomes: what the metrics are made of, sample by sample, as `Task.outcomes`; None unless they are kept.
        values: what the task's primary metric is the mean of, `[samples]`, such as whether each answer is right; None
            where it is no mean over samples, or where a store kept the metrics alone.
    """

    metrics: Mapping[str, float]
    correct: int
    samples: int
    undefined: int
    outcomes: Kept | None = field(default=None, compare=False, repr=False)
    values: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1.

        Raises:
            InputError: the task has no accuracy.
        """
        if "accuracy" not in self.metrics:
            raise InputError(f"This task measures {', '.join(self.metrics)}, and no accuracy.")
        return self.metrics["accuracy"]


class Settings(Rewriting, total=False):
    """How a model is rewritten and measured: keyword arguments of `Bench`, and of what makes one.

    Those of `emu.rewriter.Rewriting` are for a plain model, but for `set`, which of a rewritten one may change the
    numbers of its device tensor. `task` is what is measured, a task or its name with its options, such as
    `multiple_choice:normalize=tokens`; without it, it is guessed from the model's outputs and the data. `samples` uses
    the first samples only, this many, and `batch_size` rows at once, which changes results by no more than the rounding
    of sums in the model. `threads` are those of the session, else onnxruntime's default; `ops` is `native` for the C++
    operators, `python` for their NumPy twin.
    """

    task: Task | str | None
    samples: int | None
    batch_size: int | None
    threads: int | None
    ops: Literal["native", "python"]


class Bench:
    """A model and its data in one session.

    Args:
        model: a rewritten model; or a plain model, which is rewritten in memory for `device`; or a plain model without
            `device`, of which only the clean score can be had.
        data: arrays as an .npz file or a mapping, one per model input, samples along the first axis, and what the task
            compares with, such as `labels`; or a folder of images, a table or a data set, as `DataSource` describes,
            which also takes options; or the `dataset` of another bench, with its `task`.
        folder: where a model in memory has its processor or tokenizer; that of a file has them in its folder.
        calibrate: fits the ranges of converters to the data, where a plain model is rewritten for a device that wants
            ranges that fit; None to refuse such a device. `emu.Experiment.open` gives one.
        settings: how the model is rewritten and measured, see `Settings`.

    Attributes:
        arguments: how it was made, as plain data, for `emu.sweep` to make it again: `model` and `data` (absolute paths,
            or the name of a data set; None for what was in memory), `data_options` (options of `DataSource` that were
            given), `rewriting` (arguments that rewrote a plain model, devices as whole profiles), `set` (numbers of the
            devices that differ from those of a rewritten model), `task`, `samples`, `batch_size`, `threads`, `ops`.

        keep_samples: whether scores hold what their metrics are made of, sample by sample; False at first.

    Raises:
        InputError: the model, the data or a setting is wrong.
    """

    def __init__(
        self,
        model: "str | Path | onnx.ModelProto | EmulatedModel",
        data: str | Path | Mapping[str, Any] | DataSource | DataSet,
        *,
        folder: str | Path | None = None,
        calibrate: "Callable[[EmulatedModel, DataSet, Literal['native', 'python']], EmulatedModel] | None" = None,
        **settings: Unpack[Settings],
    ) -> None:
        from emu.rewriter import EmulatedModel, device_numbers, load_devices, read_manifest, rewrite
        from emu.runtime import session as open_session

        if unknown := settings.keys() - Settings.__optional_keys__:
            raise TypeError(f"Bench takes no '{min(unknown)}'")
        device, map, set = settings.get("device"), settings.get("map", ()), settings.get("set")
        task, batch_size, samples = settings.get("task"), settings.get("batch_size"), settings.get("samples")
        ops, threads = settings.get("ops", "native"), settings.get("threads")
        runnable, self.name = runnable_model(model)
        manifest = read_manifest(runnable)
        choices = ("only", "exclude", "share", "stored")
        asked: dict[str, Any] = {name: settings[name] for name in choices if settings.get(name) is not None}  # type: ignore[literal-required]
        rewriting: dict[str, Any] = {}
        if manifest is None and device is not None:
            profile, rules = load_devices(device, map, set)
            emulated = rewrite(runnable, profile, map=rules, **asked)
            runnable, manifest, set = emulated.model, emulated.manifest, None
            pairs = [[selection, each.model_dump(mode="json")] for selection, each in rules]
            rewriting = {"device": profile.model_dump(mode="json"), **({"map": pairs} if pairs else {}), **asked}
        elif device is not None:
            raise InputError(
                f"{self.name} is already rewritten: evaluate it without a device, or give the original model."
            )
        elif map or asked:
            raise InputError(
                f"'{'map' if map else next(iter(asked))}' is for rewriting a plain model: give it with a device."
            )
        elif manifest is None and set is not None:
            raise InputError(f"{self.name} has no device whose settings could change: give a device too.")
        if calibrate is None or not rewriting:
            check_calibrated(manifest, self.name)
        self.model = runnable
        self.manifest: Manifest | None = manifest
        asked_task = task_by_name(task) if isinstance(task, str) else task
        self._selected = cache(self._select)
        self._numbers = device_numbers(manifest) if manifest else DeviceNumbers({})
        self._set = parse_overrides(set)
        self.settings: dict[str, float] = self._numbers.flat(self._set)
        self.session = open_session(runnable, ops=ops, threads=threads)
        inputs = model_inputs(self.session)
        beside = Path(model).parent if isinstance(model, str | Path) else None if folder is None else Path(folder)
        self._folder = beside
        self.dataset, self.task = load(data, self.session, inputs, asked_task, samples, beside)
        self._fitted = rewriting and manifest is not None and manifest.calibration is None and calibrate is not None
        if self._fitted and calibrate is not None:
            fitted = calibrate(EmulatedModel.open(runnable), self.dataset, settings.get("ops", "native"))
            self.model, self.manifest = fitted.model, fitted.manifest
            self.session = open_session(self.model, ops=ops, threads=threads)
        self.task_was_guessed: bool = asked_task is None
        self.keep_samples = False
        self._data_digest: str | None = None
        self._clean: tuple[Score, Kept] | None = None
        self._warnings: tuple[str, ...] | None = None
        self._warned = False
        self._fixed = fixed_batch(inputs)
        if self._fixed is not None and batch_size not in (None, self._fixed):
            raise InputError(f"{self.name} takes exactly {self._fixed} samples at once: leave the batch size out.")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"The batch size is {batch_size} and must be at least 1.")
        self.batch_size: int = self._fixed or batch_size or DEFAULT_BATCH
        self.arguments: dict[str, Any] = {
            "model": _place(model) if isinstance(model, str | Path) else None,
            **_arguments_of(self.dataset.source),
            "rewriting": rewriting,
            "set": self._numbers.differing(self.settings),
            "task": self.task.name,
            "samples": len(self.dataset.labels),
            "batch_size": self.batch_size,
            "threads": threads,
            "ops": ops,
        }

    def with_data(
        self, data: str | Path | Mapping[str, Any] | DataSource | DataSet, samples: int | None = None
    ) -> "Bench":
        """The same model, session and task on other data.

        Args:
            data: as for `Bench`.
            samples: use only this many samples, the first ones.

        Raises:
            InputError: the data cannot be read, or do not fit the model and the task.
        """
        other = copy(self)
        other.dataset, _ = load(data, self.session, model_inputs(self.session), self.task, samples, self._folder)
        other._data_digest = other._clean = other._warnings = None
        other._warned = False
        changed = {**_arguments_of(other.dataset.source), "samples": len(other.dataset.labels)}
        other.arguments = {**self.arguments, **changed}
        return other

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the manifest, by index; none for a plain model."""
        return self.manifest.sites if self.manifest else ()

    @property
    def device_names(self) -> str:
        """The names of its devices, empty for a plain model."""
        return ", ".join(self.manifest.devices) if self.manifest else ""

    @property
    def about_sites(self) -> tuple[str, ...]:
        """Which products are on no device, which are exact there, and what converters were fitted to, as sentences.

        None for a plain model.
        """
        from emu.rewriter import about_sites

        if self.manifest is None:
            return ()
        how = self.manifest.calibration or {}
        fitted = (
            (
                f"Calibrated for this: ranges of converters by {how['method']} on the first {how['samples']} rows of "
                f"{self.dataset.where} (emu calibrate: other data and methods)."
            )
            if self._fitted
            else ""
        )
        return (*about_sites(self.manifest), *([fitted] if fitted else []))

    @cached_property
    def disturbed(self) -> frozenset[int]:
        """The indices of the sites at which something of a device acts, whatever its numbers; the others are exact."""
        from emu.rewriter import undisturbed_sites

        if self.manifest is None:
            return frozenset()
        return frozenset(site.index for site in self.sites) - {site.index for site in undisturbed_sites(self.manifest)}

    def disturbs(self, trial: Trial) -> bool:
        """Whether a trial reaches a site at which a device acts, of one head a site that has heads."""
        strengths = self.strengths(trial)
        reached = [site for site in self.sites if strengths[site.index] > 0 and site.index in self.disturbed]
        return any(trial.head < 0 or site.heads for site in reached)

    @property
    def batches(self) -> int:
        """Batches of one trial."""
        return -(-self.dataset.rows // self.batch_size)

    @property
    def clean(self) -> Score:
        """The score of the model without any disturbance, run when it is first needed."""
        return self._clean[0] if self._clean else self.run_clean()

    def cost(self, set: Overrides | None = None, costs_of: "str | Path | Profile | None" = None) -> dict[str, float]:
        """What one sample takes on the devices, and what they take: see `emu.cost`.

        A model that leaves the number of tokens open is counted at the length of the data.

        Args:
            set: numbers of the device that differ from those of the bench, as in a trial.
            costs_of: a device whose constants stand in where a device has none.

        Returns:
            `energy_uj`, `latency_us`, both of one sample, and `area_mm2`; only what the devices have constants for.

        Raises:
            InputError: the model is plain, or as in `emu.cost.cost_of_sites`.
        """
        from emu.cost import cost_of_sites, own_tokens, total_cost, with_costs_of

        if self.manifest is None:
            raise InputError(f"{self.name} is not rewritten and takes nothing of a device: give a device.")
        entries = self._numbers.changed({**self._set, **parse_overrides(set)})
        own = {
            name: (load_profile(each.profile), self._numbers.own[name], entries[name])
            for name, each in self.manifest.devices.items()
        }
        profiles = {
            name: load_profile(
                profile, {each: _whole(changed[each]) for each in changed if changed[each] != given[each]}
            )
            for name, (profile, given, changed) in own.items()
        }
        if costs_of is not None:
            profiles, _ = with_costs_of(profiles, load_profile(costs_of))
        widths = {array.shape[1] for array in self.dataset.arrays.values() if array.ndim == 2}
        tokens = widths.pop() if len(widths) == 1 and own_tokens(self.sites) is None else None
        total = total_cost(cost_of_sites(self.sites, profiles, tokens=tokens, name=self.name)).iloc[0]
        return {name: float(total[name]) for name in COSTS if math.isfinite(total[name])}

    def run_clean(self, progress: Callable[[], None] | None = None) -> Score:
        """Runs the model without any disturbance: at strength 0, the clean products.

        What the task keeps of the outputs stays in memory, for the trials to be compared with.
        """
        kept = self._outputs(control_feeds(self.manifest, strength=0.0) if self.manifest else {}, progress)
        self._clean = self._score(kept, kept), kept
        return self._clean[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the clean score may not be believed, as sentences: what the inputs hold, and what the model answers."""
        if self._warnings is None:
            answers = self._clean_answers()
            exact = (_NOTHING_ACTS.format(self.device_names),) if self.sites and not self.disturbed else ()
            self._warnings = (*self.dataset.warnings, *(warnings_of(answers) if answers else ()), *exact)
        return self._warnings

    def warn(self, say: Callable[[str], object]) -> None:
        """Says the warnings, once for these data."""
        for warning in self.warnings if not self._warned else ():
            say(f"Warning: {warning}")
        self._warned = True

    def require_plausible(self) -> None:
        """Refuses trials of a clean model that is no better than chance, unless the data are to be taken `anyway`.

        Raises:
            InputError: it is not.
        """
        answers = self._clean_answers()
        if answers is not None and not (self.dataset.source and self.dataset.source.anyway):
            refuse_below_chance(answers, self.name)

    def _clean_answers(self) -> Answers | None:
        if self._clean is None:
            self.run_clean()
        assert self._clean is not None
        return self.task.chosen(self._clean[1], self.dataset)

    def run(self, trial: Trial, progress: Callable[[], None] | None = None) -> Score:
        """Runs one trial; before the first one, the clean model, if it has not been run.

        Args:
            trial: the setting of the controls.
            progress: called after each batch.

        Raises:
            InputError: the model is plain, or the trial names a site, a number or a seed that does not exist.
        """
        controls = self.controls(trial)
        if self._clean is None:
            self.run_clean()
        assert self._clean is not None
        return self._score(self._outputs(controls, progress), self._clean[1])

    def controls(self, trial: Trial) -> dict[str, NDArray[Any]]:
        """The control inputs of a trial, by the names of the model's inputs.

        Raises:
            InputError: as in `run`.
        """
        if self.manifest is None:
            raise InputError(f"{self.name} is not rewritten and has no controls: give a device.")
        feeds = control_feeds(
            self.manifest,
            seed=trial.seed,
            read_seed=trial.read_seed,
            head=trial.head,
            set={**self._set, **trial.set},
            faults=trial.faults,
            numbers=self._numbers,
        )
        if trial.only is None and trial.exclude is None and trial.strength == 1:
            return feeds  # the model's own strengths
        return {**feeds, "emu.strength": self.strengths(trial)}

    def strengths(self, trial: Trial) -> NDArray[np.float32]:
        """The factor of each site under a trial, float32 `[sites]`."""
        strengths = np.zeros(len(self.sites), np.float32)
        strengths[self._selected(trial.only, trial.exclude)] = trial.strength
        return strengths

    def _select(self, only: str | None, exclude: str | None) -> list[int]:
        """The indices of the sites that a selection leaves."""
        return [site.index for site in select(self.sites, only, exclude, may_be_empty=True)]

    def fingerprint(self) -> dict[str, str]:
        """What results depend on beside the trial, each as a short text: equal texts, equal results.

        Returns:
            `model`, `device` and `data`, as SHA-256 in hexadecimal; `task`, its name with its options; and `emu`, the
            format of its operators.
        """
        if self._data_digest is None:
            self._data_digest = self.dataset.digest()
        if isinstance(self.model, str | Path):
            model = _digest_of_files(Path(self.model))
        else:
            model = hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()
        manifest = self.manifest
        device = json.dumps([plain(manifest.devices) if manifest else None, self.settings], sort_keys=True)
        return {
            "model": model,
            "device": hashlib.sha256(device.encode()).hexdigest(),
            "data": self._data_digest,
            "task": self.task.name,
            "emu": str(manifest.format) if manifest else "",
        }

    def _outputs(self, controls: dict[str, NDArray[Any]], progress: Callable[[], None] | None) -> Kept:
        """What the task keeps of the outputs for all samples."""
        names = self.task.outputs(self.session)
        parts: list[Kept] = []
        for start, feeds in self.dataset.batches(self.batch_size, pad=self._fixed is not None):
            rows = slice(start, min(start + self.batch_size, self.dataset.rows))
            index = control_feeds(self.manifest, sample=start) if self.manifest else {}
            values = [np.asarray(value) for value in self.session.run(names, {**feeds, **controls, **index})]
            if self._fixed is not None:
                count = rows.stop - rows.start
                values = [value[:count] if value.ndim else value for value in values]
            parts.append(self.task.keep(dict(zip(names, values, strict=True)), self.dataset, rows))
            if progress is not None:
                progress()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _score(self, kept: Kept, clean: Kept) -> Score:
        measured = self.task.measure(kept, self.dataset, clean)
        outcomes = self.task.outcomes(kept, self.dataset, clean) if self.keep_samples else None
        samples = len(self.dataset.labels)
        return Score(measured.metrics, measured.correct, samples, measured.undefined, outcomes, measured.values)


def seeds_of(chips: int, first_seed: int = 0) -> range:
    """The seeds of so many chips.

    Raises:
        InputError: no chip, or seeds that do not exist.
    """
    if chips < 1 or first_seed < 0 or first_seed + chips - 1 > LARGEST_SEED:
        raise InputError(f"{chips} chips from seed {first_seed} on: give at least one chip, with seeds 0 to 2^32 - 1.")
    return range(first_seed, first_seed + chips)


def runnable_model(model: Any) -> tuple[Any, str]:
    """What a session and the rewriter take, and the model's name for messages."""
    if isinstance(model, str | Path):
        if not Path(model).is_file():
            raise InputError(f"There is no model file {model}.")
        return model, str(model)
    proto = getattr(model, "model", model)
    return proto, str(proto.graph.name or "model")


def check_calibrated(manifest: Manifest | None, name: str) -> None:
    """Refuses a model whose calibrated converters have no ranges yet.

    Raises:
        InputError: it has none.
    """
    if manifest is not None and manifest.calibration is None:
        raise InputError(
            f"{name} has converters with calibrated ranges and is not calibrated yet: run 'emu calibrate' on the "
            "rewritten model first."
        )


def _whole(value: float) -> float | int:
    """A number of a device as its profile has it."""
    return int(value) if value == int(value) else value


def _arguments_of(source: DataSource | None) -> dict[str, Any]:
    """Where data are from and how they were prepared, as plain data."""
    if source is None:
        return {"data": None, "data_options": {}}
    options: dict[str, Any] = {name: getattr(source, name) for name in source.options}
    for name, value in options.items():
        if name in ("processor", "classes"):
            options[name] = _place(value)
        elif not isinstance(value, str | int | float):
            options[name] = list(value)
    return {"data": _place(source.path), "data_options": options}


def _place(path: str | Path) -> str:
    """The absolute path of a file or folder, or a name that is neither."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def _digest_of_files(path: Path) -> str:
    """SHA-256 over a model file and the external data it names, in the order of their names."""
    import onnx

    digest = hashlib.sha256()
    proto = onnx.load(path, load_external_data=False)
    files = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    for name in sorted(files):  # a model comes from anywhere, and a device such as /dev/zero never ends
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or not (path.parent / name).is_file():
            raise InputError(f"Model {path} keeps tensors in '{name}': that must be a file in the model's folder.")
    for file in [path, *(path.parent / name for name in sorted(files))]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
