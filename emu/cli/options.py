"""Options that several commands share."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.errors import InputError

if TYPE_CHECKING:
    from emu.evaluation import Bench, DataSource
    from emu.sweep import Plan

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="[DEVICE:]SECTION.SETTING=VALUE",
        help="Change a setting of the device, of several the one named; may be repeated.",
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="Device: a preset (see 'emu devices') or a .toml file.")
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="SITES:NAME|FILE",
        help='Another device for these sites, whatever its profile selects: "component=ffn_*:ideal"; may be '
        "repeated, later ones win.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="SITES",
        help='Emulate these sites only: "layer=0-3 component=ffn_up,ffn_down"; "*" for all.',
        show_default="as the device's profile says",
    ),
]
Exclude = Annotated[
    str | None,
    typer.Option(
        metavar="SITES",
        help="Leave these sites digital. Either of the two replaces the selection of the device's profile.",
        show_default="as the device's profile says",
    ),
]
Stored = Annotated[
    str | None,
    typer.Option(
        metavar="TENSORS",
        help='Store these tensors that feed no product in arrays too: "component=word_embedding,norm".',
    ),
]
BatchAxis = Annotated[
    str | None,
    typer.Option(
        metavar="INPUT:AXIS",
        help="The axis of an input that counts samples, where it is told wrongly or cannot be told.",
        show_default="told by the inputs' free sizes",
    ),
]
Share = Annotated[
    Literal["by-content", "by-name", "never"] | None,
    typer.Option(
        help="Sites that share one physical array: those with equal weights, with the same one, or none.",
        show_default="by-content",
    ),
]
Ops = Annotated[
    Literal["native", "python"] | None,
    typer.Option(help="Operators: the C++ library, or its NumPy twin (slow; an oracle).", show_default="native"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the session.", show_default="onnxruntime's")]
DATA_HELP = "Arrays (.npz), a table (.csv, .jsonl, .parquet), a folder of images, or a data set of Hugging Face."
Data = Annotated[str, typer.Option(metavar="FILE|FOLDER|NAME", help=DATA_HELP)]
TaskName = Annotated[
    str | None,
    typer.Option(
        metavar="TASK[:OPTION=VALUE]",
        help="Measure classification, question_answering, multiple_choice, masked_tokens, similarity or arrays.",
        show_default="guessed",
    ),
]
Processor = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the image processor or tokenizer.",
        show_default="that of the model",
    ),
]
TextColumn = Annotated[list[str] | None, typer.Option(help="Column of the text; twice for pairs of texts.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images.")]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", "--labels", help="Column, or array, of what is right.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="ARRAY=INPUT", help="An array for an input of the model: x=pixel_values; may be repeated."
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Cut or fill texts to so many tokens.", show_default="longest of the set")
]
Classes = Annotated[
    str | None, typer.Option(metavar="FILE", help="The classes in the model's order: JSON, or one name a line.")
]
Split = Annotated[str | None, typer.Option(help="Part of a data set.", show_default="test")]
Prompt = Annotated[
    str | None, typer.Option(help='What is read before a choice: "Question: {question}\\nAnswer:" with any columns.')
]
Chips = Annotated[int, typer.Option(min=1, help="Number of chips.")]
FirstSeed = Annotated[int, typer.Option(min=0, help="Seed of the first chip.")]
ReadSeed = Annotated[int, typer.Option(min=0, help="Seed of the run-time noise.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Use the first samples only, this many.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Samples at once.", show_default="32; 8 where inner tensors are looked at")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A plain model, or one that was rewritten for a device.")]
StoreFile = Annotated[
    str | None,
    typer.Option("--store", metavar="FILE|URL", help="Keep finished trials here, and take from here what is finished."),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw the result into a .png, .svg or .pdf file; its data go beside it as .csv."),
]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"'{text}' cannot be read: write one number, or several with commas between them.") from None


Corrupt = Annotated[
    str | None,
    typer.Option("--corrupt", metavar="NAME:SEVERITY", help="Corrupt images: fog:3, or fog:3:7 with a seed."),
]
Mean = Annotated[
    tuple | None,  # type: ignore[type-arg]
    typer.Option(parser=_numbers, metavar="NUMBERS", help="What is subtracted from pixels of 0 to 1 in arrays."),
]
Std = Annotated[
    tuple | None,  # type: ignore[type-arg]
    typer.Option(parser=_numbers, metavar="NUMBERS", help="What pixels are divided by then."),
]

Anyway = Annotated[
    bool | None,
    typer.Option("--anyway", help="Run analyses and sweeps though the clean model is no better than chance."),
]


@dataclass(frozen=True)
class DataOptions:
    """How images and texts are prepared for a model: the options of `emu.evaluation.DataSource`."""

    processor: Processor = None
    text_column: TextColumn = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    max_length: MaxLength = None
    classes: Classes = None
    split: Split = None
    prompt: Prompt = None
    corruption: Corrupt = None
    mean: Mean = None
    std: Std = None
    inputs: Inputs = None
    anyway: Anyway = None

    def given(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [])}

    def source(self, data: str) -> "DataSource":
        """The data with these options."""
        from emu.evaluation import DataSource

        return DataSource(data, **self.given())


AS_USUAL = DataOptions()


@dataclass(frozen=True)
class Emulation:
    """What is on which device: the options that rewrite a plain model."""

    device: Device = None
    set: Set = None
    map: Map = None
    only: Only = None
    exclude: Exclude = None
    stored: Stored = None
    share: Share = None


@dataclass(frozen=True)
class Measuring:
    """What is measured on how much data, and how it runs."""

    task: TaskName = None
    prepared: DataOptions = AS_USUAL
    samples: Samples = None
    batch_size: BatchSize = None
    threads: Threads = None
    ops: Ops = None


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of `emu.Experiment`: every command that measures a model takes them all."""

    model: Model
    data: Data
    emulation: Emulation = Emulation()
    measuring: Measuring = Measuring()

    def settings(self, **changes: Any) -> dict[str, Any]:
        """What was given, as settings of an experiment, with changes."""
        from emu.device import parse_overrides

        measuring = {name: value for name, value in vars(self.measuring).items() if name != "prepared"}
        given = {"model": self.model, "data": self.data, **vars(self.emulation), **measuring}
        given |= {"data_options": self.measuring.prepared.given() or None, **changes}
        settings = {name: value for name, value in given.items() if value not in (None, [])}
        return settings | ({"set": parse_overrides(settings["set"])} if "set" in settings else {})

    def bench(
        self,
        data: Any = None,
        measured: Any = None,
        *,
        needs_device: bool = True,
        changes: Mapping[str, Any] | None = None,
    ) -> "Bench":
        """The bench, with changes of the settings; samples that are loaded already with the task they are for.

        Raises:
            InputError: as in `emu.Experiment.open`, or there is no device where one is needed.
        """
        from emu.experiment import Experiment

        bench = Experiment(**self.settings(**(changes or {}))).open(measured, data)
        if needs_device and bench.manifest is None:
            raise InputError(
                f"{self.model} is not rewritten: give --device, a preset (see 'emu devices') or a .toml file."
            )
        return bench

    @property
    def selection(self) -> dict[str, Any]:
        """`only` and `exclude` where they choose sites of a model that is rewritten already, for trials; else none."""
        chosen = {"only": self.emulation.only, "exclude": self.emulation.exclude}
        return {} if self.emulation.device else {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class PlanOptions:
    """The options of `emu.sweep.Plan`: those of an experiment, from a file too, and what varies."""

    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="A plain or rewritten model.")] = None
    data: Annotated[str | None, typer.Option(metavar="FILE|FOLDER|NAME", help=DATA_HELP)] = None
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS[=VALUES]",
            help="What to vary; may be repeated. A setting of the device, strength: 0.05,0.1 or 0.1:0.5:0.1 or "
            "1e-7:1e-3:5log. device: rram,pcm,mine.toml. model, data: files. seed, read_seed, layer, head: 0-9 or 0,2. "
            "component: ffn_*,query. layer, component, head alone: all of them. only: 'layer=0;layer=1-2 "
            "component=ffn_*'. Axes that go together: 'program.sigma=0.1,0.2; read.output_noise=0.02,0.04'.",
        ),
    ] = None
    seeds: Annotated[int | None, typer.Option(min=1, help="Chips of each point.", show_default="10")] = None
    costs_of: Annotated[
        str | None,
        typer.Option("--costs-of", metavar="DEVICE", help="Its constants of cost stand in where a device has none."),
    ] = None
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Take what is not given here from this .toml.")
    ] = None
    emulation: Emulation = Emulation()
    measuring: Measuring = Measuring()

    def plan(self, **more: Any) -> "Plan":
        """The plan: what was given, over what the file says, with more of its settings.

        Raises:
            InputError: as in `emu.sweep.Plan`, or no model or data.
        """
        from emu.experiment import read_settings
        from emu.sweep.plan import Plan, read_axes

        settings = read_settings(self.plan_file, "plan") if self.plan_file else {}
        one = ExperimentOptions(self.model, self.data, self.emulation, self.measuring)  # type: ignore[arg-type]
        given = one.settings(seeds=self.seeds, costs_of=self.costs_of, vary=read_axes(self.vary or []), **more)
        for name in ("data_options", "set", "vary"):
            given[name] = {**settings.get(name, {}), **given.get(name, {})}
        settings |= given
        axes = settings["vary"].items()
        varied = {name for key, values in axes for name in (values if isinstance(values, dict) else [key])}
        if not {"model", "data"} <= settings.keys() | varied:
            raise InputError("A sweep needs a model and --data, or a --plan that names them.")
        return Plan(**settings)


