"""Options that several commands share."""

from typing import Annotated, Literal

import typer

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
        help='Another device for these sites: "component=ffn_*:ideal"; may be repeated, later ones win.',
    ),
]
Only = Annotated[
    str | None, typer.Option(metavar="SITES", help='Emulate these sites only: "layer=0-3 component=ffn_up,ffn_down".')
]
Exclude = Annotated[str | None, typer.Option(metavar="SITES", help="Leave these sites digital.")]
Stored = Annotated[
    str | None,
    typer.Option(
        metavar="TENSORS",
        help='Store these tensors that feed no product in arrays too: "component=word_embedding,norm".',
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
LabelColumn = Annotated[str | None, typer.Option(help="Column of what is right.")]
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
