"""What the training scripts share: an optimizer loop, an export that proves itself, and files written atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from transformers import PreTrainedModel

from emu.train.exporting import export as emu_export

Batch = dict[str, torch.Tensor]
Array = npt.NDArray[np.generic]

#: Largest difference between onnxruntime's and torch's outputs, as a share of the largest output; float32 rounding
#: alone gives about 1e-6.
PARITY_TOLERANCE = 1e-4


def be_reproducible(seed: int) -> None:
    """Fix every source of chance: seed, thread count (sums depend on it) and choice of algorithm."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def fit(
    model: torch.nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    loss_of: Callable[[torch.nn.Module, Batch], torch.Tensor],
    epochs: int,
    steps_per_epoch: int,
    learning_rate: float,
    weight_decay: float = 0.05,
    report_every: int = 10,
) -> None:
    """Train with AdamW, 5 % linear warm-up, cosine decay to zero and gradients clipped to norm 1.

    The last weights are kept: no epoch is chosen by looking at held-out data.

    Args:
        model: trained in place, left in evaluation mode.
        batches: gives the batches of an epoch, by its number from 0.
        loss_of: the scalar loss of one batch.
        epochs: passes over the data.
        steps_per_epoch: batches in a pass; the learning rate schedule needs it.
        learning_rate: its peak.
        weight_decay: AdamW's.
        report_every: epochs between printed lines.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    total = max(1, epochs * steps_per_epoch)
    warm_up = max(1, total // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / max(1, total - warm_up))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    start = time.perf_counter()
    model.train()
    for epoch in range(epochs):
        losses = []
        for batch in batches(epoch):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if (epoch + 1) % report_every == 0 or epoch + 1 == epochs:
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1:4d} of {epochs}: training loss {np.mean(losses):.4f}, {seconds:.0f} s", flush=True)
    model.eval()


def export(model: PreTrainedModel, inputs: Mapping[str, Array], path: Path) -> None:
    """Write `model` as one ONNX file, once onnxruntime has computed from it what torch computes.

    Args:
        model: a transformers classifier.
        inputs: example arrays by input name; the first two samples are used.
        path: target, replaced atomically.

    Raises:
        emu.InputError: an output differs by more than 1e-4 of its largest magnitude; nothing is written.
    """
    example = {name: torch.from_numpy(array[:2]) for name, array in inputs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    exported = emu_export(model, path, exporter="torch", example=example, overwrite=True, tolerance=PARITY_TOLERANCE)
    print(f"onnxruntime and torch agree: largest difference {exported.largest_difference:.1e}")
    print(f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB")


def save_folder(model: PreTrainedModel, path: Path) -> None:
    """Write `model` as transformers does, for `emu finetune`."""
    model.save_pretrained(path)
    print(f"wrote {path}")


def logits_of(path: Path, inputs: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """Logits `[batch, classes]` of an ONNX model, by plain onnxruntime."""
    logits: npt.NDArray[np.float32] = _session(path).run(["logits"], dict(inputs))[0]
    return logits


def accuracy_of(path: Path, inputs: Mapping[str, Array], labels: npt.NDArray[np.int64]) -> float:
    """Share of samples whose largest logit is the label's, by plain onnxruntime."""
    return float((logits_of(path, inputs).argmax(axis=-1) == labels).mean())


def save_arrays(path: Path, **arrays: Array) -> None:
    """Write a compressed .npz atomically."""
    with _replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    print(f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB")


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it over `path` if the block ends well, remove it if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private; a published model is not
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
