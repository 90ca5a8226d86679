"""Distil DeiT and CDeiT students on corrupted CIFAR-10, with every loss and inference strategy, and compare them.

python examples/distill_corrupted_cifar10.py --cifar uoft-cs/cifar10 --output corrupted_cifar10
python examples/distill_corrupted_cifar10.py --cifar train.parquet test.parquet --output corrupted_cifar10

The recipe of the corrupted-image distillation study at a size for one CPU core; --paper gives the study's own size.
Images are clean or under one of ten corruptions with a severity drawn at random; a teacher twice as wide as its
students and a ViT without a teacher learn from labels alone, DeiT and CDeiT from the teacher too. Each model is
exported and measured as ONNX: on clean test images, and on the same images under every corruption and severity. All
that is trained is kept in --output; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, PreTrainedModel, ViTConfig
from transformers import ViTForImageClassification as ViT

from emu import InputError
from emu.evaluation import Bench, DataSource, corrupt, mean_corruption_error, write_corrupted
from emu.evaluation.corruptions import SEVERITIES, Corruption
from emu.evaluation.data import save_arrays
from emu.evaluation.sources import open_picture, read_table
from emu.evaluation.statistics import chip_spread, wilson_interval
from emu.train import CDeiTForImageClassification, Finetuning, export, finetune
from emu.train.presets import PRESETS

CLASSES = 10
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "motion_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "jpeg_compression",
)
STUDY = PRESETS["corrupted_image_distillation"]
MEAN = STD = 0.5  # models take level / 127.5 - 1
BASELINE = "vit"  # its errors are what the mean corruption error is relative to

#: Name, loss and inference strategy of every student, in the order of the table.
STUDENTS: dict[str, tuple[Any, Any]] = {
    "deit_soft": ("deit_soft", None),
    "deit_hard": ("deit_hard", None),
    **{
        f"cdeit_{loss}_{inference}": (f"cdeit_{loss}", inference)
        for loss in ("hard", "soft")
        for inference in ("average", "linear", "gelu")
    },
}


@dataclass(frozen=True)
class Size:
    """How much is trained; by default what one CPU core does in 20 minutes.

    Attributes:
        train: training images.
        versions: of each training image, each with another kind of corruption or none, drawn at random; 11 for all.
        test: test images, each clean and under ten corruptions in five severities.
        epochs: passes over the versions.
        batch_size: versions in a step.
        learning_rate: AdamW's, at its peak.
        patch: pixels along the edge of a patch.
        width: of the students and the ViT; the teacher is twice as wide.
        head: numbers in an attention head.
        layers: of every model.
        initializer_range: standard deviation of the first weights.
    """

    train: int = 20_000
    versions: int = 1
    test: int = 1000
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    patch: int = 8
    width: int = 64
    head: int = 16
    layers: int = 4
    initializer_range: float = 0.1  # the usual 0.02 is meant for wide models and learns slowly here


#: The study's, not run with this script: 495 000 versions, a ViT as wide as DeiT-S as the teacher, DeiT-Ti as students.
#: All ten trainings together take about 4e17 floating-point operations, and an hour on the host for augmentation.
PAPER = Size(
    train=45_000,
    versions=1 + len(CORRUPTIONS),
    test=2000,
    epochs=STUDY.epochs,
    batch_size=STUDY.batch_size,
    learning_rate=STUDY.learning_rate(),
    patch=4,
    width=192,
    head=64,
    layers=12,
    initializer_range=0.02,
)


class Pictures(NamedTuple):
    """Pictures uint8 `[N, 32, 32, 3]`, classes int64 `[N]`."""

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def load_pictures(sources: list[str], part: str, count: int, seed: int) -> Pictures:
    """Load pictures drawn at random.

    Args:
        sources: a data set of Hugging Face; or two files, for training and test: Parquet, or .npz with JPEG files one
            after the other: `jpeg` uint8, `offsets` int64 `[pictures + 1]`, `labels` `[pictures]`.
        part: "train" or "test".
        count: how many.
        seed: of the draw.
    """
    source = sources[0] if len(sources) == 1 else sources[part == "test"]
    if source.endswith(".npz"):
        with np.load(source) as file:
            content, offsets, labels = file["jpeg"].tobytes(), file["offsets"], file["labels"]

        def picture(index: int) -> Any:
            return Image.open(io.BytesIO(content[offsets[index] : offsets[index + 1]]))

    else:
        table = read_table(DataSource(source, split=part if len(sources) == 1 else None))
        images = table.columns["img" if "img" in table.columns else "image"]
        labels = np.asarray(table.columns["label"])

        def picture(index: int) -> Any:
            return open_picture(table, images, index)

    if count > len(labels):
        raise InputError(f"{source} has {len(labels)} pictures, but {count} are asked for.")
    chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
    pictures = np.stack([np.asarray(picture(int(index)).convert("RGB")) for index in chosen])
    return Pictures(pictures, labels[chosen].astype(np.int64))


def versions_of(clean: Pictures, versions: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Make training arrays: `pixel_values`, `labels` and `corruption`, 0 for clean, else the kind counted from 1."""
    random = np.random.default_rng(seed)
    kinds = np.argsort(random.random((len(clean.labels), 1 + len(CORRUPTIONS))))[:, :versions].ravel()
    severities = random.choice(SEVERITIES, len(kinds))
    pictures = np.repeat(clean.pictures, versions, axis=0)
    for kind, name in enumerate(CORRUPTIONS, 1):
        for severity in SEVERITIES:
            chosen = (kinds == kind) & (severities == severity)
            if chosen.any():
                pictures[chosen] = corrupt(pictures[chosen], name, severity, seed)
    labels = np.repeat(clean.labels, versions)
    return {"pixel_values": pixels_of(pictures), "labels": labels, "corruption": kinds.astype(np.int64)}


