"""Trains a model for its chip: from a folder and data to a folder."""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy

from emu.errors import InputError
from emu.evaluation import DataSource
from emu.evaluation.classes import ClassNames
from emu.evaluation.data import DataSet, Targets, class_targets, model_inputs
from emu.evaluation.preparing import load
from emu.evaluation.sources import TABLE_FILES
from emu.evaluation.tasks import Classification
from emu.rewriter.devices import load_devices
from emu.rewriter.replace import calibrated_ranges
from emu.train.augmentation import Augmentation
from emu.train.cdeit import add_stochastic_depth
from emu.train.exporting import example_inputs, onnx_of
from emu.train.folders import BESIDE_THE_MODEL, load_model, reason
from emu.train.noise import Chip
from emu.train.settings import Finetuning
from emu.train.trainer import CHECKPOINT_MARK, ChipTrainer, Samples, write_whole

CHECKPOINTS = "checkpoints"
LOGS = "logs"
UNFINISHED = ".model-"  # starts the name of the folder in which a model is put together
OF_AN_EXPORT = ("model.onnx", "model.onnx.data", "evaluation.json")  # what measuring writes beside a model
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
        history: one entry for the training of each epoch (`epoch`, `step`, `loss` and its parts, `learning_rate`,
            `grad_norm`), and one for its evaluation (`eval_accuracy`, `eval_loss`). A loss is a mean over the epoch, in
            a resumed training over what came after the checkpoint.
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
        evaluation: samples on which accuracy is measured after each epoch, on the chip of seed 0 if there is one.
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
    is_first = int(os.environ.get("RANK", "0")) == 0
    if resume:
        _check_resumed(output, settings)
    elif is_first:
        _check_output(output, [folder, *([] if teacher is None else [Path(teacher)])], overwrite)
    if teacher is not None and not settings.has_teacher:
        raise InputError(f"'{settings.method}' has no teacher: leave it out, or take another method.")
    augmentation = Augmentation(**settings.augmentation) if settings.augmentation else None
    devices = _devices(settings)
    with _quiet():
        set_seed(settings.seed)
        student = load_model(folder, fresh=fresh)
        if settings.has_corruptions and not hasattr(student, "corruption_classifier"):
            raise InputError(
                f"'{settings.method}' trains a corruption token, which {type(student).__name__} does not have: make a "
                "CDeiT first (emu.train.cdeit.CDeiTForImageClassification.from_deit)."
            )
        graph = _Graph(onnx_of(student, example_inputs(student)))
        dataset, corruptions = _data(student, graph, data, settings, samples, folder)
        held_out = None if evaluation is None else _data(student, graph, evaluation, None, None, folder)[0]
        if augmentation is not None:
            augmentation = _fitting(augmentation, dataset, folder)
        taught_by = _teacher(folder, teacher, student, settings, fresh) if settings.has_teacher else None
        begun = {
            "settings": settings.as_dict(),
            "devices": devices,
            "model": _digest(student),
            "teacher": None if taught_by is None else _digest(taught_by),
            "data": _digest_of_data(dataset),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        }
        if resume:
            _check_resumed(output, settings, begun)
        if taught_by is not None and settings.teacher_epochs:
            _train_head(taught_by, dataset, settings)
        if settings.drop_path_rate:
            add_stochastic_depth(student, settings.drop_path_rate)
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
        if is_first and not resume:
            _begin(output, begun)
        if echo is not None and is_first:
            echo(f"classes  {dataset.about_classes}")
        _name_classes(student, dataset)
        checkpoint = _last_checkpoint(output) if resume else None
        set_seed(settings.seed)
        try:
            trainer = ChipTrainer(
                student,
                _arguments(output / CHECKPOINTS, settings, held_out is not None, save_steps, tensorboard),
                settings,
                chip,
                taught_by,
                Samples(dataset, corruptions),
                None if held_out is None else Samples(held_out),
                augmentation,
            )
            _silence(trainer)
            trainer.add_callback(_Reporter(echo, progress, chip is not None))
            done = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            _check_finite(student)
            history = _history(trainer.state.log_history)
            if is_first:
                _write(output, folder, student, {**begun, "history": list(history)})
        except BaseException as error:
            if is_first:
                _stopped(output, error, echo)
            raise
        finally:
            if chip is not None:
                chip.remove()
        if is_first and not keep_checkpoints:
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return Finetuned(
        path=output,
        samples=len(dataset.labels),
        sites=0 if chip is None else len(chip.sites),
        history=history,
        seconds=float(done.metrics["train_runtime"]),
        is_main_process=is_first,
    )


