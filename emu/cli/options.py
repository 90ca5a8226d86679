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
