"""emu sweep, emu results and emu rerun."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu.cli.app import app, fail
from emu.cli.options import Json, PlanOptions, StoreFile, Sweeping, grouped
from emu.cli.output import Progress, open_store, print_json, print_table, say
from emu.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from emu.sweep import Plan
    from emu.sweep.store import StudyInfo

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="An SQLite file, or the URL of a database.")]


@app.command()
@grouped
def sweep(
    planned: PlanOptions,
    *,
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
    store: StoreFile = None,
    where: Sweeping,
    write_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan into this .toml file, and run nothing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model over settings and chips; every result is kept, and a rerun continues."""
    whole = planned.plan(until=until, most=most, cost=cost or None)
    if write_plan:
        whole.write(write_plan)
        typer.echo(f"Wrote {write_plan}; 'emu sweep --plan {write_plan} --store FILE' runs it.")
        return
    if store is None:
        raise InputError("A sweep keeps its results: give a file with --store, such as --store study.db.")
    table = run_sweep(whole, store, where)
    _print_summary(table, None, table.attrs["primary"], as_json)


def run_sweep(plan: "Plan", store: str | None, where: Sweeping) -> "pd.DataFrame":
    """Runs a plan, with its progress; an interruption says what is kept.

    Raises:
        InputError: as in `emu.sweep.run_plan`.
    """
    from emu.sweep import run_plan

    if where.workers is not None and where.scheduler is not None:
        raise InputError("--workers and --scheduler say both where to run: give one of them.")
    with open_store(store) as kept, _TrialProgress() as progress:
        try:
            return run_plan(
                plan,
                store=kept,
                study=where.study,
                new=where.new,
                workers=where.scheduler or where.workers,
                progress=progress,
                echo=say,
                keep_samples=where.keep_samples,
            )
        except KeyboardInterrupt:
            if kept is not None:
                typer.echo(
                    f"\n{progress.done} new trials are in {kept.where}: the same command goes on from there.", err=True
                )
            raise
        except RuntimeError as error:
            if type(error).__name__ == "WorkersDiedError":
                fail(str(error), 1)
            raise


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
    statistics: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What to show of each metric: mean, std, interval, min, q05, q25, median, q75, q95, max, or 'all'. "
            "--json has all.",
        ),
    ] = "mean,std,interval",
    confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Probability with which the interval holds the mean.")
    ] = 0.95,
    trials: Annotated[bool, typer.Option("--trials", help="List the single trials with their ids.")] = False,
    samples: Annotated[
        bool, typer.Option("--samples", help="List what trials of a sweep with --keep-samples gave for each sample.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the single trials, or samples, to a .csv or .parquet file."),
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring a store of an older emu to the tables of this one; keeps a copy.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a store holds: mean, standard deviation and 95 % interval over chips of each point."""
    from emu.sweep import Store, keep
    from emu.sweep import export as write_file
    from emu.sweep.environment import mixture

    shown = _statistics(statistics)
    with Store(store, create=migrate) as kept:
        if kept.migrated:
            typer.echo(kept.migrated, err=True)
        studies, ran_on = kept.studies(), kept.environments()
        frame = kept.frame(study, None if trials or samples or export else ("axis", "repetition", "metric"))
        metrics = _metrics(frame, metric)
        frame = keep(frame, where or [])
        outcomes = kept.samples(frame) if samples else None
    left = set(frame["study"].unique())
    for number in sorted(left):
        if mixed := mixture(ran_on[number]):
            typer.echo(f"Note: study {number} mixes {mixed}: the last digits may differ between them.", err=True)
    if export:
        write_file(frame if outcomes is None else outcomes, export)
        typer.echo(f"Wrote {export} ({len(frame)} trials).", err=True)
    if outcomes is not None and as_json:
        print_json(_rows(outcomes))
    elif outcomes is not None and not export:
        names = [str(name) for name in outcomes.columns]
        print_table(names, zip(*([_shown(each) for each in _plain(outcomes, name)] for name in names), strict=True))
    elif outcomes is not None:
        return
    elif trials and not as_json:
        _print_trials(frame, metrics)
    elif trials:
        print_json(_rows(frame))
    else:
        if not as_json:
            for each in studies:
                if each.number in left:
                    facts = ["model", "data", "device", "task"]
                    typer.echo(_headline(each, frame.loc[frame["study"] == each.number, facts]))
                    typer.echo(f"  run with {'; '.join(map(str, ran_on[each.number]))}")
            typer.echo()
        _print_summary(frame, group, metrics, as_json, shown, confidence)


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


_STATISTICS = ("mean", "std", "interval", "min", "q05", "q25", "median", "q75", "q95", "max")


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


def _statistics(text: str) -> list[str]:
    """The statistics to print."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*_STATISTICS, "all"):
            raise InputError(f"There is no statistic '{name}': choose among {', '.join(_STATISTICS)}, or all.")
    return list(_STATISTICS) if "all" in names else names


def _print_summary(
    frame: "pd.DataFrame",
    group: Sequence[str] | None,
    metrics: Sequence[str],
    as_json: bool,
    statistics: Sequence[str] = _STATISTICS[:3],
    confidence: float = 0.95,
) -> None:
    """The points of a table of trials: all metrics and statistics as JSON, some of them as a table."""
    from emu.evaluation.metrics import show_interval
    from emu.sweep import summarize

    summary = summarize(frame, group, confidence)
    if as_json:
        print_json([{**row, "confidence": confidence} for row in _rows(summary)])
        return
    points = summary.attrs["points"]
    heads = {"mean": "", "interval": f"{100 * confidence:g} % interval"}
    rows = []
    for row in _rows(summary):
        cells = [_shown(row[name]) for name in points]
        for metric in metrics:
            low, high = row[f"{metric}.low"], row[f"{metric}.high"]
            for name in statistics:
                if name == "interval":
                    cells.append("-" if low is None or high is None else show_interval(metric, low, high))
                else:
                    cells.append(_number(metric, row[f"{metric}.{name}"]))
        rows.append(cells)
    print_table([*points, *(heads.get(name, name) or metric for metric in metrics for name in statistics)], rows)


def _print_trials(frame: "pd.DataFrame", metrics: Sequence[str]) -> None:
    from emu.sweep.results import point_names, with_rest_of_selections

    frame = with_rest_of_selections(frame)
    varied = [name for name in point_names(frame) if frame[name].nunique(dropna=False) > 1]
    names = ["id", "study", *varied, "seed", "read_seed", *metrics, "undefined", "seconds"]
    shown = [
        [_number(name, each) if name in metrics else _shown(each) for each in _plain(frame, name)] for name in names
    ]
    print_table(names, zip(*shown, strict=True))


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


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows for JSON: None for what is missing or not finite."""
    names = [str(name) for name in frame.columns]
    columns = [_plain(frame, name) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(frame: "pd.DataFrame", name: str) -> list[Any]:
    """A column as plain values: None for what is missing or not finite."""
    return [_finite(value) for value in frame[name].tolist()]


def _finite(value: Any) -> Any:
    import pandas as pd

    value = value.item() if hasattr(value, "item") else value
    missing = value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if missing else value
