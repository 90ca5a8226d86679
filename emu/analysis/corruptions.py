"""Accuracy on corrupted images: by corruption and severity, and relative to another model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd

from emu.analysis.figures import BLACK, grid, heat_map, line_styles
from emu.analysis.ground import Analysis, Run, RunOptions, Section, mean_and_interval, of_bench, plain, records
from emu.errors import InputError
from emu.evaluation import Bench, Classification, mean_corruption_error
from emu.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corruption

CLEAN = "none"
"""What tables have in the place of a corruption, with severity 0, for the images as they are."""

_METRICS = ("accuracy", "ece", "loss")


def corruptions(
    bench: Bench,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    *,
    baseline: Bench | None = None,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Analysis:
    """Measures a classifier on its images as they are, and under corruptions; all models see the same ones.

    Each model is measured digitally and, if it has a device, on chips too.

    Args:
        bench: a model and its clean images, from files or a data set.
        names: of the corruptions, some of `emu.evaluation.corruptions.CORRUPTIONS`.
        severities: 1 to 5.
        baseline: another model on the same images, whose errors the mean corruption error is relative to.
        seed: of the corruptions.
        options: chips, seeds, and where trials are kept, in a study for each corruption and severity: see
            `emu.analysis.ground.Run`.

    Returns:
        A table with one row for each run: `model` ("model" or "baseline"), `corruption` ("none" for the clean images),
        `severity` (0 then), `seed` of the chip (missing for the digital run), `accuracy` and `ece` (shares), `loss`
        (nats).

    Raises:
        InputError: no such corruption, severity or seed; no classification of images; or a baseline with other samples.
    """
    settings = [
        str(Corruption(name, severity, seed)) for name in dict.fromkeys(names) for severity in sorted(set(severities))
    ]
    if not settings:
        raise InputError("There is nothing to measure: give at least one corruption and one severity.")
    benches = {"model": bench} if baseline is None else {"model": bench, "baseline": baseline}
    for each in benches.values():
        _check(each, bench)
    run = Run(**options)
    sets, runs = 1 + len(settings), [1 + (len(run.seeds) if each.manifest else 0) for each in benches.values()]
    what = f"{sets} sets of images x {' + '.join(map(str, runs))}"
    run.say(f"{sets * sum(runs)} runs of {len(bench.dataset.labels)} samples: {what}.")
    rows = []
    for done, setting in enumerate([None, *settings]):
        for which, clean in benches.items():
            rows += [{"model": which, **_place(setting), **each} for each in _runs(clean, setting, run)]
        if run.progress is not None:
            run.progress(done + 1, sets)
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    summary, errors = summarize(table), corruption_errors(table)
    against = baseline.name if baseline else f"{bench.name} without its device" if bench.manifest else None
    mean = errors.iloc[-1]
    worst = summary[summary["corruption"] != CLEAN].groupby("corruption")["accuracy"].mean()
    interval = "" if np.isnan(mean["low"]) else f"  (95 % interval over chips {mean['low']:.4f} to {mean['high']:.4f})"
    names = list(dict.fromkeys(names))
    told = ["", f"mCE {mean['ce']:.4f} over {len(names)} corruptions, against {against}{interval}"] if against else []
    return Analysis(
        name="runs",
        table=table,
        sentence=f"{worst.idxmin()} costs most: accuracy {worst.min():.2%} over its severities.",
        sections=[_section(summary, errors, run.chips if bench.manifest else 0, tuple(told))],
        more={
            "baseline": against,
            "corruption_seed": seed,
            "mce": plain(mean["ce"]),
            "corruptions": records(summary),
            "corruption_errors": records(errors),
        },
        figures=[partial(draw_severities, summary=summary), partial(draw_corruptions, summary=summary)],
        size=(6.6, 1.8 + 0.25 * max(len(names), 8)),
        drawn=summary,
        **of_bench(bench),
    )


def _section(summary: pd.DataFrame, errors: pd.DataFrame, chips: int, below: tuple[str, ...]) -> Section:
    """Accuracy by corruption and severity, with means over severities of the rest."""
    severities = sorted(each for each in dict.fromkeys(summary["severity"]) if each)
    over = f", mean of {chips} chips" if chips else ""
    relative = errors.set_index("corruption")["ce"]
    rows = []
    for name, part in summary.groupby("corruption", sort=False):
        by_severity = dict(zip(part["severity"], part["accuracy"], strict=True))
        ce = relative.get(name, np.nan)
        rows.append(
            [
                name,
                *(f"{100 * by_severity[each]:.2f}" if each in by_severity else "" for each in severities),
                f"{100 * part['accuracy'].mean():.2f}",
                *([f"{100 * part['digital'].mean():.2f}"] if chips else []),
                f"{100 * part['ece'].mean():.2f}",
                f"{part['loss'].mean():.4f}",
                "" if np.isnan(ce) else f"{ce:.4f}",
            ]
        )
    head = ["corruption", *map(str, severities), "mean", *(["digital"] if chips else []), "ece (%)", "loss", "ce"]
    return Section(f"Accuracy in per cent by severity{over}; the rest over severities:", head, rows, below)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Means over chips for each corruption and severity.

    Args:
        table: what `corruptions` gave.

    Returns:
        One row for each: `corruption`, `severity`, `accuracy` with `std` and the 95 % t interval over chips `low` to
        `high`, `ece`, `loss`, `digital` (accuracy without the device), `baseline` (accuracy of the baseline, NaN where
        there is none) and `chips`, 0 for a model without a device, whose accuracy is the digital one.
    """
    rows = []
    for (name, severity), part in table.groupby(["corruption", "severity"], sort=False):
        own, other = part[part["model"] == "model"], part[part["model"] == "baseline"]
        measured = _measured(own)
        spread = mean_and_interval(list(measured["accuracy"]), "accuracy")
        rows.append(
            {
                "corruption": name,
                "severity": severity,
                "accuracy": spread.pop("mean"),
                **spread,
                "ece": measured["ece"].mean(),
                "loss": measured["loss"].mean(),
                "digital": own[own["seed"].isna()]["accuracy"].iloc[0],
                "baseline": _measured(other)["accuracy"].mean() if len(other) else np.nan,
                "chips": int(own["seed"].notna().sum()),
            }
        )
    return pd.DataFrame(rows)


