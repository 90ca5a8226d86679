"""The command line: parses, calls the package, prints. Anything that it does, three lines of Python do too."""

import errno
import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from emu.errors import InputError

# Heavy packages (numpy, onnx, onnxruntime, pydantic) are imported by the commands that need them: help is quick.


class _Group(TyperGroup):
    """Turns errors into one sentence on stderr and an exit code: 1 failed, 2 bad usage or input."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            _fail(str(error), 2)
        except KeyboardInterrupt:
            _fail("interrupted.", 130)
        except Exception as error:
            text = " ".join(str(error).split())
            if "emu:" in text:  # an operator refused what it was given; onnxruntime wraps its sentence
                _fail(text[text.index("emu:") :], 2)
            if isinstance(error, MemoryError):
                _fail("not enough memory.", 1)
            if type(error).__module__.startswith("onnxruntime"):
                _fail(text, 1)
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                _fail(text, 1)
            raise


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Group,
    help="Emulate transformers on analog crossbars: rewrite an ONNX model for a device, run it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def main() -> None:
    """Runs the command line."""
    app(prog_name="emu")


def _print_version(wanted: bool) -> None:
    if wanted:
        from emu import __version__

        typer.echo(f"emu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|FILE]", help="Explain this device.")] = None,
    set: Set = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot what the device does instead, into a .png, .svg or .pdf file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the devices, explain every setting of one, or plot what it does."""
    from dataclasses import asdict

    from emu.device import describe, load_profile, preset_names

    if name is None:
        if set:
            raise InputError("--set changes one device: name it, as in 'emu devices rram --set program.sigma=0.15'.")
        if plot:
            raise InputError("--plot is of one device: name it, as in 'emu devices pcm --plot pcm.png'.")
        profiles = [load_profile(preset) for preset in preset_names()]
        if as_json:
            _print_json([{"name": p.name, "description": p.description, "source": p.source} for p in profiles])
        else:
            _print_table(["device", "description"], [[p.name, p.description] for p in profiles])
        return
    profile = load_profile(name, set)
    if plot:
        from emu.device.plot import plot_device

        not_shown = plot_device(profile, plot)
        if as_json:
            _print_json({"plot": str(plot), "not_shown": not_shown})
        else:
            typer.echo(f"Wrote {plot}" + (f" (not shown: {'; '.join(not_shown)})" if not_shown else ""))
        return
    settings = describe(profile)
    if as_json:
        _print_json(
            {
                "profile": profile.model_dump(mode="json"),
                "settings": [asdict(setting) for setting in settings],
                "structure": profile.structure(),
                "entries": profile.entries(),
            }
        )
        return
    typer.echo(f"{profile.name}: {profile.description or 'no description'}")
    typer.echo(f"Source: {profile.source or 'not given'}")
    typer.echo("Settings marked * can change in a rewritten model; the others shape its graph.")
    section = ""
    for setting in settings:
        if setting.name.split(".")[0] != section:
            section = setting.name.split(".")[0]
            typer.echo(f"\n[{section}]")
        mark = "*" if setting.entry else " "
        unit = f" {setting.unit}" if setting.unit not in ("", "1") and setting.value is not None else ""
        typer.echo(f"{mark} {setting.name} = {setting.shown}{unit}   ({setting.range})")
        _print_wrapped(f"{setting.meaning} [{setting.source}]", indent=6)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A plain or rewritten model.")],
    stored: Stored = None,
    as_json: Json = False,
) -> None:
    """Show the sites of a model: its matrix products that are or could be on crossbars."""
    from emu.rewriter import read_manifest
    from emu.rewriter import rewrite as rewrite_model

    manifest = read_manifest(model)
    if manifest and stored is not None:
        raise InputError(f"{model} is rewritten already, with its stored tensors: leave out --stored.")
    # The sites of a plain model are those that it gets when it is rewritten.
    plain = {} if manifest else rewrite_model(model, "ideal", stored=stored).manifest
    for site in plain.get("sites", []):
        del site["device"]
    report = manifest or {"devices": None, **_pick(plain, ("sites", "skipped"))}
    if as_json:
        _print_json(report)
        return
    what = f"rewritten for {', '.join(manifest['devices'])}" if manifest else "not rewritten"
    typer.echo(f"{model}: {what}, {len(report['sites'])} sites")
    for note in _states(report):
        typer.echo(note)
    typer.echo()
    columns = ["index", "layer", "component", "op" if manifest else "source_op", "shape", "heads"]
    columns += [*(["tiles"] if manifest else []), "parameters", "macs"]
    columns += ["array"] if any("shares_with" in site for site in report["sites"]) else []
    columns += [*(["device"] if manifest and len(manifest["devices"]) > 1 else []), "node"]
    _print_table(columns, [[_cell(site[column]) for column in columns] for site in report["sites"]])
    typer.echo()
    _print_components(report["sites"])
    _print_skipped(report)


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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.", show_default="MODEL.DEVICE.onnx")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Rewrite a model so that its matrix products run on a device's crossbars."""
    from emu.rewriter import load_devices
    from emu.rewriter import rewrite as rewrite_model

    profile, rules = load_devices(device, map or (), set)
    target = output or model.with_name(f"{model.stem}.{profile.name}.onnx")
    _check_target(target, model, overwrite)
    emulated = rewrite_model(
        model,
        profile,
        map=rules,
        only=only,
        exclude=exclude,
        share=share or "by-content",
        stored=stored,
        faults=faults,
    )
    emulated.save(target)
    _print_components(emulated.manifest["sites"])
    _print_skipped(emulated.manifest)
    names = ", ".join(emulated.manifest["devices"])
    typer.echo(f"Wrote {target} for {names}, {len(emulated.manifest['sites'])} sites.")
    if _is_uncalibrated(emulated.manifest):
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

    _check_target(output, model, overwrite)
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
        _print_json([dict(zip(head, [component, *counts], strict=True)) for component, counts in rows.items()])
        return
    _print_table(head, [[component, *counts] for component, counts in rows.items()])
    typer.echo(f"Wrote {output}: the faults of chip {found.origin['seed']}.")


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A rewritten model with calibrated converters.")],
    data: Annotated[Path, typer.Option(help="An .npz file with one array per model input.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.", show_default="MODEL.calibrated.onnx")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Use the first so many samples.")] = None,
    method: Annotated[
        Literal["minmax", "percentile", "entropy"], typer.Option(help="How ranges follow from the numbers seen.")
    ] = "minmax",
    percentile: Annotated[float, typer.Option(help="Share of the numbers in range, in percent.")] = 99.99,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="8")] = None,
    threads: Threads = None,
    ops: Ops = "native",
    as_json: Json = False,
) -> None:
    """Fit the input and output ranges of converters to data."""
    from emu.calibration import calibrate as run_calibration
    from emu.calibration import calibrated_sites

    target = output or model.with_name(f"{model.stem}.calibrated.onnx")
    _check_target(target, model, overwrite)
    with _Progress("calibrating") as progress:
        result = run_calibration(
            model,
            data,
            samples=samples,
            method=method,
            percentile=percentile,
            batch_size=batch_size,
            threads=threads,
            ops=ops,
            progress=progress,
        )
    result.save(target)
    ranges = result.value("emu.ranges").tolist()
    rows = []
    for index, (dac, adc) in calibrated_sites(result.manifest).items():
        site, (largest, low, high) = result.manifest["sites"][index], ranges[index]
        outputs = (low, high) if adc else (None, None)
        rows.append([index, site["component"], largest if dac else None, *outputs, site["node"]])
    head = ["index", "component", "largest_input", "lowest_output", "highest_output", "node"]
    if as_json:
        sites = [dict(zip(head, row, strict=True)) for row in rows]
        _print_json({**result.manifest["calibration"], "output": str(target), "sites": sites})
        return
    _print_table(head, [[_cell(value) for value in row] for row in rows])
    typer.echo(f"Wrote {target}, calibrated on {result.manifest['calibration']['samples']} samples.")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A plain or rewritten model.")],
    data: Annotated[Path, typer.Option(help="An .npz file: one array per model input, and 'labels'.")],
    chips: Annotated[int, typer.Option(min=1, help="Number of chips.")] = 10,
    device: Device = None,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="32")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Use the first so many samples.")] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip.")] = 0,
    read_seed: Annotated[int, typer.Option(min=0, help="Seed of the run-time noise.")] = 0,
    threads: Threads = None,
    ops: Ops = "native",
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a model, clean and over several chips."""
    from emu.evaluation import evaluate as run_evaluation

    with _Progress("evaluating") as progress:
        result = run_evaluation(
            model,
            data,
            chips=chips,
            device=device,
            set=set,
            map=map or (),
            only=only,
            exclude=exclude,
            stored=stored,
            share=share,
            batch_size=batch_size,
            threads=threads,
            first_seed=first_seed,
            read_seed=read_seed,
            samples=samples,
            ops=ops,
            progress=progress,
        )
    for name in result.ignored:
        typer.echo(f"Note: array '{name}' of {result.data} is no input of the model and was not used.", err=True)
    if as_json:
        _print_json(result.as_dict())
        return
    low, high = result.clean_ci95
    typer.echo(f"model    {result.model}" + (f" ({result.device}, {result.sites} sites)" if result.device else ""))
    typer.echo(f"data     {result.data}, {result.clean.samples} samples")
    typer.echo(f"clean    {result.clean.accuracy:.2%}  (95 % interval over test samples {low:.2%} to {high:.2%})")
    spread = result.spread
    if spread is None:
        return
    accuracies = [chip.accuracy for chip in result.chips]
    text = f"chips    {spread.mean:.2%}"
    if spread.std is not None and spread.ci95 is not None:
        text += f" +- {spread.std:.2%}  (95 % interval of the mean {spread.ci95[0]:.2%} to {spread.ci95[1]:.2%};"
        text += f" worst {min(accuracies):.2%}, best {max(accuracies):.2%}, {len(accuracies)} chips)"
    else:
        text += f"  (one chip, seed {result.seeds[0]}; more chips give a spread)"
    typer.echo(text)
    undefined = result.clean.undefined + sum(chip.undefined for chip in result.chips)
    if undefined:
        typer.echo(f"Note: {undefined} outputs were not a number and count as wrong.", err=True)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A plain or rewritten model.")],
    input: Annotated[Path, typer.Option(help="An .npz file with one array per model input.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which chip.", show_default="0")] = None,
    read_seed: Annotated[int | None, typer.Option(help="Which repetition on that chip.", show_default="0")] = None,
    sample: Annotated[int | None, typer.Option(help="Index of the first sample.", show_default="0")] = None,
    head: Annotated[int | None, typer.Option(help="Disturb this head only; -1: all.", show_default="-1")] = None,
    set: Set = None,
    threads: Threads = None,
    ops: Ops = "native",
    as_json: Json = False,
) -> None:
    """Run a model once and summarize its outputs."""
    from emu.evaluation import run as run_once

    outputs = run_once(
        model,
        input,
        seed=seed,
        read_seed=read_seed,
        sample=sample,
        head=head,
        set=set,
        threads=threads,
        ops=ops,
    )
    if output is not None:
        _save_arrays(output, outputs)
    rows = [
        {"output": name, "shape": list(array.shape), "dtype": str(array.dtype), **_summary(array)}
        for name, array in outputs.items()
    ]
    if as_json:
        _print_json(rows)
        return
    _print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    if output is not None:
        typer.echo(f"Wrote {output}.")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to write.")] = Path("emu-demo"),
    chips: Annotated[int, typer.Option(min=1, help="Number of chips per sigma.")] = 5,
) -> None:
    """Measure a small trained model on RRAM chips: a first study, in under a minute."""
    from emu.demo import run_demo

    run_demo(folder, echo=typer.echo, chips=chips)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation."""
    from emu.runtime import doctor as check

    checks = check()
    if as_json:
        _print_json([{"name": name, "ok": ok, "detail": detail} for name, ok, detail in checks])
    else:
        _print_table(["check", "", "detail"], [[name, "ok" if ok else "FAILED", detail] for name, ok, detail in checks])
    if not all(ok for _, ok, _ in checks):
        raise typer.Exit(1)


