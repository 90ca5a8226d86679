"""emu fit."""

from pathlib import Path
from typing import Annotated

import typer

from emu.cli.app import app
from emu.cli.options import Json
from emu.cli.output import print_json, print_table, print_wrapped


@app.command(epilog="Example: emu fit raw.csv -o mine.toml --plot fit.png")
def fit(
    readings: Annotated[
        Path,
        typer.Argument(
            metavar="CSV",
            help="Readings: columns target and measured (microsiemens), if at several times time, and device if "
            "devices were followed.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The device, a .toml file.")],
    law: Annotated[
        str,
        typer.Option(help="Law of programming: polynomial, normal_proportional, lognormal_g, table; auto: the best."),
    ] = "auto",
    clip: Annotated[
        str | None, typer.Option(help="Where conductances end: zero, range or none; found in the readings by default.")
    ] = None,
    g_max: Annotated[
        float | None,
        typer.Option(metavar="US", help="Largest conductance, microsiemens; the largest target by default."),
    ] = None,
    t0: Annotated[str, typer.Option(help="Time that drift by a power of time is counted in.")] = "20s",
    t_read: Annotated[str, typer.Option(help="Duration of a reading.")] = "250e-9",
    source: Annotated[str, typer.Option(help="What the device says of its source.")] = "",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot readings and law into a .png, .svg or .pdf file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a device of your own from readings: which law fits them, how well, and how it does on readings held out."""
    from dataclasses import asdict

    from emu.device import toml_of
    from emu.device.fields import DURATION, to_seconds
    from emu.device.fitting import fit_device, read_measurements
    from emu.errors import InputError
    from emu.files import whole_file

    if output.suffix != ".toml":
        raise InputError(f"{output} is where the device goes: end its name in .toml.")
    times = {}
    for name, text in (("--t0", t0), ("--t-read", t_read)):
        try:
            times[name] = float(to_seconds(text))
        except ValueError:
            raise InputError(f"{name} is '{text}' and must be {DURATION}.") from None
    if clip not in (None, "zero", "range", "none"):
        raise InputError(f"--clip is '{clip}': choose zero, range or none.")
    if plot:
        from emu.device.plot import figure_file

        figure_file(plot)
    measurements = read_measurements(readings)
    found = fit_device(
        measurements,
        name=output.stem,
        law=law,
        clip=clip,  # type: ignore[arg-type]
        g_max_us=g_max,
        t0_s=times["--t0"],
        t_read_s=times["--t-read"],
        source=source or f"emu fit {readings.name}",
    )
    if plot:
        from emu.device.fit_plot import plot_fit

        plot_fit(found, plot)
    with whole_file(output) as part:
        part.write_text(toml_of(found.profile), "utf-8")
    if as_json:
        print_json(
            {
                "profile": found.profile.model_dump(mode="json", exclude_unset=True),
                "candidates": [asdict(each) for each in found.candidates],
                "checks": [{**asdict(each), "passed": each.passed} for each in found.checks],
                "notes": found.notes,
                "output": str(output),
                "plot": str(plot) if plot else None,
            }
        )
        return
    typer.echo(f"Read {readings}: {found.profile.description.removeprefix('Fitted to ')}")
    print_table(
        ["law", "parameters", "BIC", "log-density held out"],
        [[each.law, str(each.parameters), f"{each.bic:.1f}", f"{each.held_out:.4f}"] for each in found.candidates],
    )
    for note in found.notes:
        print_wrapped(note, indent=0)
    for check in found.checks:
        when = f" at {check.time_s:g} s" if len(found.checks) > 1 else ""
        target, factor = check.worst
        print_wrapped(
            f"{check.rows} readings held out{when}: {100 * check.inside:.1f} % in the law's 95 %, spread "
            f"{check.spread:.3f} of what it says, worst at {target:.4g} microsiemens ({factor:.2f}): "
            + ("as expected." if check.passed else "NOT as expected; look at the figure (--plot)."),
            indent=0,
        )
    typer.echo(f"Wrote {output}: use it as --device {output}" + (f"; figure {plot}" if plot else ""))
