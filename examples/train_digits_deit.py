"""Distil a small DeiT, with its distillation token, from the digits ViT, and export it to ONNX.

python examples/train_digits_deit.py --teacher digits_vit.onnx --output digits_deit.onnx

Hard distillation as in Touvron et al., "Training data-efficient image transformers & distillation through attention"
(2021): half the loss is the class token's against the label, half the distillation token's against the class that the
teacher sees in the same distorted image. At inference the two heads' logits are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import digits
import torch
import training
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

SHIPPED_TEACHER = Path(__file__).resolve().parents[1] / "emu" / "demo" / "digits_vit.onnx"


def build() -> DeiTForImageClassificationWithTeacher:
    """Make 4 layers of width 48 with 4 heads; 16 patch tokens, a class and a distillation token; 115 k parameters."""
    config = DeiTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        initializer_range=0.1,  # the usual 0.02 is meant for wide models and learns slowly here
        num_labels=digits.CLASSES,
        attn_implementation="eager",
    )
    return DeiTForImageClassificationWithTeacher(config)


def taught_batches(data: digits.Digits, teacher: Path, seed: int, epoch: int) -> Iterator[training.Batch]:
    """Yield an epoch's batches with `teacher_labels`, the teacher's class of each distorted image."""
    epoch_batches = list(digits.batches(data, seed, epoch))
    pixels = torch.cat([batch["pixel_values"] for batch in epoch_batches]).numpy()
    taught = torch.from_numpy(training.logits_of(teacher, {"pixel_values": pixels}).argmax(axis=-1))
    for batch, labels in zip(epoch_batches, taught.split(digits.BATCH_SIZE), strict=True):
        yield {**batch, "teacher_labels": labels}


def loss_of(model: torch.nn.Module, batch: training.Batch) -> torch.Tensor:
    """Hard distillation, with 0.1 of label smoothing in both halves."""
    heads = model(pixel_values=batch["pixel_values"])
    from_labels = torch.nn.functional.cross_entropy(heads.cls_logits, batch["labels"], label_smoothing=0.1)
    from_teacher = torch.nn.functional.cross_entropy(
        heads.distillation_logits, batch["teacher_labels"], label_smoothing=0.1
    )
    return (from_labels + from_teacher) / 2


def main() -> None:
    """Distil, export, and print the accuracy of teacher and student on the held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("digits_deit.onnx"), help="ONNX file to write")
    parser.add_argument("--teacher", type=Path, default=SHIPPED_TEACHER, help="ONNX file of the teacher")
    parser.add_argument("--folder", type=Path, help="also save the PyTorch model to this folder")
    parser.add_argument("--train-data", type=Path, help="also write training samples to this .npz file")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    training.be_reproducible(arguments.seed)
    train, held_out = digits.load_split()
    inputs = {"pixel_values": held_out.pixel_values}
    print(f"teacher's accuracy: {100 * training.accuracy_of(arguments.teacher, inputs, held_out.labels):.2f} %")
    model = build()
    training.fit(
        model,
        lambda epoch: taught_batches(train, arguments.teacher, arguments.seed, epoch),
        loss_of,
        epochs=arguments.epochs,
        steps_per_epoch=digits.steps_per_epoch(train),
        learning_rate=2e-3,
    )
    training.export(model, inputs, arguments.output)
    if arguments.folder is not None:
        training.save_folder(model, arguments.folder)
    if arguments.train_data is not None:
        training.save_arrays(arguments.train_data, **train._asdict())
    accuracy = training.accuracy_of(arguments.output, inputs, held_out.labels)
    print(f"accuracy on {len(held_out.labels)} held-out digits: {100 * accuracy:.2f} %")


if __name__ == "__main__":
    main()
