"""Noise, and a pen that covers pixels by their distance to an edge: the tools of `things`, `paint`.

One seed gives the same bytes on every machine. Noise comes from an integer hash, and arrays use
only + - * / sqrt, min, max and comparisons, which IEEE 754 rounds alike everywhere; sin, exp and
power are not rounded alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

F = NDArray[np.floating[Any]]
Rgb = tuple[int, int, int]


def to_rgb(color: Rgb) -> F:
    """A color of 3 whole numbers, 0 to 255, as float32, shape (3,), 0 to 1."""
    return np.array(color, np.float32) / 255


def hash_noise(y: NDArray[np.uint32], x: NDArray[np.uint32], seed: int) -> F:
    """Pseudo-random numbers in 0 to 1, one for each pair of whole numbers, in their shape.

    Args:
        y, x: uint32, any values, of shapes that numpy broadcasts.
        seed: any whole number; its low 32 bits count.

    Returns:
        float32, of the broadcast shape, 0 to below 1.
    """
    start = np.array([seed * 0x9E3779B1 & 0xFFFFFFFF], np.uint32)
    h = x * np.uint32(0x85EBCA77) + y * np.uint32(0xC2B2AE3D) + start
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return (h >> np.uint32(8)).astype(np.float32) * (2**-24)


def count_up(first: int, number: int) -> NDArray[np.uint32]:
    """`number` whole numbers from `first` on: uint32, shape (number,), 0 again after 2^32 - 1."""
    return (np.arange(first, first + number) & 0xFFFFFFFF).astype(np.uint32)


def _cells(at: F) -> tuple[NDArray[np.intp], F, int, int]:
    """Lattice cell and smooth share of the way to the next one, and the span of the lattice."""
    low = np.floor(at)
    share = at - low
    cell = low.astype(np.intp)
    first = int(cell.min())
    cell -= first
    return cell, share * share * (3 - 2 * share), first, int(cell.max()) + 2


def value_noise(ys: F, xs: F, seed: int) -> F:
    """Value noise in -1 to 1, float32 H x W, at rows `ys` and columns `xs` of its lattice.

    Both are float32, shapes (H,) and (W,), in cells of the lattice, any finite values.
    """
    if not ys.size or not xs.size:
        return np.zeros((ys.size, xs.size), np.float32)
    row, down, y0, rows = _cells(ys)
    column, right, x0, columns = _cells(xs)
    lattice = hash_noise(count_up(y0, rows)[:, None], count_up(x0, columns)[None], seed) * 2 - 1
    lattice = lattice[:, column] + (lattice[:, column + 1] - lattice[:, column]) * right
    upper = lattice[row]
    out: F = upper + (lattice[row + 1] - upper) * down[:, None]
    return out


def layered_noise(ys: F, xs: F, seed: int, octaves: int = 3) -> F:
    """Octaves of noise, each of half the size and strength: float32, H x W, about -1 to 1.

    Args:
        ys, xs: float32, shapes (H,) and (W,), in cells of the coarsest lattice, any finite values.
        seed: of the coarsest octave; each further one has the next.
        octaves: how many.
    """
    out = value_noise(ys, xs, seed) * 0.6
    for octave in range(1, octaves):
        out += value_noise(ys * 2**octave, xs * 2**octave, seed + octave) * (0.6 / 2**octave)
    return out


def triangle_wave(at: F) -> F:
    """A triangle wave in 0 to 1 of period 1, without the sine, which machines round differently.

    float32, any shape, any finite values, in periods, in; the same shape and dtype out.
    """
    out: F = np.abs(at - np.floor(at) - 0.5) * 2
    return out


class Pen:
    """A part of the image in units of one thing: `u` right of its foot (1,w), `v` up (h,1).

    `u` and `v` are float32, and so is what is computed from them: distances in units, positive
    inside, and coverages, 0 to 1; both (h,w).

    Args:
        image: float32, H x W x 3, RGB from 0, 1 is white; it is painted in place.
        x, base: column and row of the thing's foot, in pixels.
        size: pixels of a unit.
        box: left, right, bottom and top of the part, in units.
        side: -1 mirrors the part, 1 does not.
    """

    def __init__(
        self, image: F, x: float, base: float, size: float,
        box: tuple[float, float, float, float] = (-0.7, 0.7, -0.2, 1.8), side: float = 1.0,
    ) -> None:  # fmt: skip
        height, width = image.shape[:2]
        left, right, bottom, top = box
        if side < 0:
            left, right = -right, -left
        x0 = min(width, max(0, math.floor(x + left * size)))
        x1 = min(width, max(x0, math.ceil(x + right * size)))
        y0 = min(height, max(0, math.floor(base - top * size)))
        y1 = min(height, max(y0, math.ceil(base - bottom * size)))
        self.patch = image[y0:y1, x0:x1]
        self.size = size
        self.u: F = ((np.arange(x0, x1, dtype=np.float32) + (0.5 - x)) * (side / size))[None]
        self.v: F = (((base - 0.5) - np.arange(y0, y1, dtype=np.float32)) / size)[:, None]

    def edge(self, distance: F) -> F:
        """Coverage 0..1 from the distance inside an edge, in units: both float32 (h,w)."""
        out: F = np.clip(distance * self.size + 0.5, 0, 1)
        return out

    def round(self, u: float, v: float, ru: float, rv: float) -> F:
        """Approximate distance inside an ellipse: float32 (h,w), in units."""
        du, dv = (self.u - u) / ru, (self.v - v) / rv
        k = np.sqrt(du * du + dv * dv) + 1e-6
        du /= ru
        dv /= rv
        out: F = (1 - k) * k / (np.sqrt(du * du + dv * dv) + 1e-6)
        return out

    def disc(self, u: float, v: float, ru: float, rv: float) -> F:
        """Coverage of an ellipse: float32 (h,w), 0 to 1."""
        return self.edge(self.round(u, v, ru, rv))

    def within(self, *points: tuple[float, float]) -> F:
        """Distance inside a convex polygon, either way round: float32 (h,w), in units, up to 9."""
        after = [*points[1:], points[0]]
        turn = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, after, strict=True))
        out: F = np.full((self.v.size, self.u.size), 9, np.float32)
        for (au, av), (bu, bv) in zip(points, after, strict=True):
            du, dv = bu - au, bv - av
            scale = math.copysign(1.0, turn) / math.sqrt(du * du + dv * dv)
            out = np.minimum(out, (self.v - av) * (du * scale) - (self.u - au) * (dv * scale))
        return out

    def polygon(self, *points: tuple[float, float]) -> F:
        """Coverage of a convex polygon: float32 (h,w), 0 to 1."""
        return self.edge(self.within(*points))

    def rect(self, left: float, right: float, low: float, high: float) -> F:
        """Coverage of a rectangle: float32 (h,w), 0 to 1."""
        return self.polygon((left, low), (right, low), (right, high), (left, high))

    def soft(self, u: float, v: float, ru: float, rv: float) -> F:
        """1 in the middle of an ellipse, falling smoothly to 0 at its rim: float32 (h,w)."""
        du, dv = (self.u - u) / ru, (self.v - v) / rv
        k: F = np.clip(1 - du * du - dv * dv, 0, 1)
        return k * k

    def noise(self, du: float, dv: float, seed: int, octaves: int = 1) -> F:
        """`layered_noise` of so many cells a unit: float32 (h,w), about -1 to 1."""
        return layered_noise(self.v[:, 0] * dv, self.u[0] * du, seed, octaves)

    def fill(self, cover: F, color: F) -> None:
        """Lay a color (3,) or colors (h,w,3) over the part, with coverage (h,w).

        Coverage is float32, 0 to 1; colors are float32 or float64, RGB from 0, 1 is white.
        """
        self.patch += (color - self.patch) * cover[:, :, None]


def surface_of(pen: Pen, color: F, material: str, shade: F, seed: int) -> F:
    """Colors (h,w,3) of a surface: the color in its shade (h,w), textured by the material.

    Args:
        pen: at the thing.
        color: float32, shape (3,), RGB, 0 to 1.
        material: of `wooden`, `stone`, `metal`, or another one, which is nearly smooth.
        shade: float32 or float64, (h,w): factor of the color, from 0, around 1.
        seed: of the texture.

    Returns:
        dtype of the shade, (h,w,3), RGB from 0, 1 is white.
    """
    if material == "wooden":
        texture = 0.20 * pen.noise(3, 26, seed, 2) - 0.28 * (triangle_wave(pen.v * 5) > 0.9)
    elif material == "stone":
        texture = 0.34 * pen.noise(11, 11, seed, 3)
        texture = texture - 0.14 * (pen.noise(30, 30, seed + 5) > 0.5)
    elif material == "metal":
        band = triangle_wave(pen.u * 1.15 + pen.v * 0.45 + 0.12)
        bright = band * band * band
        out: F = color * (shade * (0.72 + 0.3 * band))[:, :, None]
        return out + (0.5 * bright * bright)[:, :, None]
    else:
        texture = 0.07 * pen.noise(7, 7, seed, 2)
    return color * (shade * (1 + texture.astype(np.float32)))[:, :, None]


def bulge_of(pen: Pen, u: float, v: float, ru: float, rv: float) -> tuple[F, F]:
    """Shade of a ball lit from the upper left, and its gloss in 0..1.

    Both are float32, (h,w); the shade is 0.58 to 1.08.
    """
    nu, nv = (pen.u - u) / ru, (pen.v - v) / rv
    up = np.sqrt(np.clip(1 - nu * nu - nv * nv, 0, 1))
    lit = np.clip(0.62 * up + 0.6 * nv - 0.5 * nu, 0, 1)
    gloss = lit * lit
    gloss = gloss * gloss
    gloss = gloss * gloss
    return 0.58 + 0.5 * lit, gloss * gloss * gloss
