"""Corruptions of pictures: noise, blur, weather and digital losses, each in five severities.

These are fourteen of the fifteen corruptions of CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C (Hendrycks and Dietterich
2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", and the published scripts that
made the sets), with the constants of these sets; `frost` is missing, which lays photographs of frost over the picture.

Packages that offer them serve neither small pictures nor repetition: `imagecorruptions` has had no release since 2020;
its fork `imagecorruptions-imaug` knows the constants of ImageNet-C alone, refuses pictures below 32 pixels, draws from
NumPy's global generator, and brings OpenCV, Numba and scikit-image along.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError
from emu.libraries import library

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Random = np.random.RandomState

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8  # pixels


@dataclass(frozen=True)
class Corruption:
    """A corruption of a certain severity, and the seed of its random numbers.

    Args:
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: which random numbers, 0 to 2^32 - 1.

    Raises:
        InputError: there is no such corruption, severity or seed.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise InputError(f"'{self.name}' is no corruption: choose one of {', '.join(CORRUPTIONS)}.")
        if self.severity not in SEVERITIES:
            raise InputError(f"The severity is {self.severity} and must be 1, 2, 3, 4 or 5.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"The seed of the corruption is {self.seed} and must be 0 to 2^32 - 1.")

    @classmethod
    def parse(cls, text: str) -> "Corruption":
        """Reads `fog:3`, or `fog:3:7` with a seed.

        Raises:
            InputError: it cannot be read, or there is no such corruption.
        """
        name, *numbers = text.split(":")
        if not 1 <= len(numbers) <= 2 or not all(number.strip().isdecimal() for number in numbers):
            raise InputError(f"'{text}' is no corruption: write its name and severity, such as fog:3.")
        return cls(name.strip(), *map(int, numbers))

    def apply(self, images: Pixels, first: int = 0) -> Pixels:
        """Corrupts pictures, as `corrupt` does."""
        return corrupt(images, self.name, self.severity, self.seed, first)

    def __str__(self) -> str:
        """What `parse` reads."""
        return f"{self.name}:{self.severity}" + (f":{self.seed}" if self.seed else "")


def corrupt(images: Pixels, name: str, severity: int, seed: int = 0, first: int = 0) -> Pixels:
    """Corrupts pictures.

    What becomes of a picture depends on its pixels, `name`, `severity`, `seed` and its index, counted from `first`: not
    on the pictures beside it, on their order, or on the process.

    The constants are those of the set whose pictures are nearest in size: CIFAR-10-C (32 pixels) up to 45 pixels of the
    shorter side, Tiny-ImageNet-C (64 pixels) up to 119, ImageNet-C (224 pixels) from there on. Results are rounded to
    the nearest level; the published scripts cut them off.

    Args:
        images: uint8 `[pictures, height, width]`, or `[pictures, height, width, channels]` with 1 or 3 channels (red,
            green, blue), of 8 x 8 pixels at least.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: which random numbers, 0 to 2^32 - 1.
        first: index of the first picture.

    Returns:
        The corrupted pictures, of the same type and shape.

    Raises:
        InputError: there is no such corruption, severity or seed; or these are no pictures.
    """
    corruption = Corruption(name, severity, seed)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise InputError(
            f"Pictures are {images.dtype} [{', '.join(map(str, images.shape))}] and must be uint8 [pictures, height, "
            "width], or [pictures, height, width, channels] with 1 or 3 channels."
        )
    if not 0 <= first <= 2**32 - len(images):
        raise InputError(f"The first picture has the index {first}: it must be 0 or more, and the last one below 2^32.")
    height, width = images.shape[1:3]
    if min(height, width) < SMALLEST:
        raise InputError(
            f"Pictures of {width} x {height} pixels are too small to corrupt: give {SMALLEST} x {SMALLEST}."
        )
    size = next(size for size in _SIZES if min(height, width) < _SIZES[size])
    function, constants = _FUNCTIONS[name], _CONSTANTS[name][size][severity - 1]
    corrupted = np.empty_like(images)
    for index, picture in enumerate(images):
        x = picture.reshape(height, width, -1) / 255
        y = function(x, constants, _random(corruption, first + index))
        corrupted[index] = np.rint(255 * np.clip(y, 0, 1)).reshape(picture.shape)
    return corrupted


def _random(corruption: Corruption, index: int) -> Random:
    """The random numbers of one picture; of the kind that NumPy promises never to change."""
    key = (zlib.crc32(corruption.name.encode()), corruption.severity, index)
    return np.random.RandomState(np.random.Philox(np.random.SeedSequence(corruption.seed, spawn_key=key)))


# The corruptions. Each takes a picture x `[height, width, channels]` with levels 0 to 1, its constants and random
# numbers, and gives a picture whose levels may leave that range.


def _gaussian_noise(x: Floats, sigma: float, random: Random) -> Floats:
    return x + random.normal(0, sigma, x.shape)


def _shot_noise(x: Floats, photons: float, random: Random) -> Floats:
    """White is so many photons on average; their number follows Poisson's law."""
    return random.poisson(photons * x) / photons


def _impulse_noise(x: Floats, share: float, random: Random) -> Floats:
    """So large a share of the values becomes black or white, with equal chances."""
    hit, white = random.random_sample(x.shape) < share, random.random_sample(x.shape) < 0.5
    return np.where(hit, white, x)


def _defocus_blur(x: Floats, constants: tuple[float, float], random: Random) -> Floats:
    """Averages over a disk whose edge is smoothed."""
    radius, edge_sigma = constants
    reach = max(8, int(radius))
    smooth = 1 if radius <= 8 else 2
    offsets = np.arange(-reach, reach + 1)
    disk = (np.hypot(*np.meshgrid(offsets, offsets)) <= radius).astype(float)
    bell = np.exp(-np.square(np.arange(-smooth, smooth + 1)) / (2 * edge_sigma**2))
    ndimage = library("scipy.ndimage")
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, bell / bell.sum(), axis, mode="mirror")
    used = np.flatnonzero(disk.any(axis=0))
    kernel = disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1] / disk.sum()
    return np.asarray(ndimage.correlate(x, kernel[:, :, None], mode="mirror"))


