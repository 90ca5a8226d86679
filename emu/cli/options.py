"""Options that several commands share."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.errors import InputError

if TYPE_CHECKING:
    from emu.evaluation import DataSource

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
    Literal["native", "python"], typer.Option(help="Operators: the C++ library, or its NumPy twin (slow; an oracle).")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the session.", show_default="onnxruntime's")]
Data = Annotated[
    str,
    typer.Option(
        metavar="FILE|FOLDER|NAME",
        help="Arrays (.npz), a table (.csv, .jsonl, .parquet), a folder of images, or a data set of Hugging Face.",
    ),
]
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
Samples = Annotated[int | None, typer.Option(min=1, help="Use the first so many samples.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="32")]


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


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take several options as one argument, whose type is a dataclass with a field for each of them."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        group = parameter.annotation
        if is_dataclass(group):
            groups[parameter.name] = group
            parameters += inspect.signature(group).parameters.values()  # type: ignore[arg-type]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def with_groups(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field: given.pop(field) for field in inspect.signature(group).parameters})
        command(**given)

    # What Typer reads; by keyword, so that an option that must be given may follow one that need not.
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    with_groups.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return with_groups
