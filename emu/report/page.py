"""Gathers what a store holds of each study, draws it, and fills the template `page.html`."""

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu.analysis.figures import COLORS, curve
from emu.device import load_profile, preset_names
from emu.errors import InputError
from emu.evaluation.metrics import show_interval, show_metric, within_bounds
from emu.files import whole_file
from emu.libraries import library
from emu.rewriter.devices import load_devices
from emu.sweep import Store, summarize
from emu.sweep.results import environments, metric_names, point_names
from emu.sweep.setup import STRUCTURE_AXES, Setup, rebuild
from emu.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from emu.sweep.store import StudyInfo

MOST_TRIALS = 2000
"""So many trials of one study are listed at most: a browser takes no more well."""

MOST_BARS = 40
MOST_CURVES = 2 * (len(COLORS) - 1)

_LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ece", "relative_error"})
_PLACES = ("layer", "component")
_INK = "#010203"  # of all that is drawn in the colour of the page's text, whatever that is there
_MISSING = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: as shown, and the value that it is sorted by, a number in full."""

    shown: str
    value: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Headline:
    """A number at the top: what it is, the number, and more about it."""

    name: str
    shown: str
    value: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing as SVG, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Commands:
    """How to run a study again: the command, files that it needs (name and text), and a remark."""

    sweep: str = ""
    files: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What the page says about one study."""

    number: int
    name: str
    facts: list[tuple[str, str]]
    fingerprints: list[tuple[str, str]]
    profiles: list[tuple[str, str]]
    headlines: list[Headline]
    points_head: list[str]
    points: list[list[Cell]]
    figures: list[Figure]
    commands: Commands
    trials_head: list[str]
    trials: list[list[Cell]]
    trials_left_out: int = 0
    metric: str = ""
    notes: list[str] = field(default_factory=list)


