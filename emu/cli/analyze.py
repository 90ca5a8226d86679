"""emu analyze: where a model is vulnerable, what it stands, what to protect, and at which cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.app import app
from emu.cli.options import ExperimentOptions, Output, RunOptions, StoredRun, grouped, parse_share
from emu.cli.output import Progress, open_store, say, show
from emu.errors import InputError

if TYPE_CHECKING:
    from emu.analysis.ground import Analysis
    from emu.evaluation import Bench

analyze_app = typer.Typer(
    help="Find out where a model is vulnerable, what it stands, and what to protect.", no_args_is_help=True
)
app.add_typer(analyze_app, name="analyze")


def analyze(run: RunOptions, output: Output, work: "Callable[..., Analysis]") -> None:
    """Runs an analysis, which takes the options of `emu.analysis.ground.Run`, and shows what it gives."""
    check_plot(output)
    given = vars(run)
    with open_store(given.get("store")) as kept, Progress("trials") as progress:
        analysis = work(**{**given, "store": kept, "echo": say, "progress": progress})
    show(analysis, output.plot, output.as_json)


def check_plot(output: Output) -> None:
    """Refuses a figure that cannot be written, before hours of trials.

    Raises:
        InputError: as in `emu.analysis.figures.check_figure`.
    """
    if output.plot:
        from emu.analysis.figures import check_figure

        check_figure(output.plot)


@analyze_app.command()
@grouped
def sensitivity(
    experiment: ExperimentOptions,
    *,
    mode: Annotated[
        Literal["only", "all-but", "both"],
        typer.Option(help="Disturb only one part at a time, all but one, or measure both."),
    ] = "only",
    run: StoredRun,
    output: Output,
) -> None:
    """Measure which layers and components lose accuracy when they are on the device."""

    def work(**options: Any) -> "Analysis":
        from emu.analysis.sensitivity import sensitivity as measure

        return measure(experiment.bench(), mode, **options)

    analyze(run, output, work)


@analyze_app.command()
@grouped
def heads(experiment: ExperimentOptions, *, run: StoredRun, output: Output) -> None:
    """Measure how vulnerable each attention head is, and how far it looks."""

    def work(**options: Any) -> "Analysis":
        from emu.analysis.heads import heads as measure

        return measure(experiment.bench(), attention=experiment.model, **options)

    analyze(run, output, work)


@analyze_app.command()
@grouped
def thresholds(
    experiment: ExperimentOptions,
    *,
    vary: Annotated[
        str,
        typer.Option(
            metavar="SETTING=VALUES",
            help="A number of the device and its values: faults.ber=1e-6,1e-5 or faults.ber=1e-7:1e-3:9log.",
        ),
    ],
    by: Annotated[
        Literal["model", "layer", "component", "head"], typer.Option(help="What is disturbed at a time.")
    ] = "model",
    loss: Annotated[str, typer.Option(metavar="LIST", help="Losses of accuracy that are looked for.")] = "1%,5%,10%",
    run: StoredRun,
    output: Output,
) -> None:
    """Find the value of a setting at which 1, 5 and 10 % of accuracy are lost."""

    def work(**options: Any) -> "Analysis":
        from emu.analysis.thresholds import thresholds as find
        from emu.sweep.axes import numbers_of_axis

        limits = [parse_share(each, "--loss") for each in loss.split(",")]
        setting, values = numbers_of_axis(vary)
        return find(experiment.bench(), setting, values, by, limits, **options)

    analyze(run, output, work)


@analyze_app.command()
@grouped
def compare(
    experiment: ExperimentOptions,
    *,
    second: Annotated[
        Path | None, typer.Argument(metavar="[SECOND]", help="The second model.", show_default="MODEL")
    ] = None,
    second_device: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Device of the second.", show_default="--device")
    ] = None,
    second_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.SETTING=VALUE", help="Settings of the second's device, beside --set if it is the same."
        ),
    ] = None,
    second_map: Annotated[
        list[str] | None, typer.Option(metavar="SITES:NAME|FILE", help="Devices for some sites of the second.")
    ] = None,
    second_data: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER|NAME", help="Data of the second.", show_default="--data")
    ] = None,
    run: StoredRun,
    output: Output,
) -> None:
    """Compare two models, or two devices, on the same chips."""
    if second is None and not (second_device or second_set or second_map or second_data):
        raise InputError("There is nothing to compare with: give a second model, --second-device, or --second-set.")
    first = experiment.emulation
    # Settings of the first device need not exist on another one.
    sets = [*((first.set or []) if second_device is None else []), *(second_set or [])]
    maps = [*(first.map or []), *(second_map or [])]
    files = {"model": second or experiment.model, "data": second_data or experiment.data}

    def work(**options: Any) -> "Analysis":
        from emu.analysis.compare import compare as measure

        other = experiment.bench(changes={**files, "device": second_device or first.device, "set": sets, "map": maps})
        return measure(experiment.bench(), other, [*sets, *maps], **options)

    analyze(run, output, work)


@analyze_app.command()
@grouped
def protect(
    experiment: ExperimentOptions,
    *,
    target: Annotated[str, typer.Option(metavar="loss=SHARE", help="Largest mean loss of accuracy.")] = "loss=1%",
    cost: Annotated[
        Literal["macs", "parameters", "bits"], typer.Option(help="What protection costs, counted over protected sites.")
    ] = "macs",
    guard: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Device of protected sites: ideal keeps them digital, int8_secded adds check bits.",
        ),
    ] = "ideal",
    run: StoredRun,
    output: Output,
) -> None:
    """Find the sites to keep off the device so that the loss stays under a target at the least cost."""

    def work(**options: Any) -> "Analysis":
        from emu.analysis.protect import protect as search
        from emu.device import load_profile
        from emu.rewriter import read_manifest

        name, equals, value = target.partition("=")
        if name != "loss" or not equals:
            raise InputError(f"--target '{target}' cannot be read: write loss=1%.")
        limit, guard_name, on = parse_share(value, "--target"), load_profile(guard).name, experiment.emulation
        # Settings of the guard are for where it is used: in the bench that has it.
        bench = experiment.bench(
            changes={"set": [each for each in on.set or () if not each.startswith(f"{guard_name}:")]}
        )

        def guarded(rules: Sequence[str]) -> "Bench":
            return experiment.bench(bench.dataset, bench.task, changes={"map": [*(on.map or ()), *rules]})

        if guard_name != "ideal" and read_manifest(experiment.model) is not None:
            raise InputError(
                f"{experiment.model} is rewritten, and its sites cannot move to '{guard_name}': give the original "
                "model."
            )
        return search(bench, limit, cost, guard=guard, guarded=None if guard_name == "ideal" else guarded, **options)

    analyze(run, output, work)


@analyze_app.command()
@grouped
def attention(
    experiment: ExperimentOptions,
    *,
    by: Annotated[
        Literal["head", "length"], typer.Option(help="Each head, or the number of tokens that are no padding.")
    ] = "head",
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Disturb only the layer that is looked at, not those before it.")
    ] = False,
    bins: Annotated[int, typer.Option(min=1, help="Bins of lengths, for --by length.")] = 5,
    run: RunOptions,
    output: Output,
) -> None:
    """Measure how far attention moves on the device, and whether it scatters, in each layer and head."""

    def work(**options: Any) -> "Analysis":
        from emu.analysis.attention import attention as measure

        bench = experiment.bench(changes=dict.fromkeys(experiment.selection))
        return measure(bench, by, isolate=isolate, bins=bins, **experiment.selection, **options)

    analyze(run, output, work)


@analyze_app.command()
@grouped
def snr(
    experiment: ExperimentOptions,
    *,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUES",
            help="Try these values of a number of the device: write.gamma=3,4,5; may be repeated, for combinations.",
        ),
    ] = None,
    of: Annotated[
        Literal["block", "context"],
        typer.Option(help="Of the output of each block, or of its attention, softmax(QK^T)V."),
    ] = "block",
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.SETTING=VALUE",
            help="Compare with the same device and chip but for this number (write.gamma=0), not with the clean model.",
        ),
    ] = None,
    run: RunOptions,
    output: Output,
) -> None:
    """Measure the signal-to-noise ratio of every block's output, in dB."""

    def work(**options: Any) -> "Analysis":
        from emu.analysis.snr import signal_to_noise
        from emu.device import parse_overrides
        from emu.sweep.axes import numbers_of_axis

        varied = dict(numbers_of_axis(each) for each in vary or ())
        bench = experiment.bench(changes=dict.fromkeys(experiment.selection))
        against = parse_overrides(reference) if reference else None
        return signal_to_noise(bench, varied, of=of, reference=against, **experiment.selection, **options)

    analyze(run, output, work)
