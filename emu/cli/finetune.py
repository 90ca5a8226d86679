"""emu finetune."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.app import app
from emu.cli.options import DataOptions, Exclude, Json, Map, Only, Samples, Set, grouped
from emu.cli.output import Progress, print_json, print_table
from emu.errors import InputError
from emu.libraries import library

if TYPE_CHECKING:
    from emu.evaluation import DataSource
    from emu.train.settings import Finetuning


@dataclass(frozen=True)
class Loss:
    """What is minimized."""

    method: Annotated[
        Literal["distillation", "noise", "deit-soft", "deit-hard", "cdeit-soft", "cdeit-hard"],
        typer.Option(help="The loss: noise-aware distillation, noise alone (no teacher), or that of DeiT or CDeiT."),
    ] = "distillation"
    beta: Annotated[float, typer.Option(min=0, help="Weight of the divergence from the teacher.")] = 1.0
    gamma: Annotated[float, typer.Option(min=0, help="Weight of the difference from the teacher's blocks.")] = 1.0
    temperature: Annotated[
        float | None, typer.Option(help="Of the divergence.", show_default="1; 3 for DeiT and CDeiT")
    ] = None
    direction: Annotated[Literal["teacher-student", "student-teacher"], typer.Option(help="Of the divergence.")] = (
        "teacher-student"
    )
    reduction: Annotated[
        Literal["batchmean", "batch-classes"], typer.Option(help="What the divergence is divided by.")
    ] = "batchmean"
    distillation_weight: Annotated[float, typer.Option(help="Lambda of the soft losses of DeiT and CDeiT.")] = 0.5
    label_smoothing: Annotated[float, typer.Option(help="Share of a label that is spread over all classes.")] = 0.0


@dataclass(frozen=True)
class Noise:
    """How the chip acts in training."""

    gradient: Annotated[
        Literal["straight-through", "reparametrized"], typer.Option(help="How gradients reach the clean weights.")
    ] = "straight-through"
    strength: Annotated[float, typer.Option(min=0, help="Factor on every disturbance.")] = 1.0
    strength_schedule: Annotated[
        Literal["constant", "linear", "random"],
        typer.Option(help="linear: grow to the strength by half-time; random: between 0 and it, for each batch."),
    ] = "constant"
    drop_connect: Annotated[float, typer.Option(help="Share of the stored weights set to zero.")] = 0.0
    clip_weights: Annotated[
        str | None,
        typer.Option(metavar="fixed:LIMIT|gaussian:FACTOR", help="Limit stored weights after each step."),
    ] = None


@dataclass(frozen=True)
class Loop:
    """The training loop."""

    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 5
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once, on each processor.")] = 32
    accumulate: Annotated[int, typer.Option(min=1, help="Batches for one step.")] = 1
    learning_rate: Annotated[float, typer.Option(help="AdamW's, at its peak.")] = 1e-4
    decay: Annotated[Literal["cosine", "linear", "constant"], typer.Option(help="How it falls.")] = "cosine"
    warmup: Annotated[float, typer.Option(help="Share of the steps in which it rises.")] = 0.05
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.05
    largest_gradient: Annotated[float, typer.Option(help="Gradients are clipped to this norm.")] = 1.0
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of products and activations in training.")
    ] = "float32"
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0


@dataclass(frozen=True)
class Regularization:
    """Changes of images, and stochastic depth."""

    mixup: Annotated[float, typer.Option(help="Alpha of mixup.")] = 0.0
    erasing: Annotated[float, typer.Option(help="Probability of random erasing.")] = 0.0
    randaugment: Annotated[
        str | None,
        typer.Option(
            metavar="OPERATIONS,MAGNITUDE", help="RandAugment, such as 2,9; of arrays it needs --mean and --std."
        ),
    ] = None
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images with probability 1/2.")] = False
    crop_padding: Annotated[int, typer.Option(min=0, help="Pixels by which images move at most.")] = 0
    drop_path_rate: Annotated[float, typer.Option(help="Stochastic depth.")] = 0.0


@dataclass(frozen=True)
class Chip:
    """The chip on which the model trains."""

    device: Annotated[
        str, typer.Option(metavar="NAME|FILE|none", help="The chip: a preset or a .toml file; none: no chip.")
    ] = "rram"
    set: Set = None
    map: Map = None
    only: Only = None
    exclude: Exclude = None


@dataclass(frozen=True)
class Keeping:
    """What is kept of a training, and how one goes on."""

    fresh: Annotated[bool, typer.Option("--fresh", help="Begin with random weights.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")] = False
    save_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints.", show_default="those of an epoch")
    ] = None
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="Keep the last two checkpoints.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs to OUTPUT/logs.")] = False


@dataclass(frozen=True)
class Teaching:
    """The clean model that teaches."""

    teacher: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The clean model.", show_default="the model before training")
    ] = None
    teacher_epochs: Annotated[float, typer.Option(help="First train the teacher's classifier for so long.")] = 0


@dataclass(frozen=True)
class HeldOut:
    """What the result is measured on."""

    evaluation: Annotated[
        str | None, typer.Option("--eval-data", metavar="FILE|FOLDER|NAME", help="Held-out samples.")
    ] = None
    then_evaluate: Annotated[
        bool,
        typer.Option("--then-evaluate", help="Export, rewrite and measure on --eval-data, before and after."),
    ] = False
    chips: Annotated[int, typer.Option(min=2, help="Chips of --then-evaluate.")] = 10


@app.command()
@grouped
def finetune(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A model of Hugging Face: config.json and model.safetensors.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER|NAME",
            help="Training samples: arrays (.npz), a table, a folder of images, or a data set of Hugging Face.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.")],
    *,
    on: Chip,
    teaching: Teaching,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Settings of a study, for options not given: corrupted_image_distillation."),
    ] = None,
    loss: Loss,
    noise: Noise,
    loop: Loop,
    regularization: Regularization,
    options: DataOptions,
    samples: Samples = None,
    held: HeldOut,
    keeping: Keeping,
    as_json: Json = False,
) -> None:
    """Train a classifier for its chip: noise-aware distillation in PyTorch."""
    for needed in ("torch", "transformers", "accelerate", "PIL", *(("tensorboard",) if keeping.tensorboard else ())):
        library(needed, extra="train")
    from emu.train.finetuning import finetune as run_finetuning

    if held.then_evaluate and held.evaluation is None:
        raise InputError("--then-evaluate needs held-out samples: give --eval-data.")
    if held.then_evaluate and on.device == "none":
        raise InputError("--then-evaluate measures on a chip: give its --device.")
    settings = _settings(on, teaching.teacher_epochs, loss, noise, loop, regularization, options)
    if preset is not None:
        settings = _with_preset(settings, preset, context)
    source, held_out = options.source(data), None
    if held.evaluation is not None:
        held_out = replace(options.source(held.evaluation), split=None)
    with Progress("training") as progress:
        result = run_finetuning(
            folder,
            source,
            output,
            settings,
            teacher=teaching.teacher,
            evaluation=held_out,
            samples=samples,
            **vars(keeping),
            echo=None if as_json else typer.echo,
            progress=progress,
        )
    if not result.is_main_process:
        return
    if not as_json:
        where = f"{result.sites} sites on {settings.device}" if settings.device else "digital"
        typer.echo(f"Wrote {result.path}: {result.samples} samples, {where}, {result.seconds:.0f} s.")
    report: dict[str, Any] = {"path": str(result.path), "seconds": result.seconds, "history": list(result.history)}
    if held.then_evaluate and held_out is not None:
        report["evaluation"] = _measure(folder, output, settings, held_out, held.chips, keeping.fresh, quiet=as_json)
    if as_json:
        print_json(report)


def _settings(
    on: Chip,
    teacher_epochs: float,
    loss: Loss,
    noise: Noise,
    loop: Loop,
    regularization: Regularization,
    data: DataOptions,
) -> "Finetuning":
    """What was given, as settings of a finetuning: words with underscores, texts with what they mean."""
    from emu.device import parse_overrides
    from emu.train.settings import Finetuning

    changes = vars(regularization)
    pictures = {name: value for name, value in changes.items() if value and name != "drop_path_rate"}
    if "randaugment" in pictures:
        pictures["randaugment"] = _pair(pictures["randaugment"])
    if pictures and data.mean is not None:
        pictures |= {"mean": data.mean, "std": data.std}
    given = {**vars(loss), **vars(noise), **vars(loop)}
    words = ("method", "direction", "reduction", "gradient")
    given |= {name: given[name].replace("-", "_") for name in words}
    given |= {**vars(on), "device": None if on.device == "none" else on.device}
    given |= {"set": parse_overrides(on.set), "map": tuple(on.map or ()), "clip_weights": _clip(noise.clip_weights)}
    return Finetuning(
        **given, teacher_epochs=teacher_epochs, drop_path_rate=changes["drop_path_rate"], augmentation=pictures
    )


def _with_preset(settings: "Finetuning", name: str, context: typer.Context) -> "Finetuning":
    """The settings of a study, but for those that were given on the command line."""
    from emu.train.presets import PRESETS

    def was_given(option: str) -> bool:
        source = context.get_parameter_source(option)
        return source is not None and source.name == "COMMANDLINE"

    if name not in PRESETS:
        raise InputError(f"There is no preset '{name}': choose {', '.join(PRESETS)}.")
    study = PRESETS[name]
    at_once = settings.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    accumulate = settings.accumulate if was_given("accumulate") else max(1, study.batch_size // at_once)
    of_study: dict[str, Any] = {
        "epochs": study.epochs,
        "learning_rate": study.learning_rate(at_once * accumulate),
        "decay": study.schedule,
        "weight_decay": study.weight_decay,
        "label_smoothing": study.label_smoothing,
        "drop_path_rate": study.drop_path_rate,
        "temperature": study.temperature,
        "distillation_weight": study.distillation_weight,
    }
    changes = {option: value for option, value in of_study.items() if not was_given(option)}
    if not was_given("warmup"):
        changes["warmup"] = min(1.0, study.warmup_epochs / changes.get("epochs", settings.epochs))
    augmentation = {each: getattr(study, each) for each in ("mixup", "erasing") if not was_given(each)}
    return replace(settings, **changes, accumulate=accumulate, augmentation={**settings.augmentation, **augmentation})


def _clip(text: str | None) -> Any:
    if text is None:
        return None
    kind, _, limit = text.partition(":")
    try:
        return kind, float(limit)
    except ValueError:
        raise InputError(f"--clip-weights is '{text}' and must be fixed:LIMIT or gaussian:FACTOR.") from None


def _pair(text: str) -> tuple[int, int]:
    try:
        operations, magnitude = (int(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"--randaugment is '{text}' and must be two whole numbers: OPERATIONS,MAGNITUDE.") from None
    return operations, magnitude


def _measure(
    before: Path, after: Path, settings: "Finetuning", data: "DataSource", chips: int, fresh: bool, quiet: bool
) -> dict[str, Any]:
    """Both models exported, rewritten, and measured on the same chips."""
    from emu.train.remeasuring import remeasure

    assert settings.device is not None, "checked before the training"
    with Progress("measuring") as progress:
        result = remeasure(
            None if fresh else before,
            after,
            data,
            device=settings.device,
            set=settings.set,
            map=settings.map,
            only=settings.only,
            exclude=settings.exclude,
            chips=chips,
            progress=progress,
        )
    if not quiet:
        shown = ("clean", "mean", "low", "high")
        rows = [[row["model"], *(f"{100 * row[name]:.2f}" for name in shown)] for row in result.rows]
        print_table(["accuracy (%)", "clean", f"mean of {chips} chips", "from", "to"], rows)
        if result.gain is not None:
            gain = result.gain
            typer.echo(
                f"gain on the same chips: {100 * gain['mean']:+.2f} points "
                f"(95 % interval {100 * gain['low']:+.2f} to {100 * gain['high']:+.2f})"
            )
        typer.echo(f"Wrote {result.path}.")
    return result.as_dict()
