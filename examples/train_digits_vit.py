"""Train a small ViT on handwritten digits and export it to ONNX.

python examples/train_digits_vit.py --output digits_vit.onnx --data digits_test.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import digits
import torch
import training
from transformers import ViTConfig, ViTForImageClassification


def build() -> ViTForImageClassification:
    """Make 4 layers of width 48 with 4 heads; 2 x 2 pixel patches: 16 tokens and a class token; 115 k parameters."""
    config = ViTConfig(
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
    return ViTForImageClassification(config)


def loss_of(model: torch.nn.Module, batch: training.Batch) -> torch.Tensor:
    """Cross entropy with 0.1 of label smoothing."""
    logits = model(pixel_values=batch["pixel_values"]).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1)


def main() -> None:
    """Train, export, and print the accuracy on the held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("digits_vit.onnx"), help="ONNX file to write")
    parser.add_argument("--data", type=Path, help="also write the held-out digits to this .npz file")
    parser.add_argument("--folder", type=Path, help="also save the PyTorch model to this folder")
    parser.add_argument("--train-data", type=Path, help="also write training samples to this .npz file")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    training.be_reproducible(arguments.seed)
    train, held_out = digits.load_split()
    model = build()
    training.fit(
        model,
        lambda epoch: digits.batches(train, arguments.seed, epoch),
        loss_of,
        epochs=arguments.epochs,
        steps_per_epoch=digits.steps_per_epoch(train),
        learning_rate=2e-3,
    )
    training.export(model, {"pixel_values": held_out.pixel_values}, arguments.output)
    if arguments.folder is not None:
        training.save_folder(model, arguments.folder)
    if arguments.train_data is not None:
        training.save_arrays(arguments.train_data, **train._asdict())
    if arguments.data is not None:
        training.save_arrays(arguments.data, **held_out._asdict())
    accuracy = training.accuracy_of(arguments.output, {"pixel_values": held_out.pixel_values}, held_out.labels)
    print(f"accuracy on {len(held_out.labels)} held-out digits: {100 * accuracy:.2f} %")


if __name__ == "__main__":
    main()
