"""Commands on model files: inspect, rewrite, faults, calibrate, ranges."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.app import app
from emu.cli.options import (
    AS_USUAL,
    BatchAxis,
    Data,
    DataOptions,
    Exclude,
    Json,
    Map,
    Only,
    Ops,
    Samples,
    Set,
    Share,
    Stored,
    Threads,
    grouped,
)
from emu.cli.output import Progress, cell, check_target, print_json, print_table
from emu.contract.manifest import Manifest, plain
from emu.contract.site import Site, one_of_each_array
from emu.errors import InputError

if TYPE_CHECKING:
    from emu.rewriter import EmulatedModel


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A plain or rewritten model.")],
    stored: Stored = None,
    batch_axis: BatchAxis = None,
    as_json: Json = False,
) -> None:
    """Show the sites of a model: its matrix products that are or could be on crossbars."""
    from emu.baking import read_baked
    from emu.rewriter import about_sites, read_manifest, undisturbed_sites
    from emu.rewriter import rewrite as rewrite_model

    written, baked = read_manifest(model), read_baked(model)
    for option, given in (("stored", stored), ("batch-axis", batch_axis)):
        if written and given is not None:
            raise InputError(f"{model} is rewritten already: leave out --{option}, or give the original model.")
    # The sites of a plain model are those that it gets when it is rewritten.
    manifest = written or rewrite_model(model, "ideal", stored=stored, batch_axis=batch_axis).manifest
    if as_json:
        exact = {"exact": [site.index for site in undisturbed_sites(manifest)]}
        record = {"baked": vars(baked)} if baked else {}
        print_json({**plain(manifest), **exact} if written else {**_without_devices(manifest), **record})
        return
    what = f"rewritten for {', '.join(manifest.devices)}" if written else "not rewritten"
    what = f"baked, {baked.in_words}" if baked else what
    typer.echo(f"{model}: {what}, {len(manifest.sites)} sites")
    if baked:
        settings = ", ".join(f"{name} {value:g}" for name, value in baked.settings.items())
        typer.echo(f"Stored values {baked.fingerprint[:16]}, from {baked.source or 'a model in memory'}; {settings}.")
    for note in (*_states(manifest), *_about(manifest)):
        typer.echo(note)
    typer.echo()
    columns = ["index", "layer", "component", "op" if written else "source_op", "shape", "heads"]
    columns += ["stack"] if any(site.stack > 1 for site in manifest.sites) else []
    columns += [*(["tiles"] if written else []), "parameters", "macs"]
    columns += ["array"] if any(site.shares_with for site in manifest.sites) else []
    columns += [*(["device"] if len(manifest.devices) > 1 else []), "node"]
    print_table(columns, [[cell(getattr(site, column)) for column in columns] for site in manifest.sites])
    typer.echo()
    _print_components(manifest.sites)
    _print_skipped(manifest, about_sites(manifest) if written else ())


@app.command()
def rewrite(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The exported model.")],
    device: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Device: a preset (see 'emu devices') or a .toml file.")
    ],
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    faults: Annotated[
        Path | None, typer.Option(help="Give every chip exactly these faults (see 'emu faults').")
    ] = None,
    batch_axis: BatchAxis = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.", show_default="MODEL.DEVICE.onnx")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Rewrite a model so that its matrix products run on a device's crossbars."""
    from emu.rewriter import about_sites, load_devices
    from emu.rewriter import rewrite as rewrite_model

    profile, rules = load_devices(device, map or (), set)
    target = output or model.with_name(f"{model.stem}.{profile.name}.onnx")
    check_target(target, model, overwrite)
    emulated = rewrite_model(
        model,
        profile,
        map=rules,
        only=only,
        exclude=exclude,
        share=share or "by-content",
        stored=stored,
        faults=faults,
        batch_axis=batch_axis,
    )
    emulated.save(target)
    _print_components(emulated.manifest.sites)
    _print_skipped(emulated.manifest, about_sites(emulated.manifest))
    for note in _about(emulated.manifest):
        typer.echo(note)
    names = ", ".join(emulated.manifest.devices)
    typer.echo(f"Wrote {target} for {names}, {len(emulated.manifest.sites)} sites.")
    if emulated.manifest.calibration is None:
        typer.echo(f"Its converters have calibrated ranges: run 'emu calibrate {target} --data DATA' before it runs.")


