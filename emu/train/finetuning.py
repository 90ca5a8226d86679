"""Trains a model for its chip: from a folder and data to a folder."""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from emu.errors import InputError
from emu.evaluation import DataSource
from emu.evaluation.data import DataSet, Targets, class_targets, model_inputs
from emu.evaluation.preparing import load
from emu.evaluation.tasks import Classification
from emu.train.augmentation import Augmentation
from emu.train.cdeit import add_stochastic_depth
from emu.train.exporting import example_inputs, onnx_of
from emu.train.folders import BESIDE_THE_MODEL, load_model
from emu.train.noise import Chip
from emu.train.settings import Finetuning
from emu.train.trainer import CHECKPOINT_MARK, ChipTrainer, Samples

CHECKPOINTS = "checkpoints"
RECORD = "training.json"

Echo = Callable[[str], object]
Step = Callable[[int, int], object]


@dataclass(frozen=True)
class Finetuned:
    """What was trained.

    Attributes:
        path: the folder of the model.
        samples: training samples.
        sites: emulated sites, 0 without a chip.
        history: what was logged, one entry for each epoch: `epoch`, `loss` and its parts, or `eval_accuracy`.
        seconds: time of training, without what an earlier run had done.
        is_main_process: whether this process wrote the model; the others of several do not.
    """

    path: Path
    samples: int
    sites: int
    history: tuple[dict[str, float], ...]
    seconds: float
    is_main_process: bool = True


def finetune(
    folder: str | Path,
    data: str | Path | DataSource,
    output: str | Path,
    settings: Finetuning | None = None,
    *,
    teacher: str | Path | None = None,
    evaluation: str | Path | DataSource | None = None,
    samples: int | None = None,
    fresh: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    save_steps: int | None = None,
    keep_checkpoints: bool = False,
    tensorboard: bool = False,
    echo: Echo | None = None,
    progress: Step | None = None,
) -> Finetuned:
    """Trains a classifier of transformers for its chip, and writes its folder.

    Everything is drawn from the seed, so the same call gives the same weights on the same machine; an interrupted
    training that is resumed gives those too. Started by `torchrun`, it trains on all processes.

    Args:
        folder: a model: config.json, model.safetensors, and its image processor or tokenizer.
        data: training samples, as for `emu.evaluate`; for CDeiT's losses an .npz file with `corruption`, integers
            `[samples]`: 0 for a clean image, else the kind of corruption.
        output: the folder to write.
        settings: how to train.
        teacher: folder of the clean model; None for the same model before training.
        evaluation: samples on which accuracy is measured after each epoch, on the chip of seed 0.
        samples: use only the first so many training samples.
        fresh: begin with random weights instead of those in the folder.
        resume: go on where an interrupted training with the same settings stopped.
        overwrite: replace what is in the output folder.
        save_steps: steps between checkpoints; None for one at each epoch's end.
        keep_checkpoints: do not remove them at the end.
        tensorboard: write its log files to `output/logs`.
        echo: takes a line on each epoch.
        progress: called with the steps done and all of them.

    Raises:
        InputError: model, teacher, data or settings do not fit each other, or the loss is no number.
    """
    settings = settings or Finetuning()
    folder, output = Path(folder), Path(output)
    checkpoint = _prepare_output(output, folder, settings, resume, overwrite)
    with _quiet():
        set_seed(settings.seed)
        student = load_model(folder, fresh=fresh)
        dataset, corruptions = _data(student, data, settings, samples, folder)
        held_out = None if evaluation is None else _data(student, evaluation, None, None, folder)[0]
        taught_by = (
            _teacher(folder, teacher, student, dataset, settings, output, fresh) if settings.has_teacher else None
        )
        if settings.drop_path_rate:
            add_stochastic_depth(student, settings.drop_path_rate)
        if settings.has_corruptions and not hasattr(student, "corruption_classifier"):
            raise InputError(
                f"'{settings.method}' trains a corruption token, which {type(student).__name__} does not have: make a "
                "CDeiT first (emu.train.cdeit.CDeiTForImageClassification.from_deit)."
            )
        chip = None
        if settings.device is not None:
            chip = Chip(
                student,
                settings.device,
                only=settings.only,
                exclude=settings.exclude,
                set=settings.set,
                map=settings.map,
                gradient=settings.gradient,
                drop_connect=settings.drop_connect,
                strength=settings.strength,
            )
        set_seed(settings.seed)
        trainer = ChipTrainer(
            student,
            _arguments(output, settings, held_out is not None, save_steps, tensorboard),
            settings,
            chip,
            taught_by,
            Samples(dataset, corruptions),
            None if held_out is None else Samples(held_out),
            Augmentation(**settings.augmentation) if settings.augmentation else None,
        )
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        trainer.add_callback(_Reporter(echo, progress))
        try:
            done = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except KeyboardInterrupt:
            if echo is not None:
                echo(f"Stopped. The same command with --resume goes on from the last checkpoint in {output}.")
            raise
        finally:
            if chip is not None:
                chip.remove()
        history = tuple(trainer.state.log_history)
        if trainer.is_world_process_zero():
            _write(output, folder, student, settings, history)
            if not keep_checkpoints:
                shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return Finetuned(
        path=output,
        samples=len(dataset.labels),
        sites=0 if chip is None else len(chip.sites),
        history=history,
        seconds=float(done.metrics["train_runtime"]),
        is_main_process=trainer.is_world_process_zero(),
    )


