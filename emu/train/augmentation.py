"""Changes training images at random, the same way for the same generator: crop, flip, RandAugment, erasing, mixup."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional

from emu.errors import InputError

_LARGEST_MAGNITUDE = 30
_ERASED_AREA = (0.02, 1 / 3)  # of the image; Zhong et al. 2020, as DeiT is trained
_ERASED_LOG_ASPECT = (math.log(0.3), -math.log(0.3))
_ERASING_ATTEMPTS = 10
_GRAY = 128  # what comes into a picture that is moved


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a batch, in this order; nothing by default.

    Attributes:
        crop_padding: pixels by which every image moves at most, up or down and left or right, drawn for each image: a
            crop of its size from the image with its edge repeated outwards. The edge and not 0, which is another color
            in each normalization.
        flip: mirror each image with probability 1/2, left to right.
        randaugment: (operations, magnitude) of RandAugment (Cubuk et al. 2020): each image goes through so many
            operations, drawn from 14, of magnitude 0 (none) to 30, with the ranges of torchvision.
        erasing: probability to replace a rectangle of an image by normal noise, 0 to 1: random erasing (Zhong et al.
            2020) as DeiT is trained: 2 % to 1/3 of the image, aspect ratio 0.3 to 3.3, standard normals for each pixel.
        mixup: alpha > 0 of mixup (Zhang et al. 2018): images and labels become lambda * themselves + (1 - lambda) *
            those of another sample of the batch, with one lambda of Beta(alpha, alpha) for the batch. 0: none.
        mean: of each channel, or one for all, where pixels are (picture / 255 - mean) / std. RandAugment works on
            pictures of whole numbers 0 to 255, so it needs both to read pixels that are not uint8.
        std: likewise, > 0.

    Raises:
        InputError: a number is out of range, or RandAugment has a mean without a std.
    """

    mixup: float = 0.0
    erasing: float = 0.0
    randaugment: tuple[int, int] | None = None
    flip: bool = False
    crop_padding: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.mixup < math.inf):
            raise InputError(f"mixup is {self.mixup}: give alpha, a number above 0, or 0 for none.")
        if not 0 <= self.erasing <= 1:
            raise InputError(f"erasing is {self.erasing}: give a probability from 0 to 1.")
        if self.crop_padding < 0:
            raise InputError(f"crop_padding is {self.crop_padding}: give a number of pixels, 0 or more.")
        if self.randaugment is not None:
            operations, magnitude = self.randaugment
            if operations < 1 or not 0 <= magnitude <= _LARGEST_MAGNITUDE:
                raise InputError(
                    f"randaugment is {operations} operations of magnitude {magnitude}: give 1 operation or more, and a "
                    f"magnitude from 0 to {_LARGEST_MAGNITUDE}."
                )
        if (self.mean is None) != (self.std is None):
            raise InputError("mean and std belong together: give both, as the model's image processor has them.")
        if self.std is not None and not all(each > 0 for each in self.std):
            raise InputError(f"std is {list(self.std)}: give numbers above 0, as the model's image processor has them.")

    def batch(
        self, pixel_values: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Changes a batch.

        Every batch takes one number from the generator, and every kind of change draws its own numbers from that: so
        switching one on does not change the draws of the others, and the batch's device changes nothing.

        Labels are mixed linearly, so several kinds of label can be mixed together: give them side by side as soft
        labels, and split the result.

        Args:
            pixel_values: `[batch, channels, height, width]`, float; or uint8, which neither erasing nor mixup takes.
            labels: classes, int64 `[batch]`, or soft labels `[batch, classes]`, float.
            classes: how many there are.
            generator: of the CPU.

        Returns:
            Pixels of the same shape, dtype and device, and soft labels `[batch, classes]`: float32, or of the soft
            labels' own dtype. The arguments stay as they are.

        Raises:
            InputError: shapes, dtypes or classes do not fit, or RandAugment cannot tell what picture the pixels are.
        """
        _check_pixels(pixel_values, floating=self.erasing > 0 or self.mixup > 0)
        soft = _soft_labels(labels, classes, len(pixel_values))
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        crops, flips, operations, erasures, mixes = np.random.default_rng(seed).spawn(5)
        if self.crop_padding:
            pixel_values = _cropped(pixel_values, self.crop_padding, crops)
        if self.flip:
            mirrored = torch.from_numpy(flips.random(len(pixel_values)) < 0.5).to(pixel_values.device)
            pixel_values = torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)
        if self.randaugment is not None:
            pixel_values = self._randaugmented(pixel_values, operations)
        if self.erasing:
            pixel_values = _erased(pixel_values, self.erasing, erasures)
        if self.mixup:
            share = float(mixes.beta(self.mixup, self.mixup))
            other = torch.from_numpy(mixes.permutation(len(pixel_values))).to(pixel_values.device)
            pixel_values = share * pixel_values + (1 - share) * pixel_values[other]
            other = other.to(soft.device)
            soft = share * soft + (1 - share) * soft[other]
        return pixel_values, soft

    def _randaugmented(self, pixels: Tensor, chance: np.random.Generator) -> Tensor:
        assert self.randaugment is not None
        number, magnitude = self.randaugment
        channels = pixels.shape[1]
        if channels not in (1, 3):
            raise InputError(f"RandAugment works on pictures of 1 or 3 channels, not {channels}: leave it out.")
        pictures = self._as_pictures(pixels)
        for i, picture in enumerate(pictures):
            image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
            for _ in range(number):
                operation = _OPERATIONS[chance.integers(len(_OPERATIONS))]
                image = operation(image, magnitude / _LARGEST_MAGNITUDE, 1 if chance.random() < 0.5 else -1)
            pictures[i] = np.asarray(image).reshape(picture.shape)
        return self._as_pixels(pictures, pixels)

    def _as_pictures(self, pixels: Tensor) -> NDArray[np.uint8]:
        """`[batch, height, width, channels]`."""
        pixels = pixels.detach().cpu().movedim(1, -1)
        if pixels.dtype != torch.uint8:
            mean, std = self._normalization(pixels.shape[-1])
            pixels = (pixels.double() * std + mean) * 255
            low, high = float(pixels.min()), float(pixels.max())
            if not (low > -1 and high < 256):
                raise InputError(
                    f"RandAugment works on pictures of 0 to 255, and this mean and std make the pixels {low:.0f} to "
                    f"{high:.0f}: give those of the model's image processor, pixels being (picture / 255 - mean) / std."
                )
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        pictures: NDArray[np.uint8] = pixels.contiguous().numpy().copy()
        return pictures

    def _as_pixels(self, pictures: NDArray[np.uint8], like: Tensor) -> Tensor:
        pixels = torch.from_numpy(pictures)
        if like.dtype != torch.uint8:
            mean, std = self._normalization(pixels.shape[-1])
            pixels = (pixels.double() / 255 - mean) / std
        return pixels.movedim(-1, 1).contiguous().to(like.device, like.dtype)

    def _normalization(self, channels: int) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise InputError(
                "RandAugment works on pictures of 0 to 255, and these pixels are not uint8: give mean and std of the "
                "model's image processor, pixels being (picture / 255 - mean) / std."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(f"{name} has {len(values)} numbers and the images {channels} channels: give as many.")
        return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)


def _check_pixels(pixels: Tensor, floating: bool) -> None:
    if pixels.ndim != 4 or not pixels.numel() or not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
        raise InputError(
            f"pixel_values has shape {list(pixels.shape)} and type {pixels.dtype}: give one image or more as "
            "float or uint8 of shape [batch, channels, height, width]."
        )
    if floating and pixels.dtype == torch.uint8:
        raise InputError("Erasing and mixup work on the pixels that the model takes, and these are uint8: give float.")


def _soft_labels(labels: Tensor, classes: int, samples: int) -> Tensor:
    if labels.is_floating_point():
        if labels.shape != (samples, classes):
            raise InputError(f"Soft labels have shape {list(labels.shape)}: give [{samples}, {classes}].")
        return labels
    if labels.shape != (samples,):
        raise InputError(f"Labels have shape {list(labels.shape)} for {samples} images: give [{samples}].")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"Labels are {int(labels.min())} to {int(labels.max())} but there are {classes} classes: give 0 to "
            f"{classes - 1}."
        )
    return functional.one_hot(labels.long(), classes).float()


def _cropped(pixels: Tensor, padding: int, chance: np.random.Generator) -> Tensor:
    samples, channels, height, width = pixels.shape
    moves = chance.integers(-padding, padding, size=(2, samples, 1), endpoint=True)
    # An index outside the image is its edge.
    rows = torch.from_numpy((np.arange(height) + moves[0]).clip(0, height - 1)).to(pixels.device)
    columns = torch.from_numpy((np.arange(width) + moves[1]).clip(0, width - 1)).to(pixels.device)
    sample = torch.arange(samples, device=pixels.device)[:, None, None, None]
    channel = torch.arange(channels, device=pixels.device)[None, :, None, None]
    return pixels[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _erased(pixels: Tensor, probability: float, chance: np.random.Generator) -> Tensor:
    pixels = pixels.clone()
    samples, channels, height, width = pixels.shape
    for i in np.flatnonzero(chance.random(samples) < probability):
        for _ in range(_ERASING_ATTEMPTS):
            area = chance.uniform(*_ERASED_AREA) * height * width
            aspect = math.exp(chance.uniform(*_ERASED_LOG_ASPECT))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < rows < height and 0 < columns < width:
                top, left = chance.integers(height - rows + 1), chance.integers(width - columns + 1)
                noise = torch.from_numpy(chance.standard_normal((channels, rows, columns)))
                pixels[i, :, top : top + rows, left : left + columns] = noise.to(pixels)
                break
    return pixels


# RandAugment's operations: of a picture, the magnitude as a share of the largest, and a direction, 1 or -1.


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Moves a picture: output (x, y) is input (a x + b y + c, d x + e y + f)."""
    fill = _GRAY if image.mode == "L" else (_GRAY,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=fill)


def _rotate(image: Image.Image, share: float, sign: int) -> Image.Image:
    fill = _GRAY if image.mode == "L" else (_GRAY,) * 3
    return image.rotate(sign * 30 * share, Image.Resampling.BILINEAR, fillcolor=fill)


def _enhance(kind: Any) -> Callable[[Image.Image, float, int], Image.Image]:
    def enhance(image: Image.Image, share: float, sign: int) -> Image.Image:
        enhanced: Image.Image = kind(image).enhance(1 + sign * 0.9 * share)
        return enhanced

    return enhance


_OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, share, sign: image,
    lambda image, share, sign: _affine(image, (1, sign * 0.3 * share, 0, 0, 1, 0)),
    lambda image, share, sign: _affine(image, (1, 0, 0, sign * 0.3 * share, 1, 0)),
    lambda image, share, sign: _affine(image, (1, 0, sign * round(150 / 331 * image.width * share), 0, 1, 0)),
    lambda image, share, sign: _affine(image, (1, 0, 0, 0, 1, sign * round(150 / 331 * image.height * share))),
    _rotate,
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Sharpness),
    lambda image, share, sign: ImageOps.posterize(image, 8 - round(4 * share)),
    lambda image, share, sign: ImageOps.solarize(image, round(256 * (1 - share))),
    lambda image, share, sign: ImageOps.autocontrast(image),
    lambda image, share, sign: ImageOps.equalize(image),
)