def _check_target(target: Path, model: Path, overwrite: bool) -> None:
    if target.exists() and model.exists() and target.samefile(model):
        raise InputError(f"{target} is the model itself: give another output with -o.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already: give another output with -o, or --overwrite.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent} to write {target.name} to.")


def _is_uncalibrated(manifest: Mapping[str, Any]) -> bool:
    return "calibration" in manifest and manifest["calibration"] is None


def _states(report: Mapping[str, Any]) -> list[str]:
    """Where ranges and faults of a rewritten model come from."""
    notes = []
    if _is_uncalibrated(report):
        notes.append("Its converters have calibrated ranges: run 'emu calibrate' before it runs.")
    elif "calibration" in report:
        calibration = report["calibration"]
        notes.append(f"Converters calibrated by {calibration['method']} on {calibration['samples']} samples.")
    if "faults" in report:
        notes.append(f"Every chip has the faults of chip {report['faults']['seed']}.")
    return notes


def _print_components(sites: Sequence[Mapping[str, Any]]) -> None:
    """Totals per component, in data-flow order."""
    rows = []
    for component in dict.fromkeys(site["component"] for site in sites):
        members = [site for site in sites if site["component"] == component]
        rows.append([component, len(members), _total(_arrays(members), "parameters"), _total(members, "macs")])
    rows.append(["all", len(sites), _total(_arrays(sites), "parameters"), _total(sites, "macs")])
    _print_table(["component", "sites", "parameters", "macs"], rows)