def write_report(
    store: Store,
    path: str | Path,
    *,
    study: str | int | None = None,
    metrics: Sequence[str] = (),
    clean: bool = True,
    overwrite: bool = False,
    echo: Callable[[str], object] | None = None,
) -> Path:
    """Writes the page of a store, whole or not at all.

    Args:
        store: the trials.
        path: of the .html file.
        study: number or name of a study; None for all.
        metrics: what to show, `all` for everything; empty for the task's primary metric.
        clean: run the clean model of each study once, as stores hold disturbed trials only.
        overwrite: replace a file that exists.
        echo: prints a line, such as that a clean model runs.

    Returns:
        The path of the file.

    Raises:
        InputError: as in `report_page`; or another suffix, no such folder, or the file exists.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path} cannot be a report: end its name in .html.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file with -o, such as {path / 'report.html'}.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: give another output with -o, or --overwrite.")
    if path.exists() and Path(store.where).exists() and path.samefile(store.where):
        raise InputError(f"{path} is the store itself: give another output with -o.")
    text = report_page(store, study=study, metrics=metrics, clean=clean, echo=echo)
    with whole_file(path) as part:
        part.write_text(text, "utf-8", newline="\n")
    return path


def report_page(
    store: Store,
    *,
    study: str | int | None = None,
    metrics: Sequence[str] = (),
    clean: bool = True,
    echo: Callable[[str], object] | None = None,
) -> str:
    """The page of a store as HTML, with everything that it needs inside.

    Numbers are those of `emu.sweep.summarize`: mean, standard deviation and 95 % t interval over chips.

    Args:
        store: the trials.
        study: number or name of a study; None for all.
        metrics: what to show, `all` for everything; empty for the task's primary metric.
        clean: run the clean model of each study once.
        echo: prints a line.

    Raises:
        InputError: no such study or metric, a store without trials, or a library is not installed.
    """
    jinja2 = library("jinja2", "analysis")
    library("matplotlib", "analysis")
    say = echo or (lambda _: None)
    frame = store.frame(study)
    known = metric_names(frame)
    for name in metrics:
        if name not in (*known, "all"):
            raise InputError(f"The results have no metric '{name}': they have {', '.join(known)}.")
    held = set(frame["study"])
    sections = [
        _section(store, each, store.frame(each.number), metrics, clean, say)
        for each in store.studies()
        if each.number in held
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    template = environment.from_string((resources.files("emu.report") / "page.html").read_text("utf-8"))
    page: str = template.render(
        store=_place(store.where),
        sections=sections,
        trials=len(frame.drop_duplicates("id")),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return page


def _section(
    store: Store,
    study: "StudyInfo",
    frame: "pd.DataFrame",
    asked: Sequence[str],
    run_clean: bool,
    say: Callable[[str], object],
) -> Section:
    setup = study.setup
    metrics = [name for name in metric_names(frame) if not frame[name].isna().all()] or metric_names(frame)
    primary = setup.primary if setup.primary in metrics else metrics[0]
    if "all" in asked:
        shown = [primary, *(name for name in metrics if name != primary)]
    else:
        shown = [name for name in asked if name in metrics] or [primary]
    primary = shown[0]
    summary = summarize(frame)
    names = [str(name) for name in summary.columns if str(name).partition(".")[0] not in metric_names(frame)]
    varied = names[: names.index("chips")]
    score, note = _clean(setup, frame, primary, study.name, say) if run_clean else (None, "Not run: --no-clean.")
    head, points = _points(summary, names, shown)
    listed = frame.head(MOST_TRIALS)
    settings = [name for name in point_names(frame) if frame[name].nunique(dropna=False) > 1]
    columns = [*settings, "seed", "read_seed", *shown, "undefined"]
    return Section(
        number=study.number,
        name=study.name,
        metric=primary,
        facts=_facts(study, frame),
        fingerprints=[
            *setup.fingerprint.items(),
            *([("model file", setup.model_sha256)] if setup.model_sha256 else []),
        ],
        profiles=[(name, _toml(profile)) for name, profile in setup.devices.items()],
        headlines=_headlines(summary, varied, primary, score, note),
        points_head=head,
        points=points,
        figures=_figures(summary, varied, primary, f"s{study.number}"),
        commands=_commands(study, frame),
        trials_head=["id", *columns, "run again"],
        trials=[
            [
                Cell(row["id"], row["id"]),
                *(_metric_cell(name, row[name]) if name in shown else _cell(row[name]) for name in columns),
                Cell(shlex.join(["emu", "rerun", _place(store.where), row["id"]]), row["id"]),
            ]
            for row in listed.astype(object).to_dict("records")
        ],
        trials_left_out=len(frame) - len(listed),
    )


def _facts(study: "StudyInfo", frame: "pd.DataFrame") -> list[tuple[str, str]]:
    setup = study.setup
    devices = []
    for name, profile in setup.devices.items():
        changes = _changes(profile)
        told = [f"{key} = {_value(value)}" for key, value in (changes or {}).items()]
        devices.append(
            name + (f" with {', '.join(told)}" if told else "" if changes is not None else " (not a preset)")
        )
    options = [f"{name} {_value(value)}" for name, value in setup.data_options.items()]
    where = [f"{name} {setup.rewriting[name]}" for name in ("only", "exclude", "stored") if setup.rewriting.get(name)]
    where += [f"{selection} on {profile['name']}" for selection, profile in setup.rewriting.get("map", [])]
    fixed = [name for name in point_names(frame) if "." in name and frame[name].nunique(dropna=False) == 1]
    chips = frame["seed"].nunique()
    facts = [
        ("Model", _several(frame["model"]) or "in memory"),
        ("Device", ", ".join(devices) if frame["device"].nunique() == 1 else _several(frame["device"])),
        ("Rewritten with", "; ".join(where)),
        ("Settings", ", ".join(f"{name} = {_value(frame[name].iloc[0])}" for name in fixed)),
        ("Data", f"{setup.samples} samples of {_several(frame['data']) or 'arrays in memory'}"),
        ("Prepared with", ", ".join(options)),
        ("Task", setup.task),
        ("Trials", f"{len(frame)}, on {chips} chip{'s' * (chips != 1)}"),
        ("Started", study.started[:16].replace("T", " ") + " UTC"),
        ("Computing time", f"{_duration(float(frame['seconds'].sum()))} in all trials"),
        ("Version", "; ".join(dict.fromkeys(map(str, environments(frame))))),
        ("Run with", f"{setup.ops} operators, {setup.batch_size} samples at once"),
    ]
    return [(name, text) for name, text in facts if text]


def _several(paths: "pd.Series[Any]") -> str:
    """Files or names, each once, as one would write them from the current folder."""
    return ", ".join(_place(str(path)) for path in paths.dropna().unique())


def _clean(
    setup: Setup, frame: "pd.DataFrame", metric: str, name: str, say: Callable[[str], object]
) -> tuple[float | None, str]:
    """The metric of the model without any disturbance; None and the reason where it cannot run."""
    say(f"Running the clean model of study '{name}', about {_duration(float(frame['seconds'].median()))}.")
    try:
        return rebuild(setup).clean.metrics[metric], "no disturbance"
    except Exception as error:  # whatever fails, the stored trials are worth a report
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"Note: the clean model of study '{name}' did not run: {reason}")
        return None, f"Did not run: {reason}"


def _headlines(
    summary: "pd.DataFrame", varied: Sequence[str], metric: str, clean: float | None, note: str
) -> list[Headline]:
    found = [Headline(f"Clean {_words(metric)}", _number(metric, clean), _full(clean), note)]
    rows = summary.astype(object).to_dict("records")
    rows = [row for row in rows if _is_number(row.get(f"{metric}.mean"))]
    rows.sort(key=lambda row: row[f"{metric}.mean"], reverse=metric not in _LOWER_IS_BETTER)
    picks = [("Best point", 0), ("Worst point", -1)] if len(rows) > 1 else [("The one point", 0)][: len(rows)]
    for name, index in picks:
        row = rows[index]
        where = ", ".join(f"{point} {_short(row[point])}" for point in varied if not _is_missing(row[point]))
        where = where or ("everything disturbed" if varied else "")
        interval = _interval(metric, row.get(f"{metric}.low"), row.get(f"{metric}.high"))
        chips = f"{row['chips']} chip{'s' * (row['chips'] != 1)}"
        ties = sum(each[f"{metric}.mean"] == row[f"{metric}.mean"] for each in rows) - 1
        where += f" and {ties} more point{'s' * (ties != 1)}" if ties else ""
        told = [where, f"95 % interval {interval}, {chips}" if interval != "-" else chips]
        mean = row[f"{metric}.mean"]
        found.append(Headline(name, _number(metric, mean), _full(mean), "; ".join(part for part in told if part)))
    return found


def _points(
    summary: "pd.DataFrame", names: Sequence[str], metrics: Sequence[str]
) -> tuple[list[str], list[list[Cell]]]:
    head = [*names, *(part for name in metrics for part in (_words(name), "std", "95 % low", "95 % high"))]
    parts = [(name, f"{name}.{part}") for name in metrics for part in ("mean", "std", "low", "high")]
    rows = [
        [*(_cell(row[name]) for name in names), *(_metric_cell(metric, row.get(part)) for metric, part in parts)]
        for row in summary.astype(object).to_dict("records")
    ]
    return head, rows


# Figures


def _figures(summary: "pd.DataFrame", varied: Sequence[str], metric: str, mark: str) -> list[Figure]:
    """What fits what was varied: curves over a number, heat maps over layers and components, else bars."""
    if not varied or f"{metric}.mean" not in summary:
        return []
    summary = summary[summary[f"{metric}.mean"].map(_is_number)]
    parts = [("", summary, list(varied))]
    if "exclude" in varied:
        rest = [name for name in varied if name != "exclude"]
        undone = summary["exclude"].isna()
        alone = summary[undone & summary[rest].notna().any(axis=1)] if rest else summary[undone].head(0)
        but = summary[~undone].drop(columns=[name for name in _PLACES if name in summary])
        found = [_terms(text) for text in but["exclude"]]
        if all(found) and set(rest) <= set(_PLACES):
            for name in _PLACES:
                but[name] = [terms.get(name) for terms in found if terms is not None]
            parts = [("disturbed alone", alone, rest), ("all disturbed but this", but, list(_PLACES))]
    figures = []
    for index, (what, table, names) in enumerate(parts):
        names = [name for name in names if table[name].nunique(dropna=False) > 1]
        if len(table) > 1 and names:
            svg, caption = _draw(table, names, metric)
            figures.append(Figure(_inline(svg, f"{mark}f{index}-"), caption + (f"; {what}" if what else "") + "."))
    return figures


def _draw(table: "pd.DataFrame", names: list[str], metric: str) -> tuple[str, str]:
    """One figure as SVG, and its caption."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    numbers = [
        name
        for name in names
        if name not in (*_PLACES, "head") and table[name].dtype.kind in "iuf" and table[name].notna().all()
    ]
    chips = sorted(set(table["chips"]))
    over = f"{chips[0]}" if len(chips) == 1 else f"{chips[0]} to {chips[-1]}"
    mean_of = f"mean over {over} chip{'s' * (chips[-1] != 1)}"
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "emu",
        "text.parse_math": False,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **{f"{part}color": _INK for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.", "legend.label")},
    }
    with matplotlib.rc_context(style):
        x = max(numbers, key=lambda name: table[name].nunique()) if numbers else None
        groups = [name for name in names if name != x]
        series = list(table.groupby(groups, dropna=False, sort=False)) if x and groups else [("", table)]
        if x and len(series) <= MOST_CURVES:
            canvas = Canvas(figsize=(5.6, 3.4), layout="constrained")
            _draw_curves(canvas.subplots(), series, x, groups, metric)
            caption = f"{_words(metric).capitalize()} over {x}, {mean_of}; the band is the 95 % interval"
        elif len(names) == 2 and set(names) in ({"layer", "component"}, {"layer", "head"}):
            rows, columns = sorted(names, key=lambda name: name != "layer")
            canvas = Canvas(layout="constrained")
            _draw_heat_map(canvas, table, rows, columns, metric)
            caption = f"{_words(metric).capitalize()} by {rows} and {columns}, {mean_of}"
        else:
            bars = table.sort_values(f"{metric}.mean", kind="stable").dropna(subset=[f"{metric}.mean"])
            some = len(bars) > MOST_BARS
            if some:
                half = MOST_BARS // 2
                bars = bars.iloc[[*range(half), *range(len(bars) - half, len(bars))]]
            canvas = Canvas(figsize=(5.6, 0.8 + 0.24 * len(bars)), layout="constrained")
            _draw_bars(canvas.subplots(), bars, names, metric)
            caption = f"{_words(metric).capitalize()}, {mean_of}, with the 95 % interval"
            caption += f"; of {len(table)} points the {half} lowest and the {half} highest" if some else ""
        text = StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue(), caption