def _glass_blur(x: Floats, constants: tuple[float, int, int], random: Random) -> Floats:
    """Blurs, lets each pixel take the place of one nearby, and blurs again."""
    sigma, reach, rounds = constants
    height, width, channels = x.shape
    rows, columns = (range(size - reach, reach, -1) for size in (height, width))
    # Pixels are taken, not swapped, and one after the other: the published sets came about like that.
    source = list(range(height * width))
    for _ in range(rounds):
        offsets = random.randint(-reach, reach, (len(rows), len(columns), 2)) @ [1, width]
        for row, of_row in zip(rows, offsets.tolist(), strict=True):
            for place, offset in zip(range(row * width + columns[0], -1, -1), of_row, strict=False):
                source[place] = source[place + offset]
    shuffled = _blurred(x, sigma).reshape(height * width, channels)[source]
    return _blurred(shuffled.reshape(x.shape), sigma)


def _motion_blur(x: Floats, constants: tuple[int, float], random: Random) -> Floats:
    return _moved(x, *constants, random.uniform(-45, 45))


def _zoom_blur(x: Floats, constants: tuple[float, float], random: Random) -> Floats:
    """Averages enlarged pictures with the picture itself."""
    end, step = constants
    factors = np.arange(1, end, step)
    enlarged = np.sum([_enlarged(x, factor) for factor in factors], axis=0)
    return np.asarray((x + enlarged) / (len(factors) + 1))