def pixels_of(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """Give what models take, `[N, 3, 32, 32]` in -1 to 1; half precision tells all 256 levels apart."""
    pixels = (np.moveaxis(pictures, 3, 1) / 255 - MEAN) / STD
    return pixels.astype(np.float16)


def write_data(folder: Path, cifar: list[str], size: Size) -> None:
    """Write `train.npz`, `test.npz` and `corrupted/NAME/SEVERITY.npz`, unless they are there."""
    corrupted = folder / "corrupted"
    if corrupted.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Other random numbers than those of the test images, whose corruptions have the seed 0.
    save_arrays(folder / "train.npz", versions_of(load_pictures(cifar, "train", size.train, 0), size.versions, seed=1))
    test = load_pictures(cifar, "test", size.test, 0)
    save_arrays(folder / "test.npz", {"pixel_values": pixels_of(test.pictures), "labels": test.labels})
    settings = [Corruption(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    write_corrupted(DataSource(folder / "test.npz", mean=MEAN, std=STD), corrupted, settings)


def shape_of(size: Size, width: int) -> dict[str, Any]:
    """Give what the configurations of all models share."""
    return {
        "image_size": 32,
        "patch_size": size.patch,
        "num_labels": CLASSES,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": width // size.head,
        "initializer_range": size.initializer_range,
    }


def write_vit(folder: Path, size: Size, width: int) -> None:
    """Write the configuration of a ViT, whose weights `finetune` draws."""
    ViTConfig(**shape_of(size, width), architectures=[ViT.__name__]).save_pretrained(folder)


def write_student(folder: Path, size: Size, inference: Any, seed: int) -> None:
    """Write a DeiT or, with an inference strategy, a CDeiT; all students of a seed begin with the same encoder."""
    torch.manual_seed(seed)
    student: PreTrainedModel = DeiTForImageClassificationWithTeacher(DeiTConfig(**shape_of(size, size.width)))
    embeddings = student.deit.embeddings
    for token in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
        # As DeiT is trained; transformers begins with zeros.
        torch.nn.init.trunc_normal_(token, std=size.initializer_range)
    if inference is not None:
        student = CDeiTForImageClassification.from_deit(student, inference=inference, corruptions=len(CORRUPTIONS))
    student.save_pretrained(folder)


def train(folder: Path, data: Path, size: Size, method: Any, seed: int, precision: Any, **options: Any) -> None:
    """Train the model of `folder/start` into `folder`, as Table 1 of the study says but for the size."""
    if (folder / "config.json").exists():
        return
    settings = Finetuning(
        method=method,
        device=None,
        temperature=STUDY.temperature,
        distillation_weight=STUDY.distillation_weight,
        label_smoothing=STUDY.label_smoothing,
        epochs=size.epochs,
        batch_size=size.batch_size,
        learning_rate=size.learning_rate,
        warmup=STUDY.warmup_epochs / STUDY.epochs,
        weight_decay=STUDY.weight_decay,
        precision=precision,
        drop_path_rate=STUDY.drop_path_rate,
        augmentation={"mixup": STUDY.mixup, "erasing": STUDY.erasing},
        seed=seed,
    )
    resume = (folder / "checkpoints" / "training.json").exists()
    print(f"{folder.name}, seed {seed}", flush=True)
    done = finetune(folder / "start", data, folder, settings, resume=resume, echo=tell, **options)
    print(f"  {done.seconds:.0f} s", flush=True)


def train_all(folder: Path, data: Path, size: Size, seed: int, precision: Any) -> None:
    """Train teacher, ViT and students of one seed."""
    for name, width in (("teacher", 2 * size.width), ("vit", size.width)):
        write_vit(folder / name / "start", size, width)
        train(folder / name, data, size, "noise", seed, precision, fresh=True)
    for name, (method, inference) in STUDENTS.items():
        if not (folder / name / "start" / "model.safetensors").exists():
            write_student(folder / name / "start", size, inference, seed)
        train(folder / name, data, size, method, seed, precision, teacher=folder / "teacher")


def measure(folder: Path, data: Path, threads: int) -> pd.DataFrame:
    """Export a model and measure it, or read what was measured: `corruption`, `severity`, `accuracy`, `ece`, `loss`."""
    results = folder / "results.csv"
    if not results.exists():
        model = export(folder, folder / "model.onnx", overwrite=True).path
        bench = Bench(model, data / "test.npz", task="classification", batch_size=100, threads=threads)
        rows = []
        for name, severity, path in test_sets(data):
            metrics = bench.with_data(path).clean.metrics
            measured = {metric: metrics[metric] for metric in ("accuracy", "ece", "loss")}
            rows.append({"corruption": name, "severity": severity, **measured})
        pd.DataFrame(rows).to_csv(results, index=False)
    return pd.read_csv(results)


def test_sets(data: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield name, severity and file of every test set, the clean one as ("clean", 0)."""
    yield "clean", 0, data / "test.npz"
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield name, severity, data / "corrupted" / name / f"{severity}.npz"


def summarize(results: pd.DataFrame, images: int) -> pd.DataFrame:
    """Sum up one model and seed a row: accuracies and ECE in per cent, and mCE.

    `mixed` is the accuracy on clean and corrupted images as the study mixes them, one to ten.
    """
    rows = []
    for (seed, model), runs in results.groupby(["seed", "model"], sort=False):
        clean, corrupted = runs[runs["corruption"] == "clean"], runs[runs["corruption"] != "clean"]
        baseline = results[(results["seed"] == seed) & (results["model"] == BASELINE)]
        errors, theirs = (
            1 - each[each["corruption"] != "clean"].pivot(index="corruption", columns="severity", values="accuracy")
            for each in (runs, baseline)
        )
        accuracies = clean["accuracy"].iloc[0], corrupted["accuracy"].mean()
        shares = dict(zip(("clean", "corrupted"), accuracies, strict=True))
        shares["mixed"] = (shares["clean"] + len(CORRUPTIONS) * shares["corrupted"]) / (1 + len(CORRUPTIONS))
        row: dict[str, Any] = {"seed": seed, "model": model}
        for name, share in shares.items():
            # All versions of an image count as one sample, so that the interval is rather too wide than too narrow.
            low, high = wilson_interval(round(share * images), images)
            row |= {name: 100 * share, f"{name}_low": 100 * low, f"{name}_high": 100 * high}
        row |= {"ece_clean": 100 * clean["ece"].iloc[0], "ece_corrupted": 100 * corrupted["ece"].mean()}
        rows.append({**row, "mce": mean_corruption_error(errors.to_numpy(), theirs.to_numpy())})
    return pd.DataFrame(rows)


def table_of(summary: pd.DataFrame) -> str:
    """Give the table of all models, in Markdown."""
    seeds = summary["seed"].nunique()
    lines = [
        "| model | clean, % | corrupted, % | mixed, % | ECE clean, % | ECE corrupted, % | mCE |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, rows in summary.groupby("model", sort=False):
        cells = [str(model)]
        for name in ("clean", "corrupted", "mixed"):
            low, high = rows[f"{name}_low"].iloc[0], rows[f"{name}_high"].iloc[0]
            if seeds > 1:
                low, high = chip_spread(list(rows[name])).ci95 or (low, high)
            cells.append(f"{rows[name].mean():.1f} ({low:.1f} to {high:.1f})")
        cells += [f"{rows[name].mean():.1f}" for name in ("ece_clean", "ece_corrupted")]
        cells.append(f"{rows['mce'].mean():.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tell(line: str) -> None:
    """Print a line on an epoch at once."""
    print(f"  {line}", flush=True)


def main() -> None:
    """Write data, train all models, measure them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", nargs="+", required=True, help="a data set, or a file for training and one for test")
    parser.add_argument("--output", type=Path, default=Path("corrupted_cifar10"), help="folder to write")
    parser.add_argument("--paper", action="store_true", help="the study's size: hours on a GPU")
    for each in fields(Size):
        if each.name not in ("head", "initializer_range"):
            kind = type(each.default)
            parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, help=f"default {each.default}")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of training")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    arguments = parser.parse_args()
    given = {each.name: getattr(arguments, each.name, None) for each in fields(Size)}
    size = replace(PAPER if arguments.paper else Size(), **{name: value for name, value in given.items() if value})
    if len(arguments.cifar) > 2 or (len(arguments.cifar) == 1 and Path(arguments.cifar[0]).suffix):
        parser.error("--cifar takes the name of a data set, or two files: training and test")

    output: Path = arguments.output
    recipe = {"size": asdict(size), "cifar": arguments.cifar, "precision": arguments.precision}
    record = output / "recipe.json"
    if record.exists() and json.loads(record.read_text()) != recipe:
        parser.error(f"{output} holds models of another size or other data: give another --output")
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(recipe, indent=2))

    start = time.perf_counter()
    torch.set_num_threads(arguments.threads)
    write_data(output / "data", arguments.cifar, size)
    print(f"data: {time.perf_counter() - start:.0f} s", flush=True)
    runs = []
    for seed in range(arguments.seeds):
        folder = output / f"seed{seed}"
        train_all(folder, output / "data" / "train.npz", size, seed, arguments.precision)
        for model in ("teacher", BASELINE, *STUDENTS):
            runs.append(measure(folder / model, output / "data", arguments.threads).assign(seed=seed, model=model))
    results = pd.concat(runs)
    results.to_csv(output / "results.csv", index=False)
    summary = summarize(results, size.test)
    (output / "results.json").write_text(json.dumps({**recipe, "models": summary.to_dict("records")}, indent=2))
    over = "seeds, t interval" if arguments.seeds > 1 else "test images, Wilson interval"
    print(f"\n95 % intervals over {over}; mCE relative to the ViT\n\n{table_of(summary)}\n")
    print(f"{time.perf_counter() - start:.0f} s; wrote {output / 'results.csv'} and {output / 'results.json'}")


if __name__ == "__main__":
    main()
