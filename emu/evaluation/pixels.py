"""Arrays of pixels, as a model takes them: turned into pictures, corrupted, and turned back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from emu.errors import InputError, listing
from emu.evaluation.corruptions import Corruption
from emu.evaluation.data import Array, DataSet, kind_of
from emu.evaluation.sources import DataSource

OF_PIXELS = ("corruption", "mean", "std")
"""Options of `DataSource` that arrays may have."""

_AT_ONCE = 256  # pictures; bounds the temporary arrays


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