def corruption_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Errors relative to those of the baseline: corruption errors (Hendrycks and Dietterich 2019), and their mean.

    The corruption error is the sum over severities of a model's errors, divided by that of the baseline's. Without a
    baseline, a model on a device is compared with itself without the device; there is none for other models.

    Args:
        table: what `corruptions` gave.

    Returns:
        One row for each corruption and one named "mean", which holds the mCE: `corruption`, `error` and `baseline`
        (error rates, means over severities), `ce`, and its 95 % t interval over chips of the model, `low` to `high`.
    """
    table = table[table["corruption"] != CLEAN]
    own, other = table[table["model"] == "model"], table[table["model"] == "baseline"]
    on_chips = bool(own["seed"].notna().any())
    if not len(other) and on_chips:
        other = own[own["seed"].isna()]
    names = list(dict.fromkeys(table["corruption"]))

    def errors(rows: pd.DataFrame) -> Any:
        """Mean error rates `[corruptions, severities]`."""
        return 1 - rows.pivot_table("accuracy", "corruption", "severity").loc[names].to_numpy()

    measured = _measured(own)
    per_chip = [errors(rows) for _, rows in measured.groupby("seed", dropna=False)]
    theirs = errors(_measured(other)) if len(other) else np.full_like(per_chip[0], np.nan)
    mean = np.mean(per_chip, axis=0)
    rows = []
    for name, part in [*((name, [i]) for i, name in enumerate(names)), ("mean", list(range(len(names))))]:
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = mean_and_interval([mean_corruption_error(chip[part], theirs[part]) for chip in per_chip])
        rows.append(
            {
                "corruption": name,
                "error": mean[part].mean(),
                "baseline": theirs[part].mean(),
                "ce": spread["mean"],
                "low": spread["low"],
                "high": spread["high"],
            }
        )
    return pd.DataFrame(rows)


def draw_severities(axes: Any, summary: pd.DataFrame) -> None:
    """Draws accuracy against severity, a line for each corruption; all begin at the accuracy on clean images.

    Args:
        axes: matplotlib Axes.
        summary: what `summarize` gave.
    """
    clean = summary[summary["corruption"] == CLEAN]
    corrupted = summary[summary["corruption"] != CLEAN]
    names = list(dict.fromkeys(corrupted["corruption"]))
    for name, (color, line) in zip(names, line_styles(len(names)), strict=True):
        rows = pd.concat([clean, corrupted[corrupted["corruption"] == name]])
        axes.plot(
            rows["severity"],
            100 * rows["accuracy"],
            line,
            color=color,
            marker="o",
            markersize=3.5,
            linewidth=1.4,
            label=name.replace("_", " "),
        )
    if len(clean):
        axes.axhline(100 * clean["accuracy"].iloc[0], color=BLACK, linewidth=0.8, linestyle=":")
    axes.set_xticks(sorted(set(summary["severity"])))
    axes.set(xlabel="severity", ylabel="accuracy (%)")
    axes.set_title(f"Accuracy under corruption{_of_chips(summary)}")
    grid(axes)
    axes.legend(frameon=False, fontsize=7, handlelength=3.2, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_corruptions(axes: Any, summary: pd.DataFrame, metric: str = "accuracy") -> None:
    """Draws a heat map of corruptions and severities.

    Args:
        axes: matplotlib Axes.
        summary: what `summarize` gave.
        metric: `accuracy` or `ece`, in per cent, or `loss`.
    """
    corrupted = summary[summary["corruption"] != CLEAN]
    names = list(dict.fromkeys(corrupted["corruption"]))
    values = corrupted.pivot_table(metric, "corruption", "severity").loc[names]
    factor, unit = (1, "") if metric == "loss" else (100, " (%)")
    severities = [str(severity) for severity in values.columns]
    heat_map(
        axes, factor * values.to_numpy(), [name.replace("_", " ") for name in names], severities, f"{metric}{unit}"
    )
    axes.set_xticks(range(len(severities)), severities, rotation=0, ha="center")
    axes.set_xlabel("severity")
    clean = summary[summary["corruption"] == CLEAN][metric]
    told = f", {factor * clean.iloc[0]:.{3 if factor == 1 else 1}f} on clean images" if len(clean) else ""
    axes.set_title(f"{metric.upper() if metric == 'ece' else metric.capitalize()}{unit}{_of_chips(summary)}{told}")


def _check(bench: Bench, first: Bench) -> None:
    if not isinstance(bench.task, Classification):
        raise InputError(
            f"{bench.name} is measured by {bench.task.primary}: corruptions need the classification of images."
        )
    source = bench.dataset.source
    if source is None:
        raise InputError(
            "The images are in memory: give a file, a folder or a data set, which can be read again and again."
        )
    if source.corruption is not None:
        raise InputError(f"{bench.dataset.where} is corrupted already: give the clean images.")
    if not np.array_equal(bench.dataset.labels, first.dataset.labels):
        raise InputError(f"The baseline has other samples or classes than {first.name}: give both the same data.")


def _place(setting: str | None) -> dict[str, Any]:
    if setting is None:
        return {"corruption": CLEAN, "severity": 0}
    corruption = Corruption.parse(setting)
    return {"corruption": corruption.name, "severity": corruption.severity}


def _runs(clean: Bench, setting: str | None, run: Run) -> list[dict[str, Any]]:
    """The metrics of a model on one set of images: digitally, and on each chip."""
    from emu.sweep import run_trials

    bench = clean
    if setting is not None:
        assert clean.dataset.source is not None
        bench = clean.with_data(replace(clean.dataset.source, corruption=setting), len(clean.dataset.labels))
    rows: list[dict[str, Any]] = [{"seed": None, **{name: bench.clean.metrics[name] for name in _METRICS}}]
    if bench.manifest is not None:
        study = f"corruptions {setting or CLEAN}"
        trials = run_trials(bench, run.trials(), store=run.store, study=study)
        rows += trials[["seed", *_METRICS]].to_dict("records")
    return rows


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs on chips, or the digital ones where there are no others."""
    on_chips = rows[rows["seed"].notna()]
    return on_chips if len(on_chips) else rows


def _of_chips(summary: pd.DataFrame) -> str:
    chips = int(summary["chips"].max())
    return f", mean of {chips} chips" if chips > 1 else ", one chip" if chips else ""
