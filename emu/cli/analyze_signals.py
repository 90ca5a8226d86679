"""emu analyze: attention, snr and cost."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.analyze import Model, Plot, analyze_app, records
from emu.cli.options import (
    AS_USUAL,
    Chips,
    Data,
    DataOptions,
    Device,
    Exclude,
    FirstSeed,
    Json,
    Map,
    Only,
    Ops,
    Samples,
    Set,
    Threads,
    grouped,
)
from emu.cli.output import Progress, print_json, print_table
from emu.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="8")]
ReadSeed = Annotated[int, typer.Option(min=0, help="Seed of the run-time noise.")]

_SHOWN = 24  # rows of a long table that are printed


@analyze_app.command()
@grouped
def attention(
    model: Model,
    data: Data,
    device: Device = None,
    by: Annotated[
        Literal["head", "length"], typer.Option(help="Each head, or the number of tokens that are no padding.")
    ] = "head",
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Disturb only the layer that is looked at, not those before it.")
    ] = False,
    bins: Annotated[int, typer.Option(min=1, help="Bins of lengths, for --by length.")] = 5,
    chips: Chips = 5,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    read_seed: ReadSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    ops: Ops = "native",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure how far attention moves on the device, and whether it scatters, in each layer and head."""
    from emu.analysis.attention import attention as measure
    from emu.analysis.attention import draw_attention
    from emu.analysis.figures import check_figure, save_figure

    if plot:
        check_figure(plot)
    with Progress("attention") as progress:
        frame = measure(
            model,
            options.source(data),
            device=device,
            set=set,
            map=map or (),
            only=only,
            exclude=exclude,
            chips=chips,
            first_seed=first_seed,
            read_seed=read_seed,
            isolate=isolate,
            by=by,
            bins=bins,
            samples=samples,
            batch_size=batch_size,
            threads=threads,
            ops=ops,
            progress=progress,
        )
    how = "only the layer itself disturbed" if isolate else "layers before it disturbed too"
    if as_json:
        print_json({**_facts(frame), "isolate": isolate, "attention": records(frame)})
    else:
        _print_heading(frame)
        typer.echo(f"\nAttention against clean attention in nats, {how}, mean of {chips} chips:")
        place = ["head"] if by == "head" else ["tokens", "samples"]
        rows = []
        for _, row in frame.head(_SHOWN).iterrows():
            tokens = f"{row.get('shortest', 0):g}-{row.get('longest', 0):g}"
            where = [int(row["head"])] if by == "head" else [tokens, int(row["samples"])]
            moved, shifted = (_with_interval(row, name, 4) for name in ("kl", "entropy_shift"))
            rows.append([int(row["layer"]), *where, *moved, *shifted])
        print_table(["layer", *place, "KL divergence", "95 % interval", "entropy shift", "95 % interval"], rows)
        _print_more(frame)
    if plot:
        size = (max(4.8, 2.6 + 0.45 * frame.get("head", frame["layer"]).nunique()), 4.2)
        heading = f"{_heading(frame)}, {how}"
        panels = [
            lambda axes: draw_attention(frame, axes, "kl"),
            lambda axes: draw_attention(frame, axes, "entropy_shift"),
        ]
        _say_written(save_figure(plot, panels, frame, heading, size), as_json)


