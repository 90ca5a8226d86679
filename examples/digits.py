"""The digits task: 1797 handwritten digits of 8 x 8 pixels from scikit-learn, a fixed split, small distortions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from training import Batch

CLASSES = 10
BATCH_SIZE = 64


class Digits(NamedTuple):
    """Images float32 `[N, 1, 8, 8]` in -1 to 1, labels int64 `[N]`."""

    pixel_values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load_split() -> tuple[Digits, Digits]:
    """Load training (1347) and held-out (450) digits: one in four of every class, always the same ones."""
    source = load_digits()
    pixels = (source.images / 8 - 1).astype(np.float32)[:, np.newaxis]
    labels = source.target.astype(np.int64)
    pixels, pixels_test, labels, labels_test = train_test_split(
        pixels, labels, test_size=0.25, random_state=0, stratify=labels
    )
    return Digits(pixels, labels), Digits(pixels_test, labels_test)


def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to one pixel, turn by up to 10 degrees and scale by up to 10 %; `[N, 1, 8, 8]` in and out."""

    def uniform(limit: float) -> torch.Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    angle, scale = uniform(np.pi / 18), 1 + uniform(0.1)
    pixel = 2 / images.shape[-1]  # grid_sample's coordinates go from -1 to 1
    turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], dim=1).view(-1, 2, 2)
    shift = torch.stack([uniform(pixel), uniform(pixel)], dim=1)[..., None]
    grid = torch.nn.functional.affine_grid(
        torch.cat([turn * scale[:, None, None], shift], dim=2), list(images.shape), align_corners=False
    )
    # Outside the image is paper, -1, where grid_sample fills in 0.
    return torch.nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1


def batches(data: Digits, seed: int, epoch: int) -> Iterator[Batch]:
    """Yield one epoch of shuffled, distorted batches, the same for the same seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(data.labels), generator=generator)
    pixels, labels = torch.from_numpy(data.pixel_values), torch.from_numpy(data.labels)
    for chosen in order.split(BATCH_SIZE):
        yield {"pixel_values": distort(pixels[chosen], generator), "labels": labels[chosen]}


def steps_per_epoch(data: Digits) -> int:
    """Count the batches in an epoch."""
    return -(-len(data.labels) // BATCH_SIZE)