@dataclass(frozen=True)
class Sweeping:
    """Where a plan runs, and as which study."""

    study: Annotated[str, typer.Option(help="Name of the study in the store.")] = "sweep"
    new: Annotated[bool, typer.Option("--new", help="Start another study if model, device, data or task changed.")] = (
        False
    )
    workers: Annotated[int | None, typer.Option(min=1, help="Run on processes of this machine, this many.")] = None
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster: tcp://host:8786.")
    ] = None
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Keep what each trial gives for each sample, too.")
    ] = False


@dataclass(frozen=True)
class RunOptions:
    """Which chips run."""

    chips: Chips = 10
    first_seed: FirstSeed = 0
    read_seed: ReadSeed = 0


@dataclass(frozen=True)
class StoredRun(RunOptions):
    """Which chips run, and where their trials are kept."""

    store: StoreFile = None


@dataclass(frozen=True)
class Output:
    """What becomes of the result of an analysis."""

    plot: Plot = None
    as_json: Json = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take several options as one argument, whose type is a dataclass with a field for each of them.

    A field may be such a group itself.
    """
    groups: dict[str, Any] = {}
    # What Typer reads; by keyword, so that an option that must be given may follow one that need not.
    keywords: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
        keywords += _options_of(parameter)

    @functools.wraps(command)
    def with_groups(**given: Any) -> None:
        collected = {name: _collect(group, given) for name, group in groups.items()}
        command(**collected, **given)

    with_groups.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return with_groups


def _options_of(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """A parameter, or those of the group that it is."""
    group: Any = parameter.annotation
    if not is_dataclass(group):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    return [option for each in _fields(group) for option in _options_of(each)]


def _collect(group: Any, given: dict[str, Any]) -> Any:
    """A group made of what was given, which is taken out."""
    return group(
        **{
            each.name: _collect(each.annotation, given) if is_dataclass(each.annotation) else given.pop(each.name)
            for each in _fields(group)
        }
    )


def _fields(group: Any) -> Iterable[inspect.Parameter]:
    return inspect.signature(group).parameters.values()


def parse_share(text: str, option: str) -> float:
    """A share from `1%` or `0.01`.

    Raises:
        InputError: it is none, or not between 0 and 1.
    """
    text = text.strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise InputError(f"{option} '{text}' cannot be read: write a share such as 1% or 0.01, between 0 and 1.")
    return value