@app.command()
def faults(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A rewritten model whose device has faults.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the faults to this .npz file.")],
    seed: Annotated[int | None, typer.Option(help="Which chip.", show_default="0")] = None,
    set: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write the bit flips and stuck cells of one chip, for 'emu rewrite --faults'."""
    from emu.evaluation import draw_faults

    check_target(output, model, overwrite)
    found = draw_faults(model, seed=seed, set=set)
    found.save(output)
    rows: dict[str, list[int]] = {}
    for array in found.arrays:
        sums = rows.setdefault(array.component, [0, 0, 0, 0])
        counts = (1, array.shape[0] * array.shape[1], array.bit_flips, array.stuck_cells)
        rows[array.component] = [one + more for one, more in zip(sums, counts, strict=True)]
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    head = ["component", "arrays", "values", "bit_flips", "stuck_cells"]
    if as_json:
        print_json([dict(zip(head, [component, *counts], strict=True)) for component, counts in rows.items()])
        return
    print_table(head, [[component, *counts] for component, counts in rows.items()])
    typer.echo(f"Wrote {output}: the faults of chip {found.origin['seed']}.")


@app.command()
@grouped
def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A rewritten model with calibrated converters.")],
    data: Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.", show_default="MODEL.calibrated.onnx")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    options: DataOptions = AS_USUAL,
    samples: Samples = None,
    method: Annotated[
        Literal["minmax", "percentile", "entropy"], typer.Option(help="How ranges follow from the numbers seen.")
    ] = "minmax",
    percentile: Annotated[float, typer.Option(help="Share of the numbers in range, in percent.")] = 99.99,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="8")] = None,
    threads: Threads = None,
    ops: Ops = "native",
    as_json: Json = False,
) -> None:
    """Fit the ranges of converters, and of what is written at run time, to data."""
    from emu.calibration import calibrate as run_calibration

    target = output or model.with_name(f"{model.stem}.calibrated.onnx")
    check_target(target, model, overwrite)
    with Progress("calibrating") as progress:
        result = run_calibration(
            model,
            options.source(data),
            samples=samples,
            method=method,
            percentile=percentile,
            batch_size=batch_size,
            threads=threads,
            ops=ops,
            progress=progress,
        )
    result.save(target)
    head, rows = _ranges(result)
    how = result.manifest.calibration or {}
    if as_json:
        sites = [dict(zip(head, row, strict=True)) for row in rows]
        print_json({**how, "output": str(target), "sites": sites})
        return
    print_table(head, [[cell(value) for value in row] for row in rows])
    typer.echo(f"Wrote {target}, calibrated on {how['samples']} samples.")


@app.command()
def ranges(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A rewritten model with calibrated converters.")],
    export_to: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write all ranges to this CSV file.")
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Take the ranges of a CSV file, or the input ranges of a state dict of aihwkit-lightning "
            "(.safetensors, .pt).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write the model.", show_default="MODEL.calibrated.onnx"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Show, export or import the calibrated ranges of converters."""
    from emu.calibration import export_ranges, import_ranges
    from emu.rewriter import EmulatedModel

    if export_to and import_from:
        raise InputError("Ranges are exported or imported: give --export or --import.")
    if output and not import_from:
        raise InputError("-o is where a model with imported ranges goes: give --import too.")
    opened, target = EmulatedModel.open(model), output or model.with_name(f"{model.stem}.calibrated.onnx")
    wrote = ""
    if export_to:
        check_target(export_to, model, overwrite)
        wrote = f"Wrote {export_to}, {export_ranges(opened, export_to)} ranges."
    if import_from:
        check_target(target, model, overwrite)
        opened = import_ranges(opened, import_from)
        opened.save(target)
        wrote = f"Wrote {target}, with the ranges of {import_from}."
    head, rows = _ranges(opened)
    if as_json:
        print_json([dict(zip(head, row, strict=True)) for row in rows])
        return
    print_table(head, [[cell(value) for value in row] for row in rows])
    if wrote:
        typer.echo(wrote)


def _ranges(model: "EmulatedModel") -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of a table of calibrated ranges, one row for each site: the widest of its ranges."""
    from emu.calibration import ranges_by_site

    rows = []
    for site, fitted, own in ranges_by_site(model):
        largest, high, operand = own.max(axis=(0, 1, 2))[[0, 2, 3]].tolist()
        outputs = (float(own[..., 1].min()), high) if fitted.adc else (None, None)
        numbers = largest if fitted.dac else None, *outputs, operand if fitted.operand else None
        known = [None if number is None or math.isnan(number) else number for number in numbers]
        rows.append([site.index, site.component, own[..., 0].size, *known, site.node])
    names = ("largest_input", "lowest_output", "highest_output", "largest_operand")
    return ["index", "component", "ranges", *names, "node"], rows


def _without_devices(manifest: Manifest) -> dict[str, Any]:
    """What a plain model is, of the manifest that it would get: its sites are on no device yet."""
    report = plain(manifest)
    for site in report["sites"]:
        del site["device"]
    kept = ("sites", "skipped", "digital_share", "batch", "notes")
    return {"devices": None, **{key: report[key] for key in kept}}


def _states(manifest: Manifest) -> list[str]:
    """Where ranges and faults of a rewritten model come from."""
    notes = []
    calibration = manifest.calibration
    if calibration is None:
        notes.append("Its converters have calibrated ranges: run 'emu calibrate' before it runs.")
    elif calibration:
        on = f" on {calibration['samples']} samples" if "samples" in calibration else f" of {calibration['data']}"
        notes.append(f"Converters calibrated by {calibration['method']}{on}.")
    if manifest.faults is not None:
        notes.append(f"Every chip has the faults of chip {manifest.faults['seed']}.")
    return notes


def _about(manifest: Manifest) -> list[str]:
    """What decides on the numbers of a model: what reading changed in it, and where its samples lie."""
    notes = [f"Note: {note}." for note in manifest.notes]
    batch = manifest.batch
    if batch is not None and batch.input is not None:
        notes.append(f"Samples: axis {batch.axis} of '{batch.input}' ({batch.told}).")
    elif batch is not None:
        notes.append(f"Samples: one in every run ({batch.told}).")
    return notes


def _print_components(sites: Sequence[Site]) -> None:
    """Totals per component, in data-flow order."""
    members: dict[str, list[Site]] = {}
    for site in sites:
        members.setdefault(site.component, []).append(site)
    rows = [[name, len(group), *_totals(group)] for name, group in [*members.items(), ("all", sites)]]
    print_table(["component", "sites", "parameters", "macs"], rows)


def _totals(sites: Sequence[Site]) -> tuple[int, int | None]:
    """Parameters and multiply-accumulates of sites, None where these depend on a free size of the model."""
    macs = [site.macs for site in sites if site.macs is not None]
    return sum(site.parameters for site in one_of_each_array(sites)), sum(macs) if len(macs) == len(sites) else None


def _print_skipped(manifest: Manifest, lines: Sequence[str]) -> None:
    for site in manifest.sites:
        if site.note:
            typer.echo(f"Note: site {site.index} '{site.node}': {site.note}.")
        if site.tied_to:
            others = ", ".join(map(str, site.tied_to))
            typer.echo(
                f"Note: site {site.index} '{site.node}' holds the transpose of site {others}: tied weights, "
                "but arrays of their own."
            )
    for skipped in manifest.skipped:
        if not skipped.component:
            typer.echo(f"Stays digital: {skipped.op} '{skipped.node}': {skipped.reason}.")
    for line in lines:
        typer.echo(line)
    share = manifest.digital_share
    if manifest.skipped:
        known = f"{100 * share:.3g} % of all multiplications" if share is not None else "a share that free sizes decide"
        typer.echo(f"Digital in all: {known}.")
