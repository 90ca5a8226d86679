"""Every shared option is declared once, and every command that can use it takes it, with one default."""

from dataclasses import fields
from typing import Any

import click
import pytest
import typer

from emu.cli import app
from emu.cli.options import DataOptions, ExperimentOptions, Measuring, RunOptions
from emu.evaluation import DataSource
from emu.evaluation.bench import Settings
from emu.experiment import Experiment

COMMAND: Any = typer.main.get_command(app)
ANALYSES = COMMAND.commands["analyze"].commands
PREPARED = {
    "--processor", "--text-column", "--image-column", "--label-column", "--max-length", "--classes", "--split",
    "--prompt", "--corrupt", "--mean", "--std", "--input", "--anyway",
}  # fmt: skip
EMULATED = {"--device", "--set", "--map", "--only", "--exclude", "--stored", "--share"}
MEASURED = EMULATED | PREPARED | {"--data", "--task", "--samples", "--batch-size", "--threads", "--ops", "--json"}
CHIPS = {"--chips", "--first-seed", "--read-seed"}
DRAWN = {"--plot", "--json"}
PLANNED = MEASURED | {"--vary", "--seeds", "--plan", "--costs-of", "--store", "--study", "--new"}
PLANNED |= {"--workers", "--scheduler"}
MATRIX = {
    "evaluate": MEASURED | CHIPS,
    "inject": MEASURED | {"--first-seed"},
    "sweep": PLANNED | {"--until", "--most", "--cost", "--write-plan"},
    "analyze sensitivity": MEASURED | CHIPS | DRAWN | {"--store"},
    "analyze heads": MEASURED | CHIPS | DRAWN | {"--store"},
    "analyze thresholds": MEASURED | CHIPS | DRAWN | {"--store"},
    "analyze compare": MEASURED | CHIPS | DRAWN | {"--store"},
    "analyze protect": MEASURED | CHIPS | DRAWN | {"--store"},
    "analyze corruptions": MEASURED | CHIPS | DRAWN | {"--store"},
    "analyze attention": MEASURED | CHIPS | DRAWN,
    "analyze snr": MEASURED | CHIPS | DRAWN,
    "analyze cost": EMULATED | DRAWN,
    "analyze pareto": PLANNED | DRAWN,
}


def parameters(name: str) -> list[click.Parameter]:
    command = COMMAND
    for part in name.split():
        command = command.commands[part]
    return list(command.params)


def options(name: str) -> dict[str, click.Parameter]:
    return {option: each for each in parameters(name) for option in each.opts}


@pytest.mark.parametrize("name", MATRIX)
def test_a_command_takes_every_shared_option_that_it_can_use(name: str) -> None:
    missing = MATRIX[name] - options(name).keys()
    assert not missing


def test_every_analysis_is_in_the_matrix() -> None:
    assert {f"analyze {name}" for name in ANALYSES} <= MATRIX.keys()


def test_a_shared_option_has_one_help_and_one_default() -> None:
    told: dict[str, set[tuple[Any, Any]]] = {}
    for name, shared in MATRIX.items():
        for option in shared & options(name).keys() - {"--data"}:  # which a plan may name instead
            each: Any = options(name)[option]
            told.setdefault(option, set()).add((each.help, each.default))
    assert {option: seen for option, seen in told.items() if len(seen) > 1} == {}


def test_options_are_the_settings_of_an_experiment() -> None:
    groups = {each.name for group in (ExperimentOptions, Measuring) for each in fields(group)}
    emulation = {option.lstrip("-") for option in EMULATED}
    assert groups - {"emulation", "measuring", "prepared"} | emulation == Experiment.model_fields.keys() - {
        "data_options"
    }
    assert {each.name for each in fields(DataOptions)} == {each.name for each in fields(DataSource)} - {"path"}
    assert Settings.__optional_keys__ == Experiment.model_fields.keys() - {"model", "data", "data_options"}


def test_analyses_run_with_the_options_of_the_command_line() -> None:
    from emu.analysis.ground import Run
    from emu.analysis.ground import RunOptions as Keywords

    defaults = {each.name: each.default for each in fields(Run)}
    assert {each.name: each.default for each in fields(RunOptions)}.items() <= defaults.items()
    assert Keywords.__optional_keys__ == defaults.keys()
