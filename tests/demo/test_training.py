"""The training scripts run from start to end and write what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from emu.errors import InputError


def run_script(script: Path, *arguments: str) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_vit", "digits_deit", "listops_bert"])
def test_one_epoch_of_training_writes_a_model_that_runs(name: str, examples: Path, tmp_path: Path) -> None:
    for needed in ("torch", "transformers", "sklearn"):
        pytest.importorskip(needed)
    output, data = tmp_path / f"{name}.onnx", tmp_path / "held_out.npz"
    arguments = ["--output", str(output), "--epochs", "1"] + ["--data", str(data)] * (name != "digits_deit")
    printed = run_script(examples / f"train_{name}.py", *arguments)
    assert "onnxruntime and torch agree" in printed and "held-out" in printed
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    if data.exists():
        with np.load(data) as arrays:
            feed = {each.name: arrays[each.name][:3] for each in session.get_inputs()}
    else:
        feed = {"pixel_values": np.zeros((3, 1, 8, 8), np.float32)}
    assert session.run(["logits"], feed)[0].shape == (3, 10)
    assert not list(tmp_path.glob(".*")), "temporary files are gone"


@pytest.mark.slow
def test_an_export_that_computes_something_else_is_refused_and_leaves_nothing(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("torch", "transformers", "sklearn"):
        pytest.importorskip(needed)
    import train_digits_vit
    import training

    monkeypatch.setattr(training, "PARITY_TOLERANCE", 0.0)  # float32 rounding is now a difference
    pixels = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 1, 8, 8)
    with pytest.raises(InputError, match="nothing was written"):
        training.export(train_digits_vit.build(), {"pixel_values": pixels}, tmp_path / "vit.onnx")
    assert not list(tmp_path.iterdir())
