"""Rows of norm 1 in, int8 codes out: the product of two codes tells that no cosine is above tau.

    x ──▶ rotated, k coordinates | norm of the rest ──▶ int8 codes ──▶ a product below the limit:
          z, one vector of k + 1                        and an offset  no pair

1. Rotate by the principal axes of a sample and fold all but k coordinates into their norm:
   x·y <= z_x·z_y (Cauchy-Schwarz). z has the length of x, and no distance grows.
2. Write z = m + s q + e with the sample's mean m and integers q in -127..127. With N = |s q| and
   E = |e|, z_x·z_y <= s² q_x·q_y + o_x + o_y, where o = m·(z - m) + |m|²/2 + (l N² + E²/l + E²)/2
   for any l > 0, since N_x E_y <= (l N_x² + E_y²/l)/2. Offsets are integers of two digits in four
   more columns of the code, so that a bound is one int8 product; integers know no rounding.
   A row that no code of this range bounds is a candidate with every other row.

k and s come from a sample of the rows: the cheapest by counted candidates, nothing is timed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Real = TypeVar("Real", np.float32, np.float64)

# Columns of a code: k coordinates, the norm of the rest, and four for the offset. Below 1,040
# columns the products are exact in float32 as well.
COLUMNS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_EXTRA = 5
# In units of one int8 column of one pair: the rest of the work on a pair, and a candidate.
_PAIR_COST, _CANDIDATE_COST = 36, 1 << 18
# The greatest offset of two digits to the base 127: 127 * 127 + 63.
OFFSET = 16_192
# For what float64 rounds in step 1; the real error is below 1e-12.
SLACK = 1e-9
_SAMPLE, _SAMPLE_PAIRS, _SAMPLE_VALUES = 8192, 2048, 1 << 22
CHUNK_VALUES = 1 << 19


class Vectors(Protocol):
    """Rows that numpy can slice and pick from: an array, `np.memmap`, or the like; n x d floats."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class Frame:
    """How a row becomes a code; any values give valid bounds, good ones give few candidates.

    `rotation` and `mean` are float64, of the shapes beside them, within about -1 to 1.
    """

    rotation: Float64  # d x k, orthonormal columns
    mean: Float64  # k + 1
    scale: float  # s
    blend: float  # l
    base: float  # an offset of this size is the integer 0
    limit: int  # products of codes from here on are candidates
    columns: int