def _prepare_output(output: Path, folder: Path, settings: Finetuning, resume: bool, overwrite: bool) -> Path | None:
    """Makes the output folder; the checkpoint to go on from, None to begin."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: give a folder to write the model to.")
    if not output.absolute().parent.is_dir():
        raise InputError(f"There is no folder {output.absolute().parent} to make {output.name} in.")
    if output.is_dir() and folder.is_dir() and output.samefile(folder):
        raise InputError(f"{output} is the model itself: give another folder with -o.")
    checkpoints = output / CHECKPOINTS
    saved = checkpoints / RECORD
    if resume:
        if not saved.is_file():
            raise InputError(f"{output} has no interrupted training: leave --resume out.")
        changed = settings.differences(json.loads(saved.read_text(encoding="utf-8")))
        if changed:
            raise InputError(f"The training in {output} was begun with other settings ({'; '.join(changed)}).")
        whole = [each for each in checkpoints.glob("checkpoint-*") if (each / CHECKPOINT_MARK).is_file()]
        return max(whole, key=lambda each: int(each.name.rpartition("-")[2]), default=None)
    is_first = int(os.environ.get("RANK", "0")) == 0
    if is_first:
        if saved.exists() and not overwrite:
            raise InputError(f"{output} has an interrupted training: go on with --resume, or begin with --overwrite.")
        if (output / "config.json").exists() and not overwrite:
            raise InputError(f"{output} has a model already: give another folder with -o, or --overwrite.")
        try:
            shutil.rmtree(checkpoints, ignore_errors=True)
            checkpoints.mkdir(parents=True)
            _replace(saved, json.dumps(settings.as_dict(), indent=2))
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error.strerror or error}.") from None
    return None


def _data(
    model: Any, data: str | Path | DataSource, settings: Finetuning | None, samples: int | None, folder: Path
) -> tuple[DataSet, NDArray[np.int64] | None]:
    """Samples for the model, and how each image is corrupted if the loss asks for it."""
    source = data if isinstance(data, DataSource) else DataSource(data)
    if settings is not None and source.split is None and not Path(source.path).suffix:
        source = _training_part(source)
    session: Any = _Graph(onnx_of(model, example_inputs(model)))
    task = _WithCorruptions() if settings is not None and settings.has_corruptions else Classification()
    dataset, _ = load(source, session, model_inputs(session), task, samples, folder)
    labels, classes = dataset.labels, int(model.config.num_labels)
    if dataset.classes is not None and len(dataset.classes) != classes:
        raise InputError(
            f"{dataset.where} has {len(dataset.classes)} classes, but the model has {classes}: list the model's "
            "classes in their order in a file (--classes), or change num_labels in its config.json and begin with "
            "--fresh."
        )
    if labels.max() >= classes:
        raise InputError(f"'labels' of {dataset.where} has class {labels.max()}, but the model has {classes} classes.")
    corruptions = dataset.targets.get("corruption")
    if corruptions is not None and corruptions.max() > int(getattr(model.config, "corruptions", 0)):
        raise InputError(
            f"'corruption' of {dataset.where} has kind {corruptions.max()}, but the model has "
            f"{getattr(model.config, 'corruptions', 0)} kinds of corruption."
        )
    return dataset, None if corruptions is None else corruptions.astype(np.int64)


def _training_part(source: DataSource) -> DataSource:
    """The split `train` of a data set that has one."""
    path = Path(source.path)
    if path.is_dir() and not (path / "dataset_dict.json").is_file():
        return source
    return replace(source, split="train")


@dataclass(frozen=True)
class _WithCorruptions(Classification):
    """Classification of images that know how they are corrupted."""

    def targets(self, arrays: Any, rows: int, where: str) -> Targets:
        targets = class_targets(arrays, rows, where)
        found = arrays.get("corruption")
        if found is None or found.shape != (rows,) or found.dtype.kind not in "iu" or found.min(initial=0) < 0:
            raise InputError(
                f"{where} needs an array 'corruption', one whole number for each sample, 0 for a clean image: the loss "
                "trains a corruption token."
            )
        return replace(targets, per_row={**targets.per_row, "corruption": found})


class _Graph:
    """What the preparation of data asks of a session, from a graph alone."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._inputs, self._outputs = proto.graph.input, proto.graph.output

    def get_inputs(self) -> list[Any]:
        return [_value(each) for each in self._inputs]

    def get_outputs(self) -> list[Any]:
        return [_value(each) for each in self._outputs]