def _draw_curves(axes: Any, series: Sequence[Any], x: str, groups: Sequence[str], metric: str) -> None:
    colors, scale = COLORS[:-1], _scale(metric)  # without black, which a dark page swallows
    for index, (values, part) in enumerate(series):
        part = part.sort_values(x)
        low, mean, high = (
            [within_bounds(metric, _float(each)) * scale for each in part.get(f"{metric}.{name}", [None] * len(part))]
            for name in ("low", "mean", "high")
        )
        shown = list(values) if isinstance(values, tuple) else [values]
        label = _label(dict(zip(groups, shown, strict=True)) if groups else {})
        line = "-" if index < len(colors) else "--"
        curve(axes, part[x].to_numpy(float), mean, low, high, label, colors[index % len(colors)], line)
    positive = [float(value) for _, part in series for value in part[x] if value > 0]
    lowest = min(float(part[x].min()) for _, part in series)
    if positive and lowest >= 0 and max(positive) / min(positive) >= 50:
        axes.set_xscale("log") if lowest > 0 else axes.set_xscale("symlog", linthresh=min(positive))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(x)
    axes.set_ylabel(_axis(metric))
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    if groups:
        axes.legend(title=", ".join(groups), frameon=False, fontsize=8, title_fontsize=8)


def _draw_heat_map(canvas: Any, table: "pd.DataFrame", rows: str, columns: str, metric: str) -> None:
    """Layers downward; sites outside layers, as one row without a number, last."""
    import matplotlib
    import numpy as np

    def listed(name: str) -> list[Any]:
        values = [None if _is_missing(value) else value for value in table[name]]
        there = [value for value in dict.fromkeys(values) if value is not None]
        numbers = all(str(value).isdigit() for value in there)
        return [*sorted(there, key=int if numbers else str), *([None] if None in values else [])]

    down, across = listed(rows), listed(columns)
    values = np.full((len(down), len(across)), np.nan)
    for row in table.astype(object).to_dict("records"):
        place = [None if _is_missing(row[name]) else row[name] for name in (rows, columns)]
        values[down.index(place[0]), across.index(place[1])] = _float(row.get(f"{metric}.mean")) * _scale(metric)
    canvas.set_size_inches(max(4.6, 1.3 + 0.62 * len(across)), 1.5 + 0.34 * len(down))
    axes = canvas.subplots()
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = high - low or 1.0
    colors = matplotlib.colormaps["cividis"]
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        at = (value - low) / span
        axes.add_patch(matplotlib.patches.Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=colors(at)))
        shown, ink = f"{value:.1f}" if _scale(metric) > 1 else f"{value:.3g}", "black" if at > 0.45 else "white"
        axes.text(column, row, shown, ha="center", va="center", fontsize=9, color=ink)
    axes.set_xlim(-0.5, len(across) - 0.5)
    axes.set_ylim(len(down) - 0.5, -0.5)
    names = ["all" if value is None else str(value) for value in across]
    axes.set_xticks(range(len(across)), names)
    if max(map(len, names)) > 5:
        axes.tick_params("x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(down)), ["outside" if value is None else str(value) for value in down])
    axes.tick_params(length=0)
    axes.set_ylabel(rows)
    if columns == "head":
        axes.set_xlabel(columns)
    axes.set_title(_axis(metric), fontsize=10)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_bars(axes: Any, table: "pd.DataFrame", names: Sequence[str], metric: str) -> None:
    scale = _scale(metric)
    labels = []
    for at, row in enumerate(table.astype(object).to_dict("records")):
        mean, low, high = (
            within_bounds(metric, _float(row.get(f"{metric}.{part}"))) * scale for part in ("mean", "low", "high")
        )
        labels.append(_label({name: row[name] for name in names}))
        axes.plot(mean, at, "o", color=COLORS[0], markersize=5)
        axes.plot([low, high], [at, at], color=COLORS[0], linewidth=2, alpha=0.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(_axis(metric))
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6, axis="x")
    axes.tick_params(axis="y", length=0)


def _inline(svg: str, mark: str) -> str:
    """An SVG document as part of a page: no declarations, ids of its own, ink in the colour of the text."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(?<= )id="', f'id="{mark}', svg)
    svg = svg.replace("xlink:href", "href").replace('href="#', f'href="#{mark}').replace("url(#", f"url(#{mark}")
    width = re.search(r'width="([\d.]+)pt"', svg)  # points are 4/3 pixels; smaller than this it cannot be read
    least = 0.64 * float(width[1]) * 4 / 3 if width else 0
    svg = svg.replace("<svg ", f'<svg aria-hidden="true" style="min-width: {least:.0f}px" ', 1)
    return svg.replace(_INK, "currentColor").strip()


# Commands


def _commands(study: "StudyInfo", frame: "pd.DataFrame") -> Commands:
    """The sweep that has these trials, if one has; else what to do instead."""
    setup = study.setup
    if frame["setup"].map(lambda text: Setup.from_json(text).identity).nunique() > 1:
        return Commands(
            note="These trials are of several models or devices: the list of trials has a command for each."
        )
    axes = _axes(frame)
    if axes is None:
        return Commands(
            note="These trials are no product of axes, as those of an analysis: the list of trials has a command for "
            "each."
        )
    if setup.model is None or setup.data is None:
        return Commands(note="Model or data were in memory: only Python can run this again.")
    flags, total, complete = axes
    device, files = _device_flags(setup)
    command = ["emu", "sweep", _place(setup.model), "--data", _place(setup.data), *device]
    for name in ("only", "exclude", "stored", "share"):
        if setup.rewriting.get(name):
            command += [f"--{name}", str(setup.rewriting[name])]
    for name, value in setup.set.items():
        command += ["--set", f"{name}={_value(value)}"]
    for name, value in setup.data_options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            command += [f"--{name.replace('_', '-')}", str(each)]
    command += ["--task", setup.task, "--samples", str(setup.samples), "--batch-size", str(setup.batch_size)]
    command += ["--threads", str(setup.threads)] if setup.threads else []
    command += ["--ops", "python"] if setup.ops == "python" else []
    command += [*flags, "--study", study.name, "--store", "again.db"]
    note = "" if complete else f"The store holds {len(frame)} of the {total} trials of this command."
    return Commands(_wrapped(command), files, note)


def _axes(frame: "pd.DataFrame") -> tuple[list[str], int, bool] | None:
    """Flags of the sweep that has these trials, how many it has, and whether these are all; None if there is none."""
    if frame["exclude"].notna().any():
        return None
    table = frame[[name for name in point_names(frame) if name not in ("exclude", *_PLACES, *STRUCTURE_AXES)]].copy()
    places = [_terms(text) if isinstance(text, str) else {} for text in table["only"]]
    wanted = [name for name in _PLACES if any(terms and name in terms for terms in places)]
    if wanted and all(terms is not None and set(terms) == set(wanted) for terms in places):
        table["only"] = [" ".join(terms[name] for name in wanted) for terms in places if terms is not None]
        together = {name: [terms[name] for terms in places if terms is not None] for name in wanted}
    elif frame["only"].isna().any() and frame["only"].notna().any():
        return None
    else:
        together, wanted = {}, []
    flags: list[str] = []
    total = 1
    for name in table:
        values = table[name].drop_duplicates().tolist()
        if name == "only":
            for place in wanted:
                own = list(dict.fromkeys(together[place]))
                own.sort(key=lambda value: (int(value) if value.isdigit() else 0, str(value)))
                flags += ["--vary", f"{place}={','.join(own)}"]
            if not wanted and isinstance(values[0], str):
                flags += ["--vary", f"only={';'.join(values)}"]
        elif "." in name or values != [{"head": -1, "strength": 1.0}.get(name)]:
            if any(_is_missing(value) for value in values):
                return None
            flags += ["--vary", f"{name}={','.join(_value(value) for value in values)}"]
        total *= len(values)
    seeds, reads = (sorted(int(value) for value in set(frame[name])) for name in ("seed", "read_seed"))
    flags += ["--seeds", str(len(seeds))] if seeds == [*range(len(seeds))] else _whole("seed", seeds)
    flags += [] if reads == [0] else _whole("read_seed", reads)
    total *= len(seeds) * len(reads)
    if len(frame) < total / 2:  # a product that has them all, but mostly others
        return None
    return flags, total, len(frame) == total


def _whole(name: str, values: Sequence[int]) -> list[str]:
    return ["--vary", f"{name}={','.join(map(str, values))}"]


def _device_flags(setup: Setup) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """`--device`, `--map` and `--set` for the rewriting of a plain model, and files of the devices that need one."""
    rewriting = setup.rewriting
    if not rewriting.get("device"):
        return [], ()
    default, rules = rewriting["device"], rewriting.get("map", [])
    files: dict[str, str] = {}
    known: set[str] = set()  # presets, whose changes --set can say

    def named(profile: Mapping[str, Any]) -> str:
        if profile["name"] in preset_names() and _changes(profile) is not None:
            known.add(profile["name"])
            return str(profile["name"])
        file = re.sub(r"[^\w.-]+", "_", str(profile["name"])) + ".toml"
        files[file] = _toml(profile)
        return file

    device, maps = named(default), [f"{selection}:{named(profile)}" for selection, profile in rules]
    sets = [f"{key}={_setting(value)}" for key, value in (_changes(default) or {}).items()]
    known.discard(default["name"])
    for _, profile in rules:
        if profile["name"] in known:
            known.discard(profile["name"])
            sets += [f"{profile['name']}:{key}={_setting(value)}" for key, value in (_changes(profile) or {}).items()]
    flags = ["--device", device]
    for flag, values in (("--set", sets), ("--map", maps)):
        for value in values:
            flags += [flag, value]
    if not files:
        again, pairs = load_devices(device, maps, sets)
        if [again.model_dump(mode="json"), *(p.model_dump(mode="json") for _, p in pairs)] != [
            default,
            *(profile for _, profile in rules),
        ]:
            files = {f"{default['name']}.toml": _toml(default)}
            flags[:2] = ["--device", f"{default['name']}.toml"]
    return flags, tuple(files.items())


def _changes(profile: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings in which a profile differs from the preset of its name; None if that does not make it."""
    if profile["name"] not in preset_names():
        return None
    preset = load_profile(str(profile["name"])).model_dump(mode="json")
    changes: dict[str, Any] = {}
    for section, values in profile.items():
        if not isinstance(values, Mapping) or values == preset.get(section):
            continue
        before = preset.get(section) or {}
        for name, value in values.items():
            if value != before.get(name):
                changes[f"{section}.{name}"] = "off" if value is None else value
    try:
        made = load_profile(str(profile["name"]), changes).model_dump(mode="json")
    except InputError:
        return None
    return changes if made == dict(profile) else None


def _wrapped(command: Sequence[str]) -> str:
    """A command for a shell, a line for each flag that is long."""
    lines, line = [], ""
    for index, word in enumerate(command):
        quoted = shlex.quote(word)
        is_flag = word.startswith("--")
        length = len(line) + len(quoted) + (len(command[index + 1]) if is_flag and index + 1 < len(command) else 0)
        if is_flag and length > 96:
            lines.append(line + " \\")
            line = "  " + quoted
        else:
            line = f"{line} {quoted}" if line else quoted
    return "\n".join([*lines, line])


def _toml(profile: Mapping[str, Any]) -> str:
    """A device profile as the TOML file that `--device` reads."""
    plain = {name: value for name, value in profile.items() if not isinstance(value, Mapping)}
    lines = [f"{name} = {_setting(value)}" for name, value in plain.items() if value is not None]
    for name, values in profile.items():
        if isinstance(values, Mapping):
            there = {key: value for key, value in values.items() if value is not None}
            lines += ["", f"[{name}]", *(f"{key} = {_setting(value)}" for key, value in there.items())]
    return "\n".join(lines) + "\n"


def _setting(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# Words and numbers


def _terms(text: Any) -> dict[str, str] | None:
    """`layer` and `component` of a selection that names one of each at most; None for any other."""
    found = {}
    for term in str(text).split():
        name, _, value = term.partition("=")
        if name not in _PLACES or name in found or not value or re.search(r"[,*?\[]", value):
            return None
        if name == "layer" and not value.isdigit():
            return None
        found[name] = value
    return found or None


def _label(values: Mapping[str, Any]) -> str:
    """A point in few words: numbers of the device by their values, layers and heads with their names."""
    told = []
    for name, value in values.items():
        if not _is_missing(value):
            told.append(f"{name} {value}" if name in ("layer", "head") else _short(value))
    return ", ".join(told) or "all"


def _cell(value: Any) -> Cell:
    if _is_missing(value):
        return Cell("-", _MISSING)
    numeric = not isinstance(value, str)
    return Cell(_short(value), _full(value) if numeric else str(value), numeric)


def _metric_cell(metric: str, value: Any) -> Cell:
    if _is_missing(value):
        return Cell("-", _MISSING, True)
    return Cell(show_metric(metric, within_bounds(metric, float(value))), _full(value), True)


def _full(value: Any) -> str:
    """A number with all its digits."""
    if _is_missing(value):
        return _MISSING
    value = value.item() if hasattr(value, "item") else value
    return repr(value).replace("inf", "Infinity")  # as JavaScript reads it


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _value(value)


def _value(value: Any) -> str:
    """A value for a command: a number with as many digits as it takes to be the same."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        short = f"{value:.6g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _number(metric: str, value: Any) -> str:
    return "-" if _is_missing(value) else show_metric(metric, float(value))


def _interval(metric: str, low: Any, high: Any) -> str:
    if _is_missing(low) or _is_missing(high):
        return "-"
    return show_interval(metric, float(low), float(high))


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)))


def _is_number(value: Any) -> bool:
    return not _is_missing(value) and math.isfinite(float(value))


def _float(value: Any) -> float:
    return math.nan if _is_missing(value) else float(value)


def _scale(metric: str) -> float:
    """Shares are drawn in per cent."""
    return 100.0 if show_metric(metric, 1.0).endswith("%") else 1.0


def _axis(metric: str) -> str:
    unit = " (%)" if _scale(metric) > 1 else " (dB)" if metric.endswith("_db") else ""
    return _words(metric) + unit


def _words(metric: str) -> str:
    return metric.removesuffix("_db").replace("_", " ")


def _place(path: str) -> str:
    """A path as one would write it from the current folder."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