def _check_output(output: Path, taken: Sequence[Path], overwrite: bool) -> None:
    """Refuses a folder that would lose something, before any work is done."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: give a folder to write the model to.")
    if not output.absolute().parent.is_dir():
        raise InputError(f"There is no folder {output.absolute().parent} to make {output.name} in.")
    if any(output.is_dir() and each.is_dir() and output.samefile(each) for each in taken):
        raise InputError(f"{output} is a model that is read here: give another folder with -o.")
    if overwrite:
        return
    if (output / CHECKPOINTS / RECORD).exists():
        raise InputError(
            f"{output} has checkpoints of a training: go on with --resume, or begin anew with --overwrite."
        )
    if (output / "config.json").exists():
        raise InputError(f"{output} has a model already: give another folder with -o, or --overwrite.")


def _check_resumed(output: Path, settings: Finetuning, begun: Mapping[str, Any] | None = None) -> None:
    """Refuses to go on with other settings or, once all is read, with anything else than what was begun."""
    try:
        saved = json.loads((output / CHECKPOINTS / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{output} has no interrupted training: leave --resume out.") from None
    changed = settings.differences(saved["settings"])
    if changed:
        raise InputError(
            f"The training in {output} was begun with other settings: {'; '.join(changed)}. Give the same ones, or "
            "begin anew with --overwrite."
        )
    if begun is None:
        return
    for name, what in (
        ("devices", "another content of the device's file"),
        ("model", "another model"),
        ("teacher", "another teacher"),
        ("data", "other training samples"),
    ):
        if saved[name] != begun[name]:
            raise InputError(
                f"The training in {output} was begun with {what}: give the same, or begin with --overwrite."
            )
    if saved["processes"] != begun["processes"]:
        raise InputError(
            f"The training in {output} was begun by {saved['processes']} processes, and these are "
            f"{begun['processes']}: start as many (torchrun --nproc-per-node)."
        )


def _begin(output: Path, begun: Mapping[str, Any]) -> None:
    try:
        for name in (CHECKPOINTS, LOGS):
            shutil.rmtree(output / name, ignore_errors=True)
        (output / CHECKPOINTS).mkdir(parents=True)
        write_whole(output / CHECKPOINTS / RECORD, json.dumps(begun, indent=2))
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}.") from None


def _last_checkpoint(output: Path) -> Path | None:
    """The last one that is whole."""
    whole = [each.parent for each in (output / CHECKPOINTS).glob(f"checkpoint-*/{CHECKPOINT_MARK}")]
    return max(whole, key=lambda each: int(each.name.rpartition("-")[2]), default=None)


def _stopped(output: Path, error: BaseException, echo: Echo | None) -> None:
    """Says how to go on; leaves nothing behind if there is nothing to go on from."""
    is_interrupted = isinstance(error, KeyboardInterrupt)
    if _last_checkpoint(output) is not None:
        if is_interrupted and echo is not None:
            echo(f"Stopped. The same command with --resume goes on from the last checkpoint in {output}.")
        return
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    if not any(output.iterdir()):
        output.rmdir()
    if is_interrupted and echo is not None:
        echo("Stopped before the first checkpoint: the same command begins anew.")


def _check_finite(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"The last step made {name} infinite: lower the learning rate (--learning-rate).")


def _history(logged: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """What was learned, without times, which differ from run to run."""
    kept = [each for each in logged if "loss" in each or "eval_loss" in each]
    timing = ("_runtime", "_per_second")
    return tuple(
        {name: value for name, value in each.items() if not name.endswith(timing) and math.isfinite(value)}
        for each in kept
    )


def _digest(model: nn.Module) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


def _digest_of_data(dataset: DataSet) -> str:
    """SHA-256 of all samples, of images that are read on demand of their labels alone."""
    in_memory = {name: array for name, array in dataset.arrays.items() if isinstance(array, np.ndarray)}
    return replace(dataset, arrays=in_memory).digest()


def _fitting(augmentation: Augmentation, dataset: DataSet, folder: Path) -> Augmentation:
    """The augmentation, as it fits these images; tried on two of them, so that what is wrong is said at once."""
    if "pixel_values" not in dataset.arrays:
        raise InputError(f"{dataset.where} holds no images, and augmentation is for images: leave it out.")
    if augmentation.randaugment is not None and augmentation.mean is None:
        augmentation = replace(augmentation, **_normalization(dataset, folder))
    rows = list(range(min(2, dataset.rows)))
    sample = torch.from_numpy(np.asarray(dataset.arrays["pixel_values"][rows], np.float32))
    augmentation.batch(sample, torch.zeros(len(sample), dtype=torch.int64), 1, torch.Generator())
    return augmentation


def _normalization(dataset: DataSet, folder: Path) -> dict[str, Any]:
    """Mean and std of the image processor, if it made these pixels."""
    if dataset.source is None or dataset.source.is_arrays:
        raise InputError(
            "RandAugment works on pictures of 0 to 255, and arrays do not say how they were made of such: give --mean "
            "and --std, pixels being (picture / 255 - mean) / std."
        )
    given = json.loads((Path(dataset.source.processor or folder) / "preprocessor_config.json").read_text("utf-8"))
    unit = 255 * float(given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1)
    normalizes = given.get("do_normalize", True)
    return {
        name: tuple(float(each) / unit for each in (given[f"image_{name}"] if normalizes else [otherwise]))
        for name, otherwise in (("mean", 0.0), ("std", 1.0))
    }


def _devices(settings: Finetuning) -> list[dict[str, Any]]:
    """The devices, all their numbers as plain data."""
    if settings.device is None:
        return []
    default, rules = load_devices(settings.device, settings.map, settings.set)
    profiles = [default, *(profile for _selection, profile in rules)]
    for profile in profiles:
        if any(calibrated_ranges(profile)):
            raise InputError(
                f"'{profile.name}' has converters whose ranges are calibrated in a rewritten model, which training "
                "does not have: give them another range (such as --set adc.range=absmax)."
            )
    return [profile.model_dump(mode="json") for profile in profiles]


def _data(
    model: Any,
    graph: "_Graph",
    data: str | Path | DataSource,
    settings: Finetuning | None,
    samples: int | None,
    folder: Path,
) -> tuple[DataSet, NDArray[np.int64] | None]:
    """Samples for the model, and how each image is corrupted if the loss asks for it; settings are for training."""
    source = data if isinstance(data, DataSource) else DataSource(data)
    if settings is not None and source.split is None:
        source = _training_part(source)
    task = _WithCorruptions() if settings is not None and settings.has_corruptions else Classification()
    dataset, _ = load(source, graph, model_inputs(graph), task, samples, folder, on_demand=settings is not None)
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


def _name_classes(model: Any, dataset: DataSet) -> None:
    """Writes the classes of the data into a configuration that names none, so that no later run guesses their order."""
    named = getattr(model.config, "id2label", None) or {}
    if dataset.classes is not None and ClassNames(tuple(named.values()), "").are_placeholders:
        model.config.id2label = dict(enumerate(dataset.classes))
        model.config.label2id = {name: number for number, name in enumerate(dataset.classes)}


def _training_part(source: DataSource) -> DataSource:
    """The split `train` of a data set that has one."""
    path = Path(source.path)
    has_none = path.is_dir() and not (path / "dataset_dict.json").is_file()
    if has_none or path.is_file() or path.suffix.lower() in (*TABLE_FILES, ".npz", ".npy"):
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
    settings: Finetuning,
    fresh: bool,
) -> Any:
    """The clean model, with a new head if its own is of other classes and will be trained."""
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


def _train_head(model: Any, dataset: DataSet, settings: Finetuning) -> None:
    """Trains the layers that give the logits alone."""
    model.requires_grad_(False)
    for layer in _heads(model).values():
        layer.requires_grad_(True)
    alone = replace(
        settings, method="noise", device=None, set={}, only=None, exclude=None, map=(), epochs=settings.teacher_epochs,
        clip_weights=None, drop_connect=0.0, augmentation={}, drop_path_rate=0.0, teacher_epochs=0,
        learning_rate=min(100, 10 * settings.learning_rate),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _arguments(Path(scratch), alone, False, None, False)
        arguments.save_strategy = SaveStrategy.NO
        trainer = ChipTrainer(model, arguments, alone, None, None, Samples(dataset))
        _silence(trainer)
        trainer.train()
    _check_finite(model)


def _silence(trainer: ChipTrainer) -> None:
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)


def _arguments(
    checkpoints: Path, settings: Finetuning, evaluates: bool, save_steps: int | None, tensorboard: bool
) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    # Transformers leaves the precision of one training here for the next one in the same process.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
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
        logging_dir=str(checkpoints.parent / LOGS),
        eval_strategy="epoch" if evaluates else "no",
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not on_cpu,
        dataloader_num_workers=settings.workers,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one GPU for each process: copies of a model would have no chip
    return arguments


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """One line for each epoch, and the steps done."""

    def __init__(self, echo: Echo | None, progress: Step | None, on_chip: bool) -> None:
        self.echo, self.progress, self.on_chip = echo, progress, on_chip

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
            on = " on the chip of seed 0" if self.on_chip else ""
            self.echo(f"{epoch}: accuracy {logs['eval_accuracy']:.2%}{on}")


def _write(output: Path, folder: Path, model: Any, record: Mapping[str, Any]) -> None:
    """The model's folder, each file whole or not at all; a folder with config.json has all of them."""
    try:
        for left in output.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=output) as scratch:
            work = Path(scratch)
            model.save_pretrained(work, safe_serialization=True)
            for name in BESIDE_THE_MODEL:
                if name != "config.json" and (folder / name).is_file():
                    shutil.copyfile(folder / name, work / name)
            (work / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
            for name in ("config.json", *BESIDE_THE_MODEL, *OF_AN_EXPORT):
                (output / name).unlink(missing_ok=True)  # of an earlier model
            for part in output.glob("model*.safetensors*"):
                part.unlink()
            for file in sorted(work.iterdir(), key=lambda each: each.name == "config.json"):
                file.chmod(0o644)  # safetensors makes files private
                os.replace(file, output / file.name)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{output} cannot be written: {reason(error)}. Make room, then --resume takes the last checkpoint."
        ) from None


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
