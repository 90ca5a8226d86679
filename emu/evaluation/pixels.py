"""Arrays of pixels: normalized as a model takes them, held against how they should be, and corrupted as pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emu.errors import InputError, listing
from emu.evaluation.corruptions import Corruption
from emu.evaluation.data import Array, DataSet, ModelInput, kind_of
from emu.evaluation.sources import DataSource

OF_ARRAYS = ("corruption", "mean", "std", "anyway", "inputs", "label_column", "processor")
"""Options of `DataSource` that arrays may have."""

PROCESSOR = "preprocessor_config.json"

_AT_ONCE = 256  # pictures; bounds the temporary arrays
_BEYOND = 0.05  # of the range of normalized pixels: resizing by splines overshoots


@dataclass(frozen=True)
class Normalization:
    """How a model wants its pixels: (level * scale - mean) / std for levels 0 to 255.

    Args:
        scale: factor of levels, usually 1 / 255.
        mean: one number, or one for each channel.
        std: likewise.
        source: who says so, such as the file of the model's processor.
    """

    scale: float
    mean: Array
    std: Array
    source: str

    @classmethod
    def of(cls, source: DataSource | None, folders: Sequence[Path]) -> "Normalization | None":
        """That of `mean` and `std`, else of the processor in one of these folders; None where nothing says it."""
        if source is not None and (source.mean is not None or source.std is not None):
            mean, std = (np.atleast_1d(np.asarray(0.0 if each is None else each)) for each in (source.mean, source.std))
            return cls(1 / 255, mean, std if source.std is not None else np.ones(1), "--mean and --std")
        file = next((each / PROCESSOR for each in folders if (each / PROCESSOR).is_file()), None)
        try:
            said: Any = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
            scale = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
            whole = said.get("do_normalize", True)
            mean, std = (np.atleast_1d(np.asarray(said[name], np.float64)) for name in ("image_mean", "image_std"))
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return None
        return cls(scale, mean if whole else np.zeros(1), std if whole else np.ones(1), str(file))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that a pixel can be."""
        ends = np.array([(level * self.scale - self.mean) / self.std for level in (0, 255)])
        return float(ends.min()), float(ends.max())

    def __str__(self) -> str:
        scale = f"x / {1 / self.scale:g}" if self.scale < 1 else f"{self.scale:g} x"
        mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"({scale} - {mean}) / {std}"

    def apply(self, levels: Array, what: str) -> Array:
        """Levels `[pictures, channels, height, width]` as float32, as the model takes them.

        Raises:
            InputError: mean or std are of another number of channels, or std is not above 0.
        """
        channels = levels.shape[1]
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
                raise InputError(
                    f"The {name} of {self.source} has {len(numbers)} numbers, but {what} has {channels} channels."
                )
        if not (self.std > 0).all():
            raise InputError(f"The std of {self.source} must be greater than 0.")
        mean, std = (np.float32(numbers).reshape(-1, 1, 1) for numbers in (self.mean, self.std))
        whole = np.empty(levels.shape, np.float32)
        for start in range(0, len(levels), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            whole[part] = (levels[part] * np.float32(self.scale) - mean) / std
        return whole


def prepare_pixels(
    arrays: Mapping[str, Array],
    inputs: Sequence[ModelInput],
    source: DataSource | None,
    folders: Sequence[Path],
    where: str,
) -> tuple[dict[str, Array], tuple[str, ...], tuple[str, ...]]:
    """Whole levels (uint8) as a model of real pixels takes them, corrupted before if asked for; the rest as it is.

    Args:
        arrays: all arrays of the data.
        inputs: the model's inputs.
        source: where the arrays are from.
        folders: where the model's processor may lie.
        where: the data, for messages.

    Returns:
        The arrays; notes on what was done; warnings about real pixels that are not as the processor makes them.

    Raises:
        InputError: uint8 pictures for a model of real pixels, and nothing says how they are normalized.
    """
    prepared, notes, warnings = dict(arrays), [], []
    for each in inputs:
        array = arrays.get(each.name)
        if not isinstance(array, np.ndarray) or each.dtype.kind != "f" or len(each.shape) != 4 or not array.size:
            continue
        known, what = Normalization.of(source, folders), f"'{each.name}' of {where}"
        if array.dtype.kind == "f":
            warnings += [] if known is None else _strange_pixels(array, known, what)
        elif array.dtype == np.uint8:
            if known is None:
                raise InputError(
                    f"{what} holds whole levels (uint8), and the model takes {each.dtype}: say how its pixels are "
                    f"normalized, by --mean and --std, or by --processor with a folder that has {PROCESSOR}."
                )
            if source is not None and source.corruption is not None:
                array = corrupt_pixels(array, Corruption.parse(source.corruption), what=what)
            prepared[each.name] = known.apply(_channels_first(array, each), what)
            notes.append(f"{what} holds whole levels: they were normalized as {known}, by {known.source}.")
    return prepared, tuple(notes), tuple(warnings)


def _channels_first(levels: Array, wanted: ModelInput) -> Array:
    """Pictures `[pictures, height, width]` or with channels at the end as `[pictures, channels, height, width]`."""
    if levels.ndim == 3:
        return levels[:, None]
    ends_with_channels = levels.ndim == 4 and levels.shape[3] in (1, 3) and levels.shape[1] != wanted.shape[1]
    return np.moveaxis(levels, 3, 1) if ends_with_channels else levels


def _strange_pixels(pixels: Array, known: Normalization, what: str) -> list[str]:
    """A sentence where real pixels are not what the normalization makes of levels."""
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    least, most = known.range
    slack = _BEYOND * (most - least)
    if least - slack <= low and high <= most + slack:
        if not (low >= 0 and high <= 1 and least < -0.2):
            return []
        looks = "These look like levels of 0 to 1 from which no mean was subtracted"
    elif low >= 0 and 2 < high <= 255:
        looks = "These look like raw levels of 0 to 255"
    else:
        looks = "They were normalized otherwise, or not at all"
    return [
        f"{what} holds {low:.4g} to {high:.4g} (mean {float(np.nanmean(pixels)):.4g}), but pixels are {least:.4g} to "
        f"{most:.4g} by {known.source}, {known}. {looks}: normalize them so, or give uint8 levels."
    ]


def corrupt_samples(dataset: DataSet, source: DataSource) -> DataSet:
    """The samples with their pictures corrupted as their source says; the same ones where it says nothing.

    Raises:
        InputError: as in `corrupt_pixels`, or not exactly one array holds pictures.
    """
    if source.corruption is None:
        return dataset
    corruption = Corruption.parse(source.corruption)
    name = array_of_pictures(dataset.arrays, dataset.where)
    what = f"'{name}' of {dataset.where}"
    corrupted = corrupt_pixels(dataset.arrays[name], corruption, source.mean, source.std, what)
    return replace(dataset, arrays={**dataset.arrays, name: corrupted}, where=f"{dataset.where} ({corruption})")


def array_of_pictures(arrays: Mapping[str, Array], where: str) -> str:
    """The name of the one array that holds pictures.

    Raises:
        InputError: there is none, or there are several.
    """
    found = [name for name, array in arrays.items() if _is_pictures(array)]
    if len(found) != 1:
        shown = listing(found) if found else f"none of {listing(arrays)}"
        raise InputError(
            f"Corruptions need one array of pictures in {where}, uint8 or real, [samples, height, width], [samples, "
            f"channels, height, width] or [samples, height, width, channels]: it is {shown}."
        )
    return found[0]


def corrupt_pixels(
    pixels: Array,
    corruption: Corruption,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    what: str = "The array",
) -> Array:
    """Corrupts pictures in the form in which a model takes them.

    Args:
        pixels: uint8 levels, or real (level / 255 - mean) / std, `[pictures, height, width]`, `[pictures, channels,
            height, width]` or `[pictures, height, width, channels]` with 1 or 3 channels.
        corruption: what is done to them.
        mean: one number or one for each channel, of levels 0 to 1; None for 0.
        std: likewise; None for 1.
        what: names the array in messages.

    Returns:
        The corrupted pictures in the same form; real ones hold the 256 levels only.

    Raises:
        InputError: no pictures, or normalized otherwise than with `mean` and `std`.
    """
    if not _is_pictures(pixels):
        raise InputError(f"{what} is {kind_of(pixels)} and holds no pictures.")
    channels_first = pixels.ndim == 4 and pixels.shape[1] in (1, 3)
    channels = 1 if pixels.ndim == 3 else pixels.shape[1 if channels_first else 3]
    if pixels.dtype == np.uint8 and (mean is not None or std is not None):
        raise InputError(f"{what} holds whole levels, which need no mean and std: leave them out.")
    shift, scale = _per_channel(mean, 0.0, channels, "mean"), _per_channel(std, 1.0, channels, "std")
    if not (scale > 0).all():
        raise InputError("The std is zero or less, and must be the number that pixels were divided by.")
    corrupted = np.empty_like(pixels)
    for start in range(0, len(pixels), _AT_ONCE):
        part = pixels[start : start + _AT_ONCE]
        pictures = part[..., None] if part.ndim == 3 else np.moveaxis(part, 1, -1) if channels_first else part
        if pixels.dtype != np.uint8:
            pictures = _levels(pictures * scale + shift, what)
        pictures = corruption.apply(pictures, start)
        back = pictures if pixels.dtype == np.uint8 else (pictures / 255 - shift) / scale
        corrupted[start : start + _AT_ONCE] = (
            back[..., 0] if part.ndim == 3 else np.moveaxis(back, -1, 1) if channels_first else back
        )
    return corrupted


def _levels(shares: Array, what: str) -> Array:
    low, high = shares.min(), shares.max()
    if not -1 / 255 <= low <= high <= 1 + 1 / 255:
        raise InputError(
            f"{what} would have levels from {low:.3g} to {high:.3g}, and pictures have 0 to 1: give the mean and std "
            "with which its pixels were normalized (--mean, --std)."
        )
    return np.asarray(np.rint(255 * np.clip(shares, 0, 1)), np.uint8)


def _per_channel(given: float | Sequence[float] | None, otherwise: float, channels: int, name: str) -> Array:
    numbers = np.atleast_1d(np.asarray(otherwise if given is None else given, np.float64))
    if numbers.shape not in ((1,), (channels,)) or not np.isfinite(numbers).all():
        shown = ", ".join(f"{number:g}" for number in numbers.flat)
        raise InputError(f"The {name} is {shown} and must be one number, or one for each of {channels} channels.")
    return numbers


def _is_pictures(array: Array) -> bool:
    has_channels = array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] in (1, 3))
    return (array.dtype == np.uint8 or array.dtype.kind == "f") and (array.ndim == 3 or has_channels)
