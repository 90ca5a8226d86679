"""Repair a BERT that tells 77 intents of bank customers, for memory whose cells vary by half.

python examples/repair_banking77.py --data banking77 --output banking

The data are Banking77 (Casanueva et al. 2020, CC BY 4.0): `--data` names a folder with train.csv and test.csv, columns
`text` and `category`, or a data set of Hugging Face (`PolyAI/banking77`). A tokenizer and a small BERT are made from
the training texts alone, trained without noise, then distilled on emulated chips; both are exported and measured on ten
other chips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from emu.evaluation import DataSource
from emu.evaluation.sources import read_table
from emu.train import Finetuning, finetune, remeasure

LENGTH = 32  # tokens; one text in a hundred is longer


def source(data: str, part: str) -> DataSource:
    """The training or the test texts, in a folder of CSV files or on the hub."""
    file = Path(data) / f"{part}.csv"
    if file.is_file():
        return DataSource(file, max_length=LENGTH)
    return DataSource(data, split=part, max_length=LENGTH)


def labels_and_texts(data: DataSource) -> tuple[list[str], list[str]]:
    """Names of the classes, sorted or as the data set numbers them, and all texts."""
    table = read_table(data)
    column = "category" if "category" in table.columns else "label"
    names = table.classes.get(column) or tuple(sorted(set(table.columns[column])))
    return list(names), list(table.columns["text"])


def make_folder(folder: Path, data: DataSource) -> None:
    """Write tokenizer and configuration of a BERT, without weights."""
    names, texts = labels_and_texts(data)
    wordpiece = tokenizers.BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(texts, vocab_size=3000, min_frequency=2, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    wordpiece.save_model(str(folder))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=LENGTH).save_pretrained(folder)
    config = BertConfig(
        vocab_size=wordpiece.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LENGTH,
        initializer_range=0.05,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        architectures=[BertForSequenceClassification.__name__],
    )
    config.save_pretrained(folder)


def main() -> None:
    """Train, repair, and measure on the same chips before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="PolyAI/banking77", help="folder of CSV files, or a data set")
    parser.add_argument("--output", type=Path, default=Path("banking"), help="folder to write")
    parser.add_argument("--sigma", type=float, default=0.5, help="standard deviation of the logarithm of a weight")
    parser.add_argument("--epochs", type=float, default=12, help="without noise; a third of it on chips")
    parser.add_argument("--chips", type=int, default=10)
    parser.add_argument("--samples", type=int, help="use only the first so many texts, of each part")
    arguments = parser.parse_args()

    train, test = source(arguments.data, "train"), source(arguments.data, "test")
    plain, clean, repaired = (arguments.output / name for name in ("untrained", "clean", "repaired"))
    make_folder(plain, train)
    alone = Finetuning(method="noise", device=None, epochs=arguments.epochs, learning_rate=2e-3, batch_size=64)
    finetune(plain, train, clean, alone, samples=arguments.samples, fresh=True, overwrite=True, echo=print)
    settings = Finetuning(
        device="rram",
        set={"program.sigma": arguments.sigma},
        epochs=arguments.epochs / 3,
        learning_rate=5e-4,
        batch_size=64,
    )
    finetune(clean, train, repaired, settings, samples=arguments.samples, overwrite=True, echo=print)
    result = remeasure(clean, repaired, test, device="rram", set=settings.set, chips=arguments.chips)
    for row in result.rows:
        print(
            f"{row['model']:<6} clean {100 * row['clean']:.2f} %, on {arguments.chips} chips {100 * row['mean']:.2f} %"
        )
    assert result.gain is not None
    low, high = 100 * result.gain["low"], 100 * result.gain["high"]
    print(f"gain   {100 * result.gain['mean']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})")


if __name__ == "__main__":
    main()