def _arrays(sites: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """One site for each physical array: sites that share one hold the same parameters."""
    return list({site["array"]: site for site in sites}.values())


def _total(sites: Sequence[Mapping[str, Any]], field: str) -> int | None:
    """The sum over sites, None where a site's share depends on a free size of the model."""
    values = [site[field] for site in sites]
    return None if None in values else sum(values)


def _print_skipped(report: Mapping[str, Any]) -> None:
    for site in report["sites"]:
        if "note" in site:
            typer.echo(f"Note: site {site['index']} '{site['node']}': {site['note']}.")
        if "tied_to" in site:
            others = ", ".join(map(str, site["tied_to"]))
            typer.echo(
                f"Note: site {site['index']} '{site['node']}' holds the transpose of site {others}: tied weights, "
                "but arrays of their own."
            )
    unselected = [skipped for skipped in report["skipped"] if skipped["reason"] == "not selected"]
    if unselected:
        typer.echo(f"Stays digital: {len(unselected)} sites that were not selected.")
    for skipped in (each for each in report["skipped"] if each not in unselected):
        typer.echo(f"Stays digital: {skipped['op']} '{skipped['node']}': {skipped['reason']}.")


class _Progress:
    """A line on a terminal's stderr that counts, for work over one second; nothing elsewhere."""

    def __init__(self, doing: str) -> None:
        self.doing, self.shown, self.start = doing, False, 0.0

    def __enter__(self) -> "_Progress":
        self.start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __call__(self, done: int, total: int) -> None:
        passed = time.monotonic() - self.start
        if passed > 1 and sys.stderr.isatty():
            self.shown = True
            bar = "#" * (30 * done // total)
            left = passed / done * (total - done)
            sys.stderr.write(f"\r\033[K{self.doing} [{bar:.<30}] {done}/{total}, {left:.0f} s left")
            sys.stderr.flush()


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right, an empty cell for None."""
    rows = [list(row) for row in rows]
    cells = [list(head), *([("" if value is None else str(value)) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(head))]
    for row in cells:
        text = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        typer.echo("  ".join(text).rstrip())


def _print_wrapped(text: str, indent: int) -> None:
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    typer.echo(textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent))


def _summary(array: Any) -> dict[str, float | None]:
    """Smallest, largest and mean number of an array, None where it is not a finite number."""
    summary: dict[str, float | None] = {}
    for name in ("min", "max", "mean"):
        value = float(getattr(array, name)()) if array.size and array.dtype.kind in "fiu" else math.nan
        summary[name] = value if math.isfinite(value) else None
    return summary


def _cell(value: Any) -> Any:
    """A value as a table shows it: shapes as 3x4 with ? for a free size, nothing as -."""
    if isinstance(value, list):
        return "x".join("?" if size is None else str(size) for size in value)
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _pick(report: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: report[key] for key in keys}


def _save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file, whole or not at all."""
    import zipfile

    import numpy as np

    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # numpy.savez refuses an array named "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