def pieces(vectors: Vectors) -> list[slice]:
    """All rows of n x d vectors (float16 or float32), some at a time."""
    n, d = vectors.shape
    step = max(1, CHUNK_VALUES // max(1, d))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def times(a: NDArray[Real], b: NDArray[Real]) -> NDArray[Real]:
    """Matrix product of n x d and d x m (float32 or float64, finite), n x m of that type.

    It is torch's, which can be limited to one thread; numpy's cannot.
    """
    import torch

    product: NDArray[Real] = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def floats(rows: NDArray[Any], kind: type[Real]) -> NDArray[Real]:
    """A copy of n x d floats (any values) as float32 or float64, of the same values.

    It is torch's, since numpy takes four times as long over float16.
    """
    import torch

    wide = torch.float64 if kind is np.float64 else torch.float32
    copy: NDArray[Real] = torch.from_numpy(np.array(rows)).to(wide).numpy()
    return copy


def choose_frame(vectors: Vectors, tau: float) -> Frame:
    """The frame with the least expected cost among those of `COLUMNS`, by an even sample.

    Args:
        vectors: n x d, float16 or float32, rows of norm 1.
        tau: above 0, at most 1.
    """
    import torch

    n, d = vectors.shape
    if n == 0:
        return Frame(np.zeros((d, 0)), np.zeros(1), 1.0, 1.0, 1.0, 0, COLUMNS[0])
    sample = np.empty((min(n, _SAMPLE, max(1024, _SAMPLE_VALUES // max(1, d))), d))
    rows = np.linspace(0, n - 1, len(sample)).astype(np.int64)
    step = max(1, CHUNK_VALUES // max(1, d))
    for start in range(0, len(rows), step):
        sample[start : start + step] = floats(vectors[rows[start : start + step]], np.float64)
    # What is not finite is refused with its row when all rows are read.
    sample[~np.isfinite(sample).all(1)] = 0
    rough = sample.astype(np.float32)
    spread = torch.from_numpy(times(rough.T, rough).astype(np.float64))
    axes = torch.linalg.eigh(spread).eigenvectors.flip(1).numpy()
    few = sample[np.linspace(0, len(sample) - 1, min(len(sample), _SAMPLE_PAIRS)).astype(np.int64)]
    best: tuple[float, int] | None = None
    for columns in COLUMNS:
        if best is not None and columns + _PAIR_COST >= best[0]:
            break
        frame = _frame(few, axes[:, : columns - _EXTRA], tau, columns)
        codes, _, _ = encode(frame, few)
        left, right = codes[:, swapped(columns)].astype(np.float32), codes.astype(np.float32)
        found = int(np.count_nonzero(times(left, right.T) >= frame.limit)) - len(few)
        share = max(0, found) / max(1, len(few) * (len(few) - 1))
        cost = columns + _PAIR_COST + _CANDIDATE_COST * share
        if best is None or cost < best[0]:
            best = cost, columns
        if columns - _EXTRA >= d:
            break
    assert best is not None
    return _frame(sample, axes[:, : best[1] - _EXTRA], tau, best[1])


def _compress(rotation: Float64, rows: Float64) -> tuple[Float64, Float64]:
    """z of each row, n x (k + 1), its last coordinate rounded up; and the squared norms."""
    with np.errstate(invalid="ignore"):  # rows that are not finite are refused by their length
        leading = times(rows, rotation)
        lengths = np.einsum("ij,ij->i", rows, rows)
    rest = np.maximum(lengths - np.einsum("ij,ij->i", leading, leading), 0) + SLACK / 10
    return np.concatenate([leading, np.sqrt(rest)[:, None]], axis=1), lengths


def _frame(sample: Float64, axes: Float64, tau: float, columns: int) -> Frame:
    rotation = np.ascontiguousarray(axes)
    z, _ = _compress(rotation, sample)
    mean = z.mean(0)
    u = z - mean
    # Seen from the mean, a row of norm 1 has the offset (1 - |u|²)/2; none above tau / 2 may lie
    # below the integer 0, so that a row with the greatest offset is a candidate with any other.
    half = 0.5 * np.einsum("ij,ij->i", u, u)
    base = max(tau / 2, float(0.5 - half.min()))
    lowest = float(0.5 - half.max())
    scale = max(
        1.05 * float(np.abs(u).max()) / 127,
        math.sqrt(max(0.0, base - lowest) / OFFSET),
        1e-4,
    )
    q = np.rint(u / scale)
    error = float(np.linalg.norm(u - scale * q, axis=1).mean())
    length = float(np.linalg.norm(scale * q, axis=1).mean())
    blend = max(error, 1e-6) / max(length, 1e-3)
    limit = min(0, math.floor((tau - SLACK - 2 * base) / scale**2))
    return Frame(rotation, mean, scale, blend, base, limit, columns)


def encode(frame: Frame, rows: Float64) -> tuple[NDArray[np.int8], Float64, Float64]:
    """Codes (int8, n x columns), errors E and squared norms (float64, n) of float64 rows, n x d."""
    z, lengths = _compress(frame.rotation, rows)
    u = np.nan_to_num(z - frame.mean, posinf=0, neginf=0)
    q = np.clip(np.rint(u / frame.scale), -127, 127)
    error = np.linalg.norm(u - frame.scale * q, axis=1)
    squares = frame.scale**2 * np.einsum("ij,ij->i", q, q)
    offset = np.einsum("ij,j->i", u, frame.mean) + 0.5 * float(frame.mean @ frame.mean)
    offset += 0.5 * (frame.blend * squares + error**2 / frame.blend + error**2)
    steps = np.ceil((offset - frame.base + SLACK) / frame.scale**2)
    unbounded = steps > OFFSET
    q[unbounded] = 0
    error[unbounded] = np.linalg.norm(u[unbounded], axis=1)
    return digits(q, np.clip(steps, -OFFSET, OFFSET), frame.columns), error, lengths


def digits(q: Float64, offset: Float64 | Int64, columns: int) -> NDArray[np.int8]:
    """Codes: q, zeros, 127, 1, and the two digits of the offset to the base 127.

    Args:
        q: whole numbers as float64, n x (k + 1), -127 to 127.
        offset: whole numbers as float64 or int64, shape (n,), -`OFFSET` to `OFFSET`.

    Returns: int8, n x columns, -127 to 127.
    """
    codes = np.zeros((len(q), columns), np.int8)
    codes[:, : q.shape[1]] = q
    codes[:, -4], codes[:, -3] = 127, 1
    tens = np.rint(offset / 127)
    codes[:, -2], codes[:, -1] = tens, offset - 127 * tens
    return codes


def swapped(columns: int) -> Int64:
    """Order of columns that puts the digits of one code on the weights of the other.

    Returns: int64, shape (columns,), each of 0 to columns - 1 once.
    """
    order = np.arange(columns)
    order[-4:] = order[[-2, -1, -4, -3]]
    return order
