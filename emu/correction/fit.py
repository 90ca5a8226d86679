"""What corrects a site, and how it is fitted: formulas of least squares, all closed."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError

Floats = NDArray[np.float32]

_RIDGE = 1e-3  # of the mean of the diagonal of a covariance
_WIDER = 1.5  # by how much a range of outputs is wider than what was seen


@dataclass(frozen=True)
class Correction:
    """What a site's output goes through, in this order; all that is None is left out.

    Attributes:
        low: smallest output of each column, float32 `[N]`.
        high: largest output, likewise.
        gain: factor of each column, float32 `[N]`.
        left: float32 `[K, r]`, of the digital side path x left right that is added.
        right: float32 `[r, N]`.
        bias: what is added to each column, float32 `[N]`.
    """

    low: Floats | None = None
    high: Floats | None = None
    gain: Floats | None = None
    left: Floats | None = None
    right: Floats | None = None
    bias: Floats | None = None

    @property
    def rank(self) -> int:
        """Rank of the side path, 0 for none."""
        return 0 if self.left is None else self.left.shape[1]

    @property
    def numbers(self) -> int:
        """Numbers to store."""
        return sum(each.size for each in vars(self).values() if each is not None)

    @property
    def multiplications(self) -> int:
        """Digital multiplications of one row."""
        return sum(each.size for each in (self.left, self.right, self.gain) if each is not None)

    def apply(self, y: Floats, x: Floats | None) -> Floats:
        """The corrected output, float32 `[rows, N]`, of an output and, for a side path, its input `[rows, K]`."""
        if self.low is not None and self.high is not None:
            y = np.clip(np.where(np.isnan(y), np.float32(0), y), self.low, self.high)
        if self.gain is not None:
            y = y * self.gain
        if self.left is not None and self.right is not None and x is not None:
            y = np.asarray(y + (x @ self.left) @ self.right, np.float32)
        return y if self.bias is None else y + self.bias

    def scaled(self, gain: Floats, bias: Floats) -> "Correction":
        """The same correction, then a gain and a bias of each column."""
        own = gain if self.gain is None else self.gain * gain
        right = None if self.right is None else self.right * gain
        return replace(self, gain=own, right=right, bias=bias)


@dataclass
class Moments:
    """Sums over rows of the outputs y of a chip and c of the clean model, column by column."""

    columns: int
    rows: int = 0
    y: NDArray[np.float64] = field(init=False)
    c: NDArray[np.float64] = field(init=False)
    yy: NDArray[np.float64] = field(init=False)
    yc: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.y, self.c, self.yy, self.yc = np.zeros((4, self.columns))

    def add(self, y: Floats, c: Floats) -> None:
        """Takes in rows `[rows, columns]` of both; those with a number that is not finite are left out."""
        finite = np.isfinite(y).all(axis=1) & np.isfinite(c).all(axis=1)
        chip, clean = y[finite].astype(np.float64), c[finite].astype(np.float64)
        self.rows += len(chip)
        self.y += chip.sum(axis=0)
        self.c += clean.sum(axis=0)
        self.yy += (chip * chip).sum(axis=0)
        self.yc += (chip * clean).sum(axis=0)

    def gain_and_bias(self) -> tuple[Floats, Floats]:
        """The g and b of each column that bring g y + b closest to c: g = cov(y, c) / var(y), b = E[c] - g E[y]."""
        n = max(1, self.rows)
        y, c = self.y / n, self.c / n
        variance, covariance = self.yy / n - y * y, self.yc / n - y * c
        varies = variance > 1e-12 * np.maximum(self.yy / n, 1e-30)
        gain = np.where(varies, covariance / np.where(varies, variance, 1), 1.0)
        return gain.astype(np.float32), (c - gain * y).astype(np.float32)

    def bias(self) -> Floats:
        """What added to each column brings its mean to the clean one."""
        return ((self.c - self.y) / max(1, self.rows)).astype(np.float32)


@dataclass
class Covariance:
    """Sum over rows of the products of the inputs of a site."""

    depth: int
    rows: int = 0
    total: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros((self.depth, self.depth))

    def add(self, x: Floats) -> None:
        """Takes in rows `[rows, depth]`."""
        x = x[np.isfinite(x).all(axis=1)]
        self.total += x.T @ x
        self.rows += len(x)


def gain_of_weights(clean: Floats, stored: Floats, covariance: Covariance) -> Floats:
    """The gain of each column that brings what stored weights make of such inputs closest to what clean ones make.

    g = w' S w / w' S w' of each column, S being the covariance: float32 `[N]`, of weights `[K, N]`.
    """
    fed = covariance.total @ stored
    power = (stored * fed).sum(axis=0)
    gain = (clean * fed).sum(axis=0) / np.where(power > 0, power, 1)
    return np.where(power > 0, gain, 1).astype(np.float32)


def low_rank(error: Floats, covariance: Covariance, rank: int) -> tuple[Floats, Floats]:
    """The side path of a rank that takes most of an error of stored weights away, for inputs of this covariance.

    With S = X'X / n = L L', |X (E - A B)| = |L' (E - A B)|: the truncated singular value decomposition of L' E, taken
    back through L'.

    Args:
        error: E, clean weights less those of the chip, float32 `[K, N]`.
        covariance: of the inputs.
        rank: number of columns of A.

    Returns:
        A `[K, rank]` and B `[rank, N]`, float32.

    Raises:
        InputError: inputs that are all zero, or an error that is not finite.
    """
    s = covariance.total / max(1, covariance.rows)
    ridge = _RIDGE * np.trace(s) / len(s)
    if not ridge > 0 or not np.isfinite(error).all():
        raise InputError("a site is fed zeros only, or its stored values are not finite.")
    lower = np.linalg.cholesky(s + ridge * np.eye(len(s)))
    u, values, v = _leading(lower.T @ error.astype(np.float64), rank)
    left = np.linalg.solve(lower.T, u * values)
    size = np.abs(left).max() or 1.0  # both of about one magnitude
    return (left / size).astype(np.float32), (v * size).astype(np.float32)


def _leading(
    matrix: NDArray[np.float64], rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The leading part of a singular value decomposition, by the eigenvectors of the smaller product."""
    rows, columns = matrix.shape
    if rows <= columns:
        _, vectors = np.linalg.eigh(matrix @ matrix.T)
        u = vectors[:, ::-1][:, :rank]
        rest = u.T @ matrix
        values = np.linalg.norm(rest, axis=1)
        return u, values, rest / np.where(values > 0, values, 1)[:, None]
    u, values, v = _leading(matrix.T, rank)
    return v.T, values, u.T


def output_range(c: Floats, before: tuple[Floats, Floats] | None) -> tuple[Floats, Floats]:
    """Smallest and largest output of each column so far, of rows `[rows, N]`."""
    low, high = c.min(axis=0, initial=np.inf), c.max(axis=0, initial=-np.inf)
    return (low, high) if before is None else (np.minimum(low, before[0]), np.maximum(high, before[1]))


def widened(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """A range with a margin, for what the data did not show."""
    middle, half = (low + high) / 2, (high - low) / 2 * np.float32(_WIDER)
    return (middle - half).astype(np.float32), (middle + half).astype(np.float32)
