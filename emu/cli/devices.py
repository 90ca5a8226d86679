"""emu devices."""

from pathlib import Path
from typing import Annotated

import typer

from emu.cli.app import app
from emu.cli.options import Json, Set
from emu.cli.output import print_json, print_table, print_wrapped
from emu.errors import InputError


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|FILE]", help="Explain this device.")] = None,
    set: Set = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot what the device does instead, into a .png, .svg or .pdf file."),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Write the device that a configuration of aihwkit or aihwkit-lightning (JSON) describes, as TOML.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where --import writes; without it here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the devices, explain every setting of one, plot what it does, or import one."""
    from dataclasses import asdict

    from emu.device import describe, load_profile, preset_names

    if output and not import_from:
        raise InputError("--output is where --import FILE writes the device: give both.")
    if import_from:
        if name or plot:
            raise InputError("--import makes a device of its own: leave the name and --plot out.")
        _import(import_from, set, output, as_json)
        return
    if name is None:
        if set:
            raise InputError("--set changes one device: name it, as in 'emu devices rram --set program.sigma=0.15'.")
        if plot:
            raise InputError("--plot is of one device: name it, as in 'emu devices pcm --plot pcm.png'.")
        profiles = [load_profile(preset) for preset in preset_names()]
        if as_json:
            print_json([{"name": p.name, "description": p.description, "source": p.source} for p in profiles])
        else:
            print_table(["device", "description"], [[p.name, p.description] for p in profiles])
        return
    profile = load_profile(name, set)
    if plot:
        from emu.device.plot import plot_device

        not_shown = plot_device(profile, plot)
        if as_json:
            print_json({"plot": str(plot), "not_shown": not_shown})
        else:
            typer.echo(f"Wrote {plot}" + (f" (not shown: {'; '.join(not_shown)})" if not_shown else ""))
        return
    settings = describe(profile)
    if as_json:
        print_json(
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
        print_wrapped(f"{setting.meaning} [{setting.source}]", indent=6)


def _import(configuration: Path, overrides: list[str] | None, output: Path | None, as_json: bool) -> None:
    from emu.device import import_aihwkit, toml_of
    from emu.files import whole_file

    profile = import_aihwkit(configuration, overrides)
    if output:
        with whole_file(output) as part:
            part.write_text(toml_of(profile), "utf-8")
    if as_json:
        print_json({"profile": profile.model_dump(mode="json"), "output": str(output) if output else None})
    else:
        typer.echo(f"Wrote {output}: use it as --device {output}" if output else toml_of(profile), nl=bool(output))
