"""emu sweep, emu results and emu rerun."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.app import app, fail
from emu.cli.options import (
    AS_USUAL,
    BatchSize,
    DataOptions,
    Device,
    Exclude,
    Json,
    Map,
    Only,
    Samples,
    Set,
    Share,
    Stored,
    TaskName,
    Threads,
    grouped,
)
from emu.cli.output import Progress, print_json, print_table
from emu.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from emu.sweep.store import StudyInfo

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="An SQLite file, or the URL of a database.")]


@app.command()
@grouped
def sweep(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="A plain or rewritten model.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER|NAME",
            help="Arrays (.npz), a table (.csv, .jsonl, .parquet), a folder of images, or a data set of Hugging Face.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS[=VALUES]",
            help="What to vary; may be repeated. A setting of the device, strength: 0.05,0.1 or 0.1:0.5:0.1 or "
            "1e-7:1e-3:5log. device: rram,pcm,mine.toml. model, data: files. seed, read_seed, layer, head: 0-9 or 0,2. "
            "component: ffn_*,query. layer, component, head alone: all of them. only: 'layer=0;layer=1-2 "
            "component=ffn_*'. Axes that go together: 'program.sigma=0.1,0.2; read.output_noise=0.02,0.04'.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Chips of each point.", show_default="10")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="ci=WIDTH", help="Run chips until the 95 % interval is at most +- WIDTH: ci=0.5%."),
    ] = None,
    most: Annotated[
        int | None, typer.Option(min=3, help="Most chips of a point with --until.", show_default="100")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Measure energy, latency and area too, by the constants of the device.")
    ] = False,
    costs_of: Annotated[
        str | None,
        typer.Option("--costs-of", metavar="DEVICE", help="Its constants of cost stand in where a device has none."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Where to keep results: an SQLite file, or a database.")
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in the store.")] = "sweep",
    new: Annotated[
        bool, typer.Option("--new", help="Start another study if model, device, data or task changed.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take what is not given here from this .toml.")
    ] = None,
    write_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan into this .toml file, and run nothing.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Run on so many processes of this machine.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster: tcp://host:8786.")
    ] = None,
    device: Device = None,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    task: TaskName = None,
    options: DataOptions = AS_USUAL,
    batch_size: BatchSize = None,
    samples: Samples = None,
    threads: Threads = None,
    ops: Annotated[
        Literal["native", "python"] | None,
        typer.Option(help="Operators: the C++ library, or its NumPy twin (slow).", show_default="native"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model over settings and chips; every result is kept, and a rerun continues."""
    from emu.device import parse_overrides
    from emu.experiment import read_settings
    from emu.sweep import Store, run_plan
    from emu.sweep.plan import Plan, read_axes

    if workers is not None and scheduler is not None:
        raise InputError("--workers and --scheduler say both where to run: give one of them.")
    settings = read_settings(plan, "plan") if plan else {}
    given = {
        "model": model,
        "data": data,
        "device": device,
        "seeds": seeds,
        "until": until,
        "most": most,
        "map": map,
        "only": only,
        "exclude": exclude,
        "stored": stored,
        "share": share,
        "task": task,
        "batch_size": batch_size,
        "samples": samples,
        "threads": threads,
        "ops": ops,
        "cost": cost or None,
        "costs_of": costs_of,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    for name, changes in (
        ("data_options", options.given()),
        ("set", parse_overrides(set)),
        ("vary", read_axes(vary or [])),
    ):
        settings[name] = {**settings.get(name, {}), **changes}
    varied = {name for key, given in settings["vary"].items() for name in (given if isinstance(given, dict) else [key])}
    if not {"model", "data"} <= settings.keys() | varied:
        raise InputError("A sweep needs a model and --data, or a --plan that names them.")
    whole = Plan(**settings)
    if write_plan:
        whole.write(write_plan)
        typer.echo(f"Wrote {write_plan}; 'emu sweep --plan {write_plan} --store FILE' runs it.")
        return
    if store is None:
        raise InputError("A sweep keeps its results: give a file with --store, such as --store study.db.")
    with Store(store) as kept, _TrialProgress() as progress:
        try:
            table = run_plan(
                whole,
                store=kept,
                study=study,
                new=new,
                workers=scheduler or workers,
                progress=progress,
                echo=lambda line: typer.echo(line, err=True),
            )
        except KeyboardInterrupt:
            stored = f"{progress.done} new trials are in {kept.where}"
            typer.echo(f"\n{stored}: the same command goes on from there.", err=True)
            raise
        except RuntimeError as error:
            if type(error).__name__ == "WorkersDiedError":
                fail(str(error), 1)
            raise
    _print_summary(table, None, table.attrs["primary"], as_json)


@app.command()
def results(
    store: StoreArgument,
    study: Annotated[str | None, typer.Option(help="Number or name of a study; all without.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only trials with this value, as program.sigma=0.1; may be repeated."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Summarize by this column; may be repeated.", show_default="all that vary"),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Show this metric, or 'all'; may be repeated.", show_default="the task's primary one"
        ),
    ] = None,
    trials: Annotated[bool, typer.Option("--trials", help="List the single trials with their ids.")] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the single trials to a .csv or .parquet file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a store holds: mean, standard deviation and 95 % interval over chips of each point."""
    from emu.sweep import Store, keep
    from emu.sweep import export as write_file
    from emu.sweep.environment import mixture
    from emu.sweep.results import environments

    with Store(store, create=False) as kept:
        studies = kept.studies()
        frame = kept.frame(study)
    metrics = _metrics(frame, metric)
    frame = keep(frame, where or [])
    for number, part in frame.groupby("study"):
        if mixed := mixture(environments(part)):
            typer.echo(f"Note: study {number} mixes {mixed}: the last digits may differ between them.", err=True)
    if export:
        write_file(frame, export)
    if trials and not as_json:
        _print_trials(frame, metrics)
    elif trials:
        print_json(_plain(frame))
    else:
        shown = sorted(frame["study"].unique())
        if not as_json:
            for each in studies:
                if each.number in shown:
                    of_study = frame[frame["study"] == each.number]
                    typer.echo(_headline(each, of_study))
                    ran_on = environments(of_study)
                    typer.echo(f"  run with {'; '.join(map(str, ran_on))}")
            typer.echo()
        _print_summary(frame, group, metrics, as_json)
    if export:
        typer.echo(f"Wrote {export} ({len(frame)} trials).", err=as_json)


@app.command()
def rerun(
    store: StoreArgument,
    id: Annotated[str, typer.Argument(metavar="ID", help="The trial's id, or its beginning: 'emu results --trials'.")],
    model: Annotated[Path | None, typer.Option(help="The model file, if it is elsewhere now.")] = None,
    data: Annotated[Path | None, typer.Option(help="The data file, if it is elsewhere now.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far numbers may be apart, in the unit of each; 0 for none at all.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Run a stored trial again and compare: exit code 0 if both gave the same numbers, else 1."""
    from emu.sweep import Store
    from emu.sweep import rerun as run_again

    with Store(store, create=False) as kept:
        done = run_again(kept, id, model=model, data=data, tolerance=tolerance)
    if as_json:
        then, now = ({name: _finite(value) for name, value in score.metrics.items()} for score in (done.then, done.now))
        print_json(
            {
                "id": done.id,
                "trial": done.trial.as_dict(),
                "then": then,
                "now": now,
                "ran_on": asdict(done.ran_on),
                "runs_on": asdict(done.runs_on),
                "tolerance": tolerance,
                "equal": done.equal,
            }
        )
    else:
        typer.echo(f"trial {done.id}")
        names = dict.fromkeys([*done.then.metrics, *done.now.metrics])
        rows = [[name, done.then.metrics.get(name), done.now.metrics.get(name)] for name in names]
        rows.append(["undefined", done.then.undefined, done.now.undefined])
        print_table(["", "then", "now"], [[name, repr(then), repr(now)] for name, then, now in rows])
        if done.differences:
            typer.echo(f"Ran with other software or on another processor: {'; '.join(done.differences)}.")
        within = f" within {tolerance:g}" if tolerance else ""
        typer.echo(f"The same{within}." if done.equal else f"NOT the same{within}.")
    if not done.equal:
        raise typer.Exit(1)


class _TrialProgress(Progress):
    """Counts trials, and says how many run in a second."""

    def __init__(self) -> None:
        super().__init__("sweeping")
        self.done = 0

    def __enter__(self) -> "_TrialProgress":
        super().__enter__()
        return self

    def __call__(self, done: int, total: int) -> None:
        self.done = done
        rate = done / max(time.monotonic() - self.start, 1e-9)
        self.doing = f"sweeping, {rate:.1f} trials/s" if rate >= 1 else f"sweeping, {1 / rate:.1f} s a trial"
        super().__call__(done, total)


def _metrics(frame: "pd.DataFrame", asked: Sequence[str] | None) -> list[str]:
    """The metrics to print."""
    from emu.sweep.results import metric_names

    known = metric_names(frame)
    if not asked:
        return list(frame.attrs["primary"])
    for name in asked:
        if name not in (*known, "all"):
            raise InputError(f"The results have no metric '{name}': they have {', '.join(known)}.")
    return known if "all" in asked else list(asked)


def _print_summary(frame: "pd.DataFrame", group: Sequence[str] | None, metrics: Sequence[str], as_json: bool) -> None:
    """The points of a table of trials: all metrics as JSON, some of them as a table."""
    from emu.evaluation.metrics import show_interval
    from emu.sweep import summarize
    from emu.sweep.results import metric_names

    summary = summarize(frame, group)
    if as_json:
        print_json(_plain(summary))
        return
    known = metric_names(frame)
    points = [str(name) for name in summary.columns if str(name).partition(".")[0] not in known]
    rows = []
    for row in _plain(summary):
        cells = [_shown(row[name]) for name in points]
        for metric in metrics:
            mean, std, low, high = (row.get(f"{metric}.{part}") for part in ("mean", "std", "low", "high"))
            interval = "-" if low is None or high is None else show_interval(metric, low, high)
            cells += [_number(metric, mean), _number(metric, std), interval]
        rows.append(cells)
    print_table([*points, *(head for metric in metrics for head in (metric, "std", "95 % interval"))], rows)


def _print_trials(frame: "pd.DataFrame", metrics: Sequence[str]) -> None:
    from emu.sweep.results import point_names

    varied = [name for name in point_names(frame) if frame[name].nunique(dropna=False) > 1]
    names = ["id", "study", *varied, "seed", "read_seed", *metrics, "undefined", "seconds"]
    rows = [
        [_number(name, row[name]) if name in metrics else _shown(row[name]) for name in names] for row in _plain(frame)
    ]
    print_table(names, rows)


def _headline(study: "StudyInfo", trials: "pd.DataFrame") -> str:
    """What a study is of; of several models, data or devices all of them."""

    def every(name: str) -> list[str]:
        return [str(value) for value in trials[name].dropna().unique()]

    models, data = (", ".join(_place(path) for path in every(name)) for name in ("model", "data"))
    return (
        f"study {study.number} '{study.name}': {models or 'a model in memory'} on {', '.join(every('device'))}, "
        f"{study.setup.samples} samples of {data or 'data in memory'}, {', '.join(every('task'))}, {study.trials} "
        "trials"
    )


def _place(path: str) -> str:
    """A path as one would write it from the current folder."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def _number(metric: str, value: float | None) -> str:
    """A metric's value: shares in per cent."""
    from emu.evaluation.metrics import show_metric

    return "-" if value is None else show_metric(metric, value)


def _shown(value: Any) -> Any:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _plain(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows for JSON: None for what is missing or not finite."""
    rows = frame.astype(object).to_dict("records")
    return [{str(name): _finite(value) for name, value in row.items()} for row in rows]


def _finite(value: Any) -> Any:
    import pandas as pd

    value = value.item() if hasattr(value, "item") else value
    missing = value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if missing else value