def _value(value: onnx.ValueInfoProto) -> Any:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    return SimpleNamespace(name=value.name, type=f"tensor({kind})", shape=shape)


def _teacher(
    folder: Path,
    teacher: str | Path | None,
    student: Any,
    dataset: DataSet,
    settings: Finetuning,
    output: Path,
    fresh: bool,
) -> Any:
    """The clean model, its head trained first if that is wanted."""
    if teacher is None and fresh:
        raise InputError("A student with random weights has nothing to learn from itself: give a --teacher.")
    where = folder if teacher is None else Path(teacher)
    model = load_model(where)
    classes = int(student.config.num_labels)
    if int(model.config.num_labels) != classes:
        if not settings.teacher_epochs:
            raise InputError(
                f"The teacher in {where} has {model.config.num_labels} classes, but the student has {classes}: train "
                "its head first (--teacher-epochs), or give another one."
            )
        _replace_head(model, classes, where)
    for name in ("image_size", "num_channels", "vocab_size"):
        mine, its = getattr(student.config, name, None), getattr(model.config, name, None)
        if mine != its:
            raise InputError(f"The teacher in {where} has {name} {its}, but the student has {mine}: they share inputs.")
    if settings.compares_blocks:
        for name in ("hidden_size", "num_hidden_layers"):
            mine, its = getattr(student.config, name, None), getattr(model.config, name, None)
            if mine != its:
                raise InputError(
                    f"The teacher in {where} has {name} {its}, but the student has {mine}: their block outputs cannot "
                    "be compared, so give --gamma 0 or another teacher."
                )
    if settings.teacher_epochs:
        _train_head(model, dataset, settings, output)
    return model


def _heads(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that give the logits, by name."""
    classes = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classes and "classifier" in name
    }


def _replace_head(model: Any, classes: int, where: Path) -> None:
    heads = _heads(model)
    if not heads:
        raise InputError(f"The classifier of the teacher in {where} was not found: give one of {classes} classes.")
    for name, layer in heads.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, nn.Linear(layer.in_features, classes))
    model.config.num_labels = classes


def _train_head(model: Any, dataset: DataSet, settings: Finetuning, output: Path) -> None:
    model.requires_grad_(False)
    for layer in _heads(model).values():
        layer.requires_grad_(True)
    alone = replace(
        settings, method="noise", device=None, set={}, only=None, exclude=None, map=(), epochs=settings.teacher_epochs,
        clip_weights=None, augmentation={}, drop_path_rate=0.0, learning_rate=10 * settings.learning_rate,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        arguments = _arguments(Path(scratch), alone, False, None, False)
        arguments.save_strategy = "no"
        ChipTrainer(model, arguments, alone, None, None, Samples(dataset)).train()


def _arguments(
    output: Path, settings: Finetuning, evaluates: bool, save_steps: int | None, tensorboard: bool
) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings.decay, settings.decay),
        warmup_ratio=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.largest_gradient,
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        seed=settings.seed,
        save_strategy="epoch" if save_steps is None else "steps",
        save_steps=save_steps or 500,
        save_total_limit=2,
        logging_strategy="epoch",
        logging_dir=str(output / "logs"),
        eval_strategy="epoch" if evaluates else "no",
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
    )


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """One line for each epoch, and the steps done."""

    def __init__(self, echo: Echo | None, progress: Step | None) -> None:
        self.echo, self.progress = echo, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.echo is None or not state.is_world_process_zero or not logs:
            return
        epoch = f"epoch {logs.get('epoch', 0):g} of {args.num_train_epochs:g}"
        if "loss" in logs:
            hidden = ("loss", "epoch", "grad_norm", "learning_rate")
            parts = ", ".join(f"{name} {value:.4g}" for name, value in logs.items() if name not in hidden)
            self.echo(f"{epoch}: loss {logs['loss']:.4g}" + (f" ({parts})" if parts else ""))
        elif "eval_accuracy" in logs:
            self.echo(f"{epoch}: accuracy {logs['eval_accuracy']:.2%} on the chip of seed 0")


def _write(output: Path, folder: Path, model: Any, settings: Finetuning, history: Any) -> None:
    """The model's folder, each file whole or not at all; config.json last."""
    try:
        with tempfile.TemporaryDirectory(prefix=".model-", dir=output) as scratch:
            work = Path(scratch)
            model.save_pretrained(work, safe_serialization=True)
            for name in BESIDE_THE_MODEL:
                if name != "config.json" and (folder / name).is_file():
                    shutil.copyfile(folder / name, work / name)
            record = {"settings": settings.as_dict(), "history": list(history)}
            (work / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
            for file in sorted(work.iterdir(), key=lambda each: each.name == "config.json"):
                file.chmod(0o644)  # safetensors makes files private
                os.replace(file, output / file.name)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}.") from None


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of libraries; what a user should know is said by this package."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
