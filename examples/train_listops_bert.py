"""Train a tiny BERT to evaluate nested list operations and export it to ONNX.

python examples/train_listops_bert.py --output listops_bert.onnx --data listops_test.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import listops
import torch
import training
from transformers import BertConfig, BertForSequenceClassification

BATCH_SIZE = 128
STEPS_PER_EPOCH = 250
HELD_OUT = 1000
TRAIN_SAMPLES = 20_000  # of --train-data
HELD_OUT_SEED = 1_000_000  # far from the seeds of the training epochs


def build() -> BertForSequenceClassification:
    """Make 3 layers of width 64 with 4 heads over 17 tokens and 32 positions; 158 k parameters."""
    config = BertConfig(
        vocab_size=len(listops.VOCABULARY),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=listops.LENGTH,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # the usual 0.02 is meant for wide models and learns slowly here
        num_labels=listops.CLASSES,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


def batches(held_out: listops.Samples, seed: int, epoch: int) -> Iterator[training.Batch]:
    """Yield an epoch of new expressions, none of them held out; padding that a whole batch shares is cut off."""
    samples = listops.generate(BATCH_SIZE * STEPS_PER_EPOCH, seed=seed * 10_007 + epoch, exclude=held_out)
    for first in range(0, len(samples.labels), BATCH_SIZE):
        chosen = slice(first, first + BATCH_SIZE)
        length = int(samples.attention_mask[chosen].sum(axis=1).max())
        yield {
            "input_ids": torch.from_numpy(samples.input_ids[chosen, :length]),
            "attention_mask": torch.from_numpy(samples.attention_mask[chosen, :length]),
            "labels": torch.from_numpy(samples.labels[chosen]),
        }


def loss_of(model: torch.nn.Module, batch: training.Batch) -> torch.Tensor:
    """Cross entropy."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def main() -> None:
    """Train, export, and print the accuracy on held-out expressions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("listops_bert.onnx"), help="ONNX file to write")
    parser.add_argument("--data", type=Path, help="also write the held-out expressions to this .npz file")
    parser.add_argument("--folder", type=Path, help="also save the PyTorch model to this folder")
    parser.add_argument("--train-data", type=Path, help="also write training samples to this .npz file")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    training.be_reproducible(arguments.seed)
    held_out = listops.generate(HELD_OUT, seed=HELD_OUT_SEED)
    inputs = {"input_ids": held_out.input_ids, "attention_mask": held_out.attention_mask}
    model = build()
    training.fit(
        model,
        lambda epoch: batches(held_out, arguments.seed, epoch),
        loss_of,
        epochs=arguments.epochs,
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=2e-3,
        report_every=1,
    )
    training.export(model, inputs, arguments.output)
    if arguments.folder is not None:
        training.save_folder(model, arguments.folder)
    if arguments.train_data is not None:
        training.save_arrays(
            arguments.train_data, **listops.generate(TRAIN_SAMPLES, seed=HELD_OUT_SEED + 1, exclude=held_out)._asdict()
        )
    if arguments.data is not None:
        training.save_arrays(arguments.data, **held_out._asdict())
    accuracy = training.accuracy_of(arguments.output, inputs, held_out.labels)
    print(f"accuracy on {HELD_OUT} held-out expressions: {100 * accuracy:.2f} %")


if __name__ == "__main__":
    main()
