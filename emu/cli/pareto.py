"""emu analyze pareto."""

from typing import Annotated, Literal

import typer

from emu.cli.analyze import analyze_app, check_plot
from emu.cli.options import Output, PlanOptions, StoreFile, Sweeping, grouped
from emu.cli.output import show
from emu.cli.sweep import run_sweep


@analyze_app.command()
@grouped
def pareto(
    planned: PlanOptions,
    *,
    against: Annotated[Literal["energy", "latency", "area"], typer.Option(help="Which cost.")] = "energy",
    store: StoreFile = None,
    where: Sweeping,
    output: Output,
) -> None:
    """Sweep over designs, and find those that no other beats in accuracy and energy."""
    from emu.analysis.pareto import pareto as find

    check_plot(output)
    table = run_sweep(planned.plan(cost=True), store, where)
    show(find(table, against), output.plot, output.as_json)