@analyze_app.command()
@grouped
def snr(
    model: Model,
    data: Data,
    device: Device = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUES",
            help="Try these values of a number of the device: write.gamma=3,4,5; may be repeated, for combinations.",
        ),
    ] = None,
    of: Annotated[
        Literal["block", "context"],
        typer.Option(help="Of the output of each block, or of its attention, softmax(QK^T)V."),
    ] = "block",
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.SETTING=VALUE",
            help="Compare with the same device and chip but for this number (write.gamma=0), not with the clean model.",
        ),
    ] = None,
    chips: Chips = 5,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    read_seed: ReadSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    ops: Ops = "native",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure the signal-to-noise ratio of every block's output, in dB."""
    from emu.analysis.figures import check_figure, save_figure
    from emu.analysis.snr import draw_signal_to_noise, signal_to_noise
    from emu.device import parse_overrides
    from emu.sweep.axes import numbers_of_axis

    if plot:
        check_figure(plot)
    varied: dict[str, list[Any]] = dict(numbers_of_axis(each) for each in vary or ())
    with Progress("signal-to-noise ratio") as progress:
        frame = signal_to_noise(
            model,
            options.source(data),
            device=device,
            set=set,
            map=map or (),
            only=only,
            exclude=exclude,
            vary=varied,
            of=of,
            reference=parse_overrides(reference) if reference else None,
            chips=chips,
            first_seed=first_seed,
            read_seed=read_seed,
            samples=samples,
            batch_size=batch_size,
            threads=threads,
            ops=ops,
            progress=progress,
        )
    against = f"the same chip with {' '.join(reference)}" if reference else "the clean model"
    if as_json:
        print_json({**_facts(frame), "of": of, "reference": reference or "clean", "snr": records(frame)})
    else:
        _print_heading(frame)
        what = "the attention of a layer" if of == "context" else "the output of a layer"
        typer.echo(f"\nSignal-to-noise ratio of {what} against {against}, mean of {chips} chips:")
        rows = [
            [*(_shown(row[name]) for name in varied), int(row["layer"]), *_with_interval(row, "snr_db", 2)]
            for _, row in frame.head(_SHOWN).iterrows()
        ]
        print_table([*varied, "layer", "dB", "95 % interval"], rows)
        _print_more(frame)
        print_layers = frame["layer"].nunique() > 1 and math.isfinite(frame["snr_db"].mean())
        if print_layers:
            groups = (
                frame.groupby(list(varied), sort=False)["snr_db"].mean() if varied else {"": frame["snr_db"].mean()}
            )
            for value, mean in groups.items():
                values = value if isinstance(value, tuple) else (value,)
                text = " ".join(f"{name}={_shown(each)}" for name, each in zip(varied, values, strict=False))
                typer.echo(f"mean over layers {mean:.2f} dB" + (f"  {text}" if text else ""))
    if plot:
        heading = f"{_heading(frame)}, against {against}"
        _say_written(
            save_figure(plot, [lambda axes: draw_signal_to_noise(frame, axes)], frame, heading, (6.4, 4.4)),
            as_json,
        )


@analyze_app.command()
def cost(
    model: Model,
    device: Device = None,
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
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Count what a model takes on the device: cells, conversions, energy, area and latency, TOPS/W and TOPS/mm2."""
    from emu.analysis.cost import draw_cost
    from emu.analysis.figures import check_figure, save_figure
    from emu.cost import Baseline, compare_cost, constants, peak, total_cost
    from emu.cost import cost as count

    if plot:
        check_figure(plot)
    baseline = Baseline.of(constant)
    sizes = {"tokens": _whole_numbers(tokens, "--tokens"), "tile_rows": _whole_numbers(tile_rows, "--tile-rows")}
    if compare and max(len(each) for each in sizes.values()) > 1:
        raise InputError("--compare takes one length and one height: give --tokens and --tile-rows one number each.")

    def counted(device: str | None, set: list[str] | None) -> "pd.DataFrame":
        rewriting = {"device": device, "map": map or (), "only": only, "exclude": exclude}
        return count(model, set=set, costs_of=costs_of, baseline=baseline, **rewriting, **sizes)  # type: ignore[arg-type]

    frame = counted(device, set)
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
        kept = [] if devices else [each for each in set or [] if each.partition("=")[0].strip() not in names]
        compared = compare_cost(frame, counted(devices[0] if devices else device, [*kept, *changes]))
        other = ", ".join([*devices, *changes])
    if as_json:
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
    if plot:
        _say_written(
            save_figure(plot, [lambda axes: draw_cost(frame, axes)], table, _heading(frame), (6.8, 4.4)), as_json
        )


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


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _whole_numbers(text: str | None, option: str) -> list[int]:
    if text is None:
        return []
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{option} '{text}' cannot be read: write whole numbers such as 64,128,256.") from None


def _with_interval(row: Mapping[str, Any], name: str, digits: int) -> list[str]:
    from emu.evaluation.metrics import fixed

    low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
    interval = "-" if math.isnan(low) else f"{fixed(low, digits)} to {fixed(high, digits)}"
    return [fixed(float(row[name]), digits), interval]


def _facts(frame: "pd.DataFrame") -> dict[str, Any]:
    return {key: value for key, value in frame.attrs.items() if key != "of"}


def _heading(frame: "pd.DataFrame") -> str:
    """One line on model, device and data for a figure."""
    samples = f", {frame.attrs['samples']} samples" if "samples" in frame.attrs else ""
    return f"{Path(frame.attrs['model']).name} on {frame.attrs['device']}{samples}"


def _print_heading(frame: "pd.DataFrame") -> None:
    typer.echo(f"model    {frame.attrs['model']} ({frame.attrs['device']})")
    typer.echo(f"data     {frame.attrs['data']}, {frame.attrs['samples']} samples")
    for note in frame.attrs["notes"]:
        typer.echo(f"Note: {note}")


def _print_more(frame: "pd.DataFrame") -> None:
    if len(frame) > _SHOWN:
        typer.echo(f"and {len(frame) - _SHOWN} more (--json shows all)")


def _say_written(files: Sequence[Path], as_json: bool) -> None:
    typer.echo(f"Wrote {' and '.join(map(str, files))}.", err=as_json)
