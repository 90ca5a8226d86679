"""Repair the digits ViT for memory whose cells vary by 30 %: distil it on emulated chips, export it, measure the gain.

python examples/repair_digits_vit.py --output repaired

The model is trained on a new chip for every batch and measured on ten others that it has never seen, as ONNX.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import digits
import training

from emu.evaluation import DataSource
from emu.train import Finetuning, finetune, remeasure

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train the clean model if there is none, then repair it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("repaired"), help="folder to write")
    parser.add_argument("--folder", type=Path, help="the clean model; trained first if not given")
    parser.add_argument("--sigma", type=float, default=0.3, help="standard deviation of the logarithm of a weight")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--chips", type=int, default=10)
    arguments = parser.parse_args()

    work: Path = arguments.output
    work.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or work / "clean"
    if arguments.folder is None:
        script = [sys.executable, str(HERE / "train_digits_vit.py"), "--output", str(work / "clean.onnx")]
        subprocess.run([*script, "--folder", str(folder)], check=True)
    train, held_out = digits.load_split()
    training.save_arrays(work / "train.npz", **train._asdict())
    training.save_arrays(work / "test.npz", **held_out._asdict())

    settings = Finetuning(
        method="distillation",
        device="rram",
        set={"program.sigma": arguments.sigma},
        epochs=arguments.epochs,
        learning_rate=5e-4,
        augmentation={"crop_padding": 1},
    )
    finetune(folder, work / "train.npz", work / "repaired", settings, overwrite=True, echo=print)
    test = DataSource(work / "test.npz")
    result = remeasure(folder, work / "repaired", test, device="rram", set=settings.set, chips=arguments.chips)
    for row in result.rows:
        print(
            f"{row['model']:<6} clean {100 * row['clean']:.2f} %, on {arguments.chips} chips {100 * row['mean']:.2f} %"
        )
    assert result.gain is not None
    low, high = 100 * result.gain["low"], 100 * result.gain["high"]
    print(f"gain   {100 * result.gain['mean']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})")


if __name__ == "__main__":
    main()
