"""emu analyze cost."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.analyze import analyze_app
from emu.cli.options import Emulation, Model, Output, grouped
from emu.cli.output import print_json, print_table
from emu.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@analyze_app.command()
@grouped
def cost(
    model: Model,
    *,
    on: Emulation,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Lengths of the sequence: 64,128,256.", show_default="the model's"),
    ] = None,
    tile_rows: Annotated[
        str | None, typer.Option(metavar="LIST", help="Rows of an array: 64,128,256.", show_default="the device's")
    ] = None,
    costs_of: Annotated[
        str | None,
        typer.Option("--costs-of", metavar="DEVICE", help="Its constants stand in where a device has none."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE|SETTING",
            help="Compare with another device, or with other settings (write.alpha=0) of the same; may be repeated.",
        ),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Change a constant of the digital baseline (digital_bits=32); may be repeated. Those of a device are "
            "settings: --set cost.adc_pj=2.",
        ),
    ] = None,
    by: Annotated[
        Literal["component", "layer", "site"], typer.Option(help="What a line of the table is.")
    ] = "component",
    show_constants: Annotated[
        bool, typer.Option("--constants", help="List the constants with their sources as well.")
    ] = False,
    output: Output,
) -> None:
    """Count what a model takes on the device: cells, conversions, energy, area and latency, TOPS/W and TOPS/mm2."""
    from emu.analysis.cost import draw_cost
    from emu.analysis.figures import check_figure, save_figure
    from emu.analysis.ground import records
    from emu.cost import Baseline, compare_cost, constants, peak, total_cost
    from emu.cost import cost as count

    if output.plot:
        check_figure(output.plot)
    baseline = Baseline.of(constant)
    sizes: dict[str, Any] = {
        "tokens": _whole_numbers(tokens, "--tokens"),
        "tile_rows": _whole_numbers(tile_rows, "--tile-rows"),
    }
    if compare and max(len(each) for each in sizes.values()) > 1:
        raise InputError("--compare takes one length and one height: give --tokens and --tile-rows one number each.")

    def counted(device: str | None, set: list[str] | None) -> "pd.DataFrame":
        rewriting: Any = {**vars(on), "device": device, "map": on.map or (), "set": set}
        return count(model, costs_of=costs_of, baseline=baseline, **rewriting, **sizes)

    frame = counted(on.device, on.set)
    total = total_cost(frame)
    is_swept = len(total) > 1
    table = frame if by == "site" else total_cost(frame, (by,))
    profiles = frame.attrs["profiles"]
    listed = constants(profiles.values(), baseline)
    compared, other = None, ""
    if compare:
        changes = [each for each in compare if "=" in each]
        devices = [each for each in compare if "=" not in each]
        if len(devices) > 1:
            raise InputError(f"--compare names {' and '.join(devices)}: compare with one device at a time.")
        names = {each.partition("=")[0].strip() for each in changes}
        kept = [] if devices else [each for each in on.set or [] if each.partition("=")[0].strip() not in names]
        compared = compare_cost(frame, counted(devices[0] if devices else on.device, [*kept, *changes]))
        other = ", ".join([*devices, *changes])
    if output.as_json:
        plain = {name: frame.attrs[name] for name in ("model", "device", "notes")} | {"weights": _weights(frame, total)}
        plain |= {
            "peak": {key: _without_nan(peak(each)) for key, each in profiles.items()},
            "constants": records(listed),
        }
        plain |= {"total": records(total), f"by_{by}": records(table)}
        print_json(plain if compared is None else {**plain, "compared_with": other, "compared": records(compared)})
    else:
        typer.echo(f"model    {frame.attrs['model']} ({frame.attrs['device']})")
        typer.echo(f"weights  {_weights(frame, total)}")
        for profile in profiles.values():
            typer.echo(f"peak     {_peak(profile.name, peak(profile))}")
        for note in frame.attrs["notes"]:
            typer.echo(f"Note: {note}")
        if show_constants:
            typer.echo()
            rows = [["-" if each is None else each for each in row] for row in listed.itertuples(index=False)]
            print_table(list(listed.columns), rows)
        if compared is None:
            typer.echo("\nFor one sample:")
            _print_costs(total if is_swept else table, total, by, is_swept)
        else:
            _print_comparison(compared, other)
    if output.plot:
        heading = f"{Path(frame.attrs['model']).name} on {frame.attrs['device']}"
        files = save_figure(output.plot, [lambda axes: draw_cost(frame, axes)], table, heading, (6.8, 4.4))
        typer.echo(f"Wrote {' and '.join(map(str, files))}.", err=output.as_json)


def _weights(frame: "pd.DataFrame", total: "pd.DataFrame") -> str:
    """Where the weights are while a sample is computed, on the crossbars and in the digital baseline."""
    row = total.iloc[0]
    written = (frame["energy_write_uj"] != 0).any()
    text = f"resident on {int(row['arrays'])} arrays" + (" (K and V written for every sample)" if written else "")
    profiles = frame.attrs["profiles"].values()
    sizes = {getattr(profile.cost, "chip_cells", None) for profile in profiles}
    if len(sizes) == 1 and (size := next(iter(sizes))):
        chips = math.ceil(row["allocated"] / size)
        text += f", {row['allocated'] / size:.3g} of a chip" if chips == 1 else f", {chips} chips"
    if row["programming_uj"] > 0:
        text += f"; written once with {_short(row['programming_uj'])} uJ, in no sum"
    return f"{text}. Digital baseline: fetched from DRAM for every sample"


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _peak(name: str, found: Mapping[str, float]) -> str:
    """What a device reaches with full arrays, beside what is published."""

    def both(prefix: str) -> str:
        units = {"tops_per_w": "TOPS/W", "tops_per_mm2": "TOPS/mm2"}
        known = {unit: found[prefix + key] for key, unit in units.items() if not math.isnan(found[prefix + key])}
        return ", ".join(f"{value:.3g} {unit}" for unit, value in known.items())

    published = both("published_")
    return f"'{name}', arrays full and busy: {both('') or 'not modelled'}" + (
        f"; its makers publish {published}" if published else ""
    )


def _print_comparison(compared: "pd.DataFrame", other: str) -> None:
    """Energy, area and latency beside those of what is compared with."""
    typer.echo(f"\nFor one sample, compared with {other}:")
    names = {"energy_uj": "energy uJ", "area_mm2": "area mm2", "latency_us": "latency us"}
    head = ["component"]
    for label in names.values():
        head += [label, "other", "change"]
    lines = []
    for _, row in compared.iterrows():
        line = [row["component"]]
        for name in names:
            change = row[f"{name.split('_')[0]}_change"]
            line += [_short(row[name]), _short(row[f"other_{name}"]), "-" if math.isnan(change) else f"{change:+.1%}"]
        lines.append(line)
    print_table(head, lines)


_COLUMNS = {
    "arrays": "arrays",
    "cells": "cells",
    "dac_conversions": "DAC conv.",
    "adc_conversions": "ADC conv.",
    "energy_uj": "energy uJ",
    "energy_adc_uj": "of it ADC",
    "area_mm2": "area mm2",
    "latency_us": "latency us",
    "tops_per_w": "TOPS/W",
    "tops_per_mm2": "TOPS/mm2",
    "edp_uj_us": "EDP uJ us",
    "digital_uj": "digital uJ",
}


def _print_costs(table: "pd.DataFrame", total: "pd.DataFrame", by: str, is_swept: bool) -> None:
    """The table of sites, or of what was varied, and what follows from its sums."""
    if is_swept:
        keys = [key for key in ("tokens", "tile_rows") if total[key].nunique() > 1]
        head = [*keys, *_COLUMNS.values(), "digital / analog", "published"]
        lines = [
            [*(int(row[key]) for key in keys), *(_short(row[name]) for name in (*_COLUMNS, "ratio", "paper_ratio"))]
            for _, row in table.iterrows()
        ]
        print_table(head, lines)
        return
    lines = [
        [_name_of(row, by), *(_short(row[name]) for name in _COLUMNS)]
        for _, row in [*table.iterrows(), *total.iterrows()]
    ]
    lines[-1][0] = "all"
    print_table([by, *_COLUMNS.values()], lines)
    row = total.iloc[0]
    if any(cell == "-" for line in lines for cell in line[1:]):
        typer.echo("- is not modelled: see the notes.")
    typer.echo(
        f"\nDigital baseline {_short(row['digital_uj'])} uJ with weights fetched from DRAM, "
        f"{_short(row['digital_uj'] - row['digital_fetch_uj'])} uJ with weights resident (arithmetic "
        f"{_short(row['digital_arithmetic_uj'])}): {_short(row['ratio'])} and {_short(row['resident_ratio'])} times "
        "the energy on crossbars."
    )
    if not math.isnan(row["paper_ratio"]):
        typer.echo(f"By the published equations (8 and 9, in proportion only): {_short(row['paper_ratio'])} times.")
    typer.echo(
        "Latency is the sum over sites, one after another, and EDP the energy times that; the slowest takes "
        f"{_short(row['slowest_us'])} us, which sets the pace of TOPS/mm2."
    )


def _name_of(row: Mapping[str, Any], by: str) -> Any:
    value = row.get(by)
    if isinstance(value, float):
        return "-" if math.isnan(value) else int(value)
    return value


def _short(value: Any) -> str:
    """A number in few digits."""
    number = float(value)
    if math.isnan(number):
        return "-"
    return f"{number:.0f}" if number == int(number) and abs(number) < 1e7 else f"{number:.4g}"


def _whole_numbers(text: str | None, option: str) -> list[int]:
    if text is None:
        return []
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{option} '{text}' cannot be read: write whole numbers such as 64,128,256.") from None