def _snow(x: Floats, constants: tuple[float, ...], random: Random) -> Floats:
    """Pales the picture and lays streaks of snow over it, from two sides."""
    mean, sigma, zoom, threshold, radius, streak_sigma, kept = constants
    flakes = _enlarged(random.normal(mean, sigma, x.shape[:2])[:, :, None], zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _moved(flakes, int(radius), streak_sigma, random.uniform(-135, -45))
    gray = x @ [[0.299], [0.587], [0.114]] if x.shape[2] == 3 else x  # luma of ITU-R BT.601
    pale = kept * x + (1 - kept) * np.maximum(x, 1.5 * gray + 0.5)
    return np.asarray(pale + flakes + np.rot90(flakes, 2))


def _fog(x: Floats, constants: tuple[float, float], random: Random) -> Floats:
    strength, decay = constants
    height, width, _ = x.shape
    clouds = _clouds(1 << (max(height, width) - 1).bit_length(), decay, random)[:height, :width, None]
    return np.asarray((x + strength * clouds) * x.max() / (x.max() + strength))


def _brightness(x: Floats, added: float, random: Random) -> Floats:
    """Adds to the value of HSV, the largest of the channels; hue and saturation keep the channels' proportions."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return np.asarray(np.where(value > 0, x / np.where(value > 0, value, 1), 1) * brighter)


def _contrast(x: Floats, kept: float, random: Random) -> Floats:
    mean = x.mean(axis=(0, 1))
    return np.asarray((x - mean) * kept + mean)


def _elastic_transform(x: Floats, constants: tuple[float, float, float], random: Random) -> Floats:
    """Draws the picture out of shape: as a whole, by an affine map of three points, and then from pixel to pixel."""
    stretch, sigma, pull = constants
    ndimage = library("scipy.ndimage")
    height, width, channels = x.shape
    center, third = np.array([height // 2, width // 2]), min(height, width) // 3
    before = center + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    after = before + random.uniform(-pull, pull, before.shape)
    grid = np.moveaxis(np.mgrid[:height, :width], 0, -1)  # of rows and columns
    back = np.linalg.solve(np.c_[after, np.ones(3)], before)  # where a pixel comes from
    places = grid @ back[:2] + back[2]
    noise = random.uniform(-1, 1, (2, height, width))
    shifts = [stretch * ndimage.gaussian_filter(each, sigma, mode="reflect", truncate=3) for each in noise]
    for where, edge in ((places, "mirror"), (grid + np.stack(shifts, axis=-1), "reflect")):
        coordinates = np.moveaxis(where, -1, 0)
        of_channels = [ndimage.map_coordinates(x[:, :, c], coordinates, order=1, mode=edge) for c in range(channels)]
        x = np.stack(of_channels, axis=-1)
    return np.asarray(x)


def _pixelate(x: Floats, share: float, random: Random) -> Floats:
    picture = _picture(x)
    box = library("PIL.Image").Resampling.BOX
    small = picture.resize((int(share * picture.width), int(share * picture.height)), box)
    return _levels(small.resize(picture.size, box), x)


def _jpeg_compression(x: Floats, quality: int, random: Random) -> Floats:
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return _levels(library("PIL.Image").open(file), x)


# What several of them need.


def _blurred(x: Floats, sigma: float) -> Floats:
    return np.asarray(library("scipy.ndimage").gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4))


def _moved(x: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """Blurs in one direction, as ImageMagick does: half a bell of 2 radius + 1 pixels, each from the nearest pixel.

    Args:
        x: picture.
        radius: half of the length in pixels.
        sigma: width of the bell in pixels.
        angle: of the motion in degrees, from the rows.
    """
    height, width, _ = x.shape
    distance, turn = np.arange(2 * radius + 1), np.deg2rad(angle)
    weights = np.exp(-np.square(distance) / (2 * sigma**2))
    down, right = (np.ceil(distance * part - 0.5).astype(int) for part in (np.sin(turn), np.cos(turn)))
    edge = len(distance)
    wide = np.pad(x, ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    moved = np.zeros_like(x)
    for weight, dy, dx in zip(weights / weights.sum(), edge + down, edge + right, strict=True):
        moved += weight * wide[dy : dy + height, dx : dx + width]
    return moved


def _enlarged(x: Floats, factor: float) -> Floats:
    """The middle of the picture, enlarged to the size of the picture."""
    height, width, _ = x.shape
    parts = [int(np.ceil(size / factor)) for size in (height, width)]
    top, left = ((size - part) // 2 for size, part in zip((height, width), parts, strict=True))
    middle = x[top : top + parts[0], left : left + parts[1]]
    large = library("scipy.ndimage").zoom(middle, (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def _clouds(size: int, decay: float, random: Random) -> Floats:
    """A plasma fractal by the diamond-square algorithm on a torus, levels 0 to 1 `[size, size]`; size: a power of 2."""
    clouds = np.zeros((size, size))
    step, spread = size, 100.0

    def between(*neighbours: Floats) -> Floats:
        mean = sum(neighbours) / 4
        return np.asarray(mean + spread * random.uniform(-spread, spread, np.shape(mean)))

    while step >= 2:
        half = step // 2
        corners, centers = clouds[::step, ::step], clouds[half::step, half::step]
        below, right = np.roll(corners, -1, 0), np.roll(corners, -1, 1)
        centers[:] = between(corners, below, right, np.roll(below, -1, 1))
        clouds[::step, half::step] = between(centers, np.roll(centers, 1, 0), corners, right)
        clouds[half::step, ::step] = between(centers, np.roll(centers, 1, 1), corners, below)
        step, spread = half, spread / decay
    clouds -= clouds.min()
    return np.asarray(clouds / clouds.max())


def _picture(x: Floats) -> Any:
    """A picture of pillow."""
    levels = np.rint(255 * x).astype(np.uint8)
    return library("PIL.Image").fromarray(levels[:, :, 0] if x.shape[2] == 1 else levels)


def _levels(picture: Any, like: Floats) -> Floats:
    return np.asarray(picture).reshape(like.shape) / 255


_FUNCTIONS: dict[str, Callable[[Floats, Any, Random], Floats]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}

CORRUPTIONS = tuple(_FUNCTIONS)
"""Names of the corruptions: three of noise, four of blur, snow, fog and brightness as weather, four digital ones."""

# Sizes of a set's pictures, and below which size its constants are used: halfway to the next set, as a ratio.
_SIZES = {32: 46, 64: 120, 224: 2**63}
_CONSTANTS: dict[str, dict[int, tuple[Any, ...]]] = {
    "gaussian_noise": {
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {
        32: (500, 250, 100, 75, 50),
        64: (250, 100, 50, 30, 15),
        224: (60, 25, 12, 5, 3),
    },
    "impulse_noise": {
        32: (0.01, 0.02, 0.03, 0.05, 0.07),
        64: (0.01, 0.02, 0.05, 0.08, 0.14),
        224: (0.03, 0.06, 0.09, 0.17, 0.27),
    },
    "defocus_blur": {
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "fog": {
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {
        32: (0.05, 0.1, 0.15, 0.2, 0.3),
        64: (0.1, 0.2, 0.3, 0.4, 0.5),
        224: (0.1, 0.2, 0.3, 0.4, 0.5),
    },
    "contrast": {
        32: (0.75, 0.5, 0.4, 0.3, 0.15),
        64: (0.4, 0.3, 0.2, 0.1, 0.05),
        224: (0.4, 0.3, 0.2, 0.1, 0.05),
    },
    "elastic_transform": {
        32: ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        64: ((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
        224: ((488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)),
    },
    "pixelate": {
        32: (0.95, 0.9, 0.85, 0.75, 0.65),
        64: (0.9, 0.8, 0.7, 0.6, 0.5),
        224: (0.6, 0.5, 0.4, 0.3, 0.25),
    },
    "jpeg_compression": {
        32: (80, 65, 58, 50, 40),
        64: (65, 58, 50, 40, 25),
        224: (25, 18, 15, 10, 7),
    },
}
