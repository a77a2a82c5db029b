"""The things of a scene: their colors and shapes, how each is drawn, and where they are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.tiny.brush import F, Pen, Rgb, bulge_of, surface_of, to_rgb, triangle_wave

if TYPE_CHECKING:
    from pipeline.tiny.scene import Scene, Thing

COLORS: dict[str, Rgb] = {
    "red": (208, 36, 34),
    "orange": (244, 126, 20),
    "yellow": (246, 208, 40),
    "green": (46, 146, 58),
    "blue": (36, 88, 204),
    "purple": (128, 56, 176),
    "pink": (248, 138, 182),
    "white": (246, 246, 242),
    "black": (28, 28, 32),
    "brown": (122, 72, 38),
    "grey": (138, 140, 144),
}

# Of each thing: its width in units of the picture, its height and the area of its color in units
# of its width and width squared. What is named has to be found in the pixels.
SHAPES: dict[str, tuple[float, float, float]] = {
    "house": (0.40, 0.90, 0.47),
    "tree": (0.31, 1.50, 0.80),
    "boat": (0.46, 0.98, 0.43),
    "flower": (0.28, 1.60, 0.56),
    "ball": (0.30, 1.00, 0.74),
    "cube": (0.31, 0.95, 0.80),
    "cup": (0.33, 0.82, 0.46),
    "apple": (0.30, 1.05, 0.68),
}
SIZES = {"small": 0.76, "": 1.0, "large": 1.34}
HULL = 0.25  # the part of a boat that keeps its color when the sails have another
LOOSE = 1.04  # room for a thing in a row, in its widths


@dataclass(frozen=True)
class Place:
    """The place of one thing: the middle of its foot and its width, in pixels."""

    thing: Thing
    x: float
    base: float
    size: float


@dataclass(frozen=True)
class Light:
    """How the hour and the weather color things and land, both RGB factors; `side` is -1 or 1.

    The factors are float32, shape (3,), above 0, 1 in plain light.
    """

    things: F
    land: F
    side: float
    shadow: float
    night: bool


# Each thing is drawn about the middle of its foot, one unit wide.


@dataclass(frozen=True)
class Look:
    """Colors in the light of the hour; `breed` is one for all things of a group.

    Colors are float32, shape (3,), RGB from 0, 1 is white.
    """

    thing: Thing
    color: F
    trim: F
    light: Light
    seed: int
    breed: int

    def rgb(self, red: int, green: int, blue: int) -> F:
        """A color (3 numbers, 0 to 255) of a part, in the same light: float32, shape (3,)."""
        return to_rgb((red, green, blue)) * self.light.things


def _solid(pen: Pen, cover: F, look: Look, shade: F, gloss: F) -> None:
    """A thing of paint, wood, metal, stone or glass; glass shows what is behind it."""
    if look.thing.material == "glass":
        cover = cover * 0.70
        shade = shade * 1.1
    pen.fill(cover, surface_of(pen, look.color, look.thing.material, shade, look.seed))
    shine = {"metal": 1.0, "glass": 1.0, "": 0.55}.get(look.thing.material, 0.15)
    pen.fill(cover * gloss * shine, np.ones(3, np.float32))


def _rim(pen: Pen, inside: F, look: Look) -> None:
    """The bright edge of glass, from distances inside its outline."""
    if look.thing.material == "glass":
        line = np.clip(1 - np.abs(inside - 0.035) * 30, 0, 1)
        pen.fill(line * 0.5, np.minimum(look.color * 0.5 + 0.5, 1))


def _ball(pen: Pen, look: Look) -> None:
    shade, gloss = bulge_of(pen, 0, 0.5, 0.5, 0.5)
    inside = pen.round(0, 0.5, 0.5, 0.5)
    _solid(pen, pen.edge(inside), look, shade, gloss)
    _rim(pen, inside, look)


def _apple(pen: Pen, look: Look) -> None:
    shade, gloss = bulge_of(pen, 0, 0.45, 0.56, 0.52)
    inside = np.maximum(pen.round(-0.17, 0.46, 0.33, 0.43), pen.round(0.17, 0.46, 0.33, 0.43))
    inside = np.maximum(inside, pen.round(0, 0.4, 0.36, 0.38))
    _solid(pen, pen.edge(inside), look, shade, gloss)
    _rim(pen, inside, look)
    pen.fill(pen.soft(0, 0.82, 0.2, 0.1) * 0.55, look.color * 0.4)
    stem = pen.polygon((-0.025, 0.78), (0.03, 0.78), (0.09, 1.04), (0.03, 1.05))
    pen.fill(stem, look.rgb(84, 54, 30))
    pen.fill(pen.disc(0.2, 0.96, 0.15, 0.06), look.rgb(72, 140, 50))


def _cube(pen: Pen, look: Look) -> None:
    a, b, c, d, e, f, g = (
        (-0.5, 0.0), (0.2, 0.0), (0.5, 0.24), (0.5, 0.95), (-0.2, 0.95), (-0.5, 0.71), (0.2, 0.71)
    )  # fmt: skip
    whole = pen.polygon(a, b, c, d, e, f)
    flat = np.zeros_like(whole)
    # First the whole outline, so that no seam of the background shows between two faces.
    covers = (whole, pen.polygon(f, g, d, e), pen.polygon(b, c, d, g))
    for number, (cover, shade) in enumerate(zip(covers, (0.90, 1.10, 0.66), strict=True)):
        slope = shade + 0.08 * (pen.v - 0.5) + flat
        _solid(pen, cover, replace(look, seed=look.seed + number), slope, flat)
    shine = {"metal": 0.6, "glass": 0.6, "": 0.25}.get(look.thing.material, 0.0)
    for start, end in ((f, g), (g, d), (b, g)):
        u, v = (0.012, 0.0) if start[0] == end[0] else (0.0, 0.012)
        line = pen.polygon(start, end, (end[0] + u, end[1] + v), (start[0] + u, start[1] + v))
        pen.fill(line * shine, np.ones(3, np.float32))


def _cup(pen: Pen, look: Look) -> None:
    middle = -0.1  # so that the handle is within the width
    ring = np.minimum(pen.round(0.29, 0.42, 0.2, 0.22), -pen.round(0.29, 0.42, 0.115, 0.13))
    flat = np.zeros_like(ring)
    _solid(pen, pen.edge(ring), look, flat + 0.8, flat)
    inside = np.maximum(
        pen.within((-0.5, 0.72), (0.3, 0.72), (0.19, 0.07), (-0.39, 0.07)),
        pen.round(middle, 0.075, 0.29, 0.07),
    )
    n = (pen.u - middle) / 0.42
    shade = 1.02 - 0.36 * np.clip(n + 0.25, 0, 2) + flat
    gloss = np.clip(1 - np.abs(n + 0.5) * 7, 0, 1) * np.clip((pen.v - 0.15) * 4, 0, 1)
    _solid(pen, pen.edge(inside), look, shade, gloss * 0.8)
    _rim(pen, inside, look)
    pen.fill(pen.disc(middle, 0.72, 0.4, 0.1), np.minimum(look.color * 1.18 + 0.04, 1))
    pen.fill(pen.disc(middle, 0.715, 0.355, 0.08), look.color * 0.5)


def _house(pen: Pen, look: Look) -> None:
    flat = np.zeros((pen.v.size, pen.u.size), np.float32)

    def wall(cover: F, shade: float, seed: int) -> None:
        pen.fill(cover, surface_of(pen, look.color, look.thing.material, flat + shade, seed))
        if look.thing.material == "stone":
            row = np.floor(pen.v * 13)
            joint = (triangle_wave(pen.v * 13) > 0.82) | (
                triangle_wave(pen.u * 7 + row * 0.5) > 0.86
            )
            pen.fill(cover * joint * 0.3, look.color * 0.45)

    wall(pen.polygon((0.1, 0.0), (0.5, 0.07), (0.5, 0.5), (0.1, 0.5)), 0.72, look.seed)
    gable = ((-0.5, 0.0), (0.12, 0.0), (0.12, 0.5), (-0.19, 0.86), (-0.5, 0.5))
    wall(pen.polygon(*gable), 1.0, look.seed + 1)
    pen.fill(pen.rect(0.24, 0.33, 0.6, 0.95), look.rgb(126, 84, 72))
    tiles = 0.9 - 0.14 * (triangle_wave(pen.v * 12) > 0.7) + flat
    roof = pen.polygon((-0.2, 0.885), (0.34, 0.83), (0.57, 0.455), (0.14, 0.435))
    pen.fill(roof, surface_of(pen, look.trim, "", tiles, look.seed + 2))
    eaves = pen.polygon((-0.19, 0.82), (-0.19, 0.9), (-0.57, 0.46), (-0.53, 0.41))
    pen.fill(eaves, look.trim * 0.72)
    eaves = pen.polygon((-0.2, 0.9), (-0.2, 0.82), (0.125, 0.42), (0.16, 0.45))
    pen.fill(eaves, look.trim * 0.72)
    frame = look.rgb(70, 50, 40)
    glass = to_rgb((255, 214, 120)) if look.light.night else look.rgb(166, 196, 216)
    pen.fill(pen.rect(-0.26, -0.12, 0.0, 0.27), frame)
    for left in (-0.43, -0.06, 0.22):
        pen.fill(pen.rect(left - 0.018, left + 0.133, 0.182, 0.358), frame)
        pen.fill(pen.rect(left, left + 0.115, 0.2, 0.34), glass)


def _tree(pen: Pen, look: Look) -> None:
    trunk = pen.polygon((-0.085, 0), (0.085, 0), (0.045, 0.7), (-0.045, 0.7))
    shade: F = 1 - np.clip(pen.u * 4, -0.2, 0.3) + np.zeros_like(trunk)
    pen.fill(trunk, surface_of(pen, look.rgb(96, 66, 42), "wooden", shade, look.seed))
    leaves = pen.noise(9, 9, look.seed, 3)
    fir = look.breed % 2 and look.thing.color == "green" and look.thing.size != "small"
    if fir:
        up = (pen.v - 0.16) / 1.32
        tier = up * 4 - np.floor(up * 4)  # 0 at the foot of each of four tiers
        wide = 0.56 * (1.02 - up) * (1 - 0.36 * tier)
        inside = np.minimum(np.minimum(wide - np.abs(pen.u), 1.48 - pen.v), pen.v - 0.16)
        cover = pen.edge(inside + 0.012 * leaves)
        shade = (1.0 - 0.5 * np.clip(pen.u, -0.2, 0.6)) * (1.08 - 0.26 * tier)
    else:
        inside = np.maximum(pen.round(0, 1.02, 0.43, 0.45), pen.round(-0.2, 0.8, 0.29, 0.26))
        inside = np.maximum(inside, pen.round(0.21, 0.82, 0.28, 0.25))
        cover = pen.edge(inside + 0.055 * leaves)
        shade, _ = bulge_of(pen, 0, 0.95, 0.62, 0.66)
    pen.fill(cover, look.color * (shade * (1 + 0.24 * leaves))[:, :, None])


def _boat(pen: Pen, look: Look) -> None:
    pen.fill(pen.rect(-0.035, -0.01, 0.2, 0.97), look.rgb(92, 66, 46))
    cloth = 0.88 + 0.1 * triangle_wave(pen.v * 2 + pen.u * 2)
    main = pen.polygon((0.01, 0.94), (0.01, 0.31), (0.42, 0.31))
    pen.fill(main, look.trim * cloth[:, :, None])
    if not look.thing.trim:
        # Sails of another color are few, so that the hull names the boat.
        jib = pen.polygon((-0.05, 0.86), (-0.05, 0.31), (-0.36, 0.31))
        pen.fill(jib, look.trim * (cloth * 0.86)[:, :, None])
    hull = pen.polygon((-0.5, 0.26), (0.5, 0.27), (0.37, -0.02), (-0.4, -0.02))
    shade = 0.8 + 0.7 * np.clip(pen.v, 0, 0.3) + np.zeros_like(hull)
    pen.fill(hull, surface_of(pen, look.color, look.thing.material, shade, look.seed))
    deck = pen.polygon((-0.5, 0.26), (0.5, 0.27), (0.49, 0.235), (-0.485, 0.225))
    pen.fill(deck * 0.6, look.color * 0.55)


# A circle in seven steps, written down: the last bits of sine and cosine differ by machine.
_PETALS = (
    (0.0, 1.0), (0.782, 0.623), (0.975, -0.223), (0.434, -0.901), (-0.434, -0.901),
    (-0.975, -0.223), (-0.782, 0.623),
)  # fmt: skip


def _flower(pen: Pen, look: Look) -> None:
    leaf = look.rgb(54, 122, 48)
    pen.fill(pen.rect(-0.028, 0.028, -0.05, 1.1), leaf)
    for side in (-1, 1):
        blade = np.minimum(
            pen.round(side * 0.24, 0.22, 0.26, 0.18), pen.round(side * 0.17, 0.42, 0.26, 0.24)
        )
        pen.fill(pen.edge(blade), leaf * (0.95 + 0.1 * side))
    turn = 1 if look.seed % 20 < 10 else -1
    for u, v in _PETALS:
        inside = pen.round(0.29 * u, 1.1 + 0.29 * v * turn, 0.21, 0.21)
        petal = 0.82 + np.clip(inside * 1.4, 0, 0.25)
        pen.fill(pen.edge(inside), look.color * petal[:, :, None])
    pen.fill(pen.disc(0, 1.1, 0.16, 0.16), look.trim)
    pen.fill(pen.soft(-0.04, 1.14, 0.12, 0.1) * 0.4, np.ones(3, np.float32))


THINGS: dict[str, Callable[[Pen, Look], None]] = {
    "house": _house, "tree": _tree, "boat": _boat, "flower": _flower,
    "ball": _ball, "cube": _cube, "cup": _cup, "apple": _apple,
}  # fmt: skip


def trim_color(thing: Thing) -> Rgb:
    """The colour (3 whole numbers, 0 to 255) of the roof, the sails or the middle of a flower."""
    if thing.trim:
        return COLORS[thing.trim]
    if thing.name == "house":
        return (104, 62, 52) if thing.color not in ("brown", "red") else (78, 76, 82)
    if thing.name == "flower":
        return (112, 70, 30) if thing.color in ("yellow", "orange") else (246, 204, 60)
    return COLORS[thing.color]


def draw_thing(image: F, place: Place, light: Light, seed: int, breed: int) -> None:
    """Paint a thing in its place, over the image (float32, H x W x 3, RGB from 0, 1 is white)."""
    thing = place.thing
    color, trim = to_rgb(COLORS[thing.color]), to_rgb(trim_color(thing))
    if thing.name == "tree" and thing.color == "green":
        color = color * 0.8  # darker than any grass
    side = light.side if thing.name in ("house", "cube") else 1.0
    pen = Pen(image, place.x, place.base, place.size, side=side)
    look = Look(thing, color * light.things, trim * light.things, light, seed, breed)
    THINGS[thing.name](pen, look)


def draw_shadow(image: F, place: Place, light: Light, strength: float) -> None:
    """A soft shadow on the ground, away from the light.

    The image is float32, H x W x 3, RGB from 0, 1 is white, and is painted in place; the strength
    is 0 to 1.
    """
    wide = {"flower": 0.22, "tree": 0.5}.get(place.thing.name, 0.66)
    pen = Pen(image, place.x, place.base, place.size, (-1.3, 1.3, -0.3, 0.5), light.side)
    dark = pen.soft(0.24, 0.04, wide + 0.1, 0.16) * strength
    pen.patch *= 1 - dark[:, :, None]


def draw_mirror(image: F, place: Place, seed: int) -> None:
    """A boat's reflection: what is above its foot, upside down, broken by ripples.

    The image is float32, H x W x 3, RGB from 0, 1 is white, and is painted in place.
    """
    pen = Pen(image, place.x, place.base, place.size, (-0.62, 0.62, -0.55, 0.0))
    height = pen.patch.shape[0]
    if not height:
        return
    above = Pen(image, place.x, place.base, place.size, (-0.62, 0.62, 0.0, 1.1)).patch
    wave = pen.noise(1.5, 30, seed) * 0.35 + 0.65
    rows = np.clip(above.shape[0] - 1 - np.arange(height) * 3 // 2, 0, above.shape[0] - 1)
    fade = np.clip(1 + pen.v * 1.9, 0, 1) * np.clip((0.6 - np.abs(pen.u)) * 9, 0, 1)
    hull = np.clip((0.52 + pen.v * 0.3 - np.abs(pen.u)) * 12, 0, 1)
    pen.fill(0.5 * fade * wave * hull, above[rows] * 0.8)


def _width(thing: Thing) -> float:
    """The width of a thing in units of the image."""
    return SHAPES[thing.name][0] * SIZES[thing.size]


def _room(thing: Thing) -> float:
    """The width reserved for a thing: a small one gets no less, or it would not look small."""
    return SHAPES[thing.name][0] * max(1.0, SIZES[thing.size])


def _fit(things: Sequence[Thing], width: float, unit: float, most: float) -> float:
    """The factor by which a row of things has to shrink to fit, at most 1."""
    total = sum(_room(t) * t.count for t in things) * LOOSE + 0.07 * (len(things) - 1)
    tallest = max(_room(t) * SHAPES[t.name][1] for t in things)
    return min(1.0, 0.95 * width / (total * unit), most / (tallest * unit))


def _row(
    things: Sequence[Thing], width: float, unit: float, base: float, shrink: float,
    deep: float, share: float,
) -> list[Place]:  # fmt: skip
    """Groups from left to right; `share` of the free room is left of them, 0..1."""
    sizes = [_width(t) * unit * shrink for t in things]
    gap = 0.07 * unit * shrink
    total = sum(t.count * s for t, s in zip(things, sizes, strict=True)) * LOOSE
    total += gap * (len(things) - 1)
    x = (width - total) * share
    x = min(max(x, 0.025 * width), 0.975 * width - total)
    out: list[Place] = []
    for thing, size in zip(things, sizes, strict=True):
        for number in range(thing.count):
            # In a zigzag, so that a row of many has depth.
            back = deep * (1 if number % 2 else -1) if thing.count > 2 else 0.0
            out.append(Place(thing, x + size * LOOSE / 2, base - back, size * (1 - back / unit)))
            x += size * LOOSE
        x += gap
    return out


def places(scene: Scene, width: float, height: float, rng: random.Random) -> list[Place]:
    """The place of each thing of a scene in an image of this size, the farthest first."""
    things = scene.things
    unit = min(math.sqrt(width * height), 1.45 * height, 1.45 * width)
    land = scene.kind == "landscape"
    near = height * ((0.88 if scene.place != "on" else 0.80) if land else 0.79)
    far = height * ((0.68 if scene.place == "on" else 0.73) if land else 0.63)
    most = height * ((0.54 if scene.place == "on" else 0.58) if land else 0.66)
    drawn = rng.random()
    share = {"left": 0.06, "right": 0.94}.get(things[0].position, 0.25 + 0.5 * drawn)
    where = things[1].position if len(things) > 1 else ""
    deep = 0.025 * height
    if where in ("above", "below"):
        high, low = (things[1], things[0]) if where == "above" else (things[0], things[1])
        shrink = min(_fit([high], width * 0.86, unit, height * 0.27),
                     _fit([low], width, unit, height * 0.36))  # fmt: skip
        share = 0.3 + 0.4 * drawn
        return [*_row([high], width, unit, 0.36 * height, shrink, 0.0, 0.5),
                *_row([low], width, unit, near, shrink, deep, share)]  # fmt: skip
    if where in ("in front", "behind"):
        front, back = (things[1], things[0]) if where == "in front" else (things[0], things[1])
        wide, deep = _room(front) * unit, _room(back) * unit * 0.9
        # Both rows have one step; half a step between them lets each see past the other.
        step = 1.28 * max(wide, deep)
        shift = 0.5 if (front.count - back.count) % 2 == 0 else 0.0
        columns = max(front.count, back.count) - 1 + shift
        tall = max(wide * SHAPES[front.name][1], deep * SHAPES[back.name][1])
        shrink = min(1.0, 0.95 * width / (columns * step + max(wide, deep)), 0.9 * most / tall)
        side = 0.5 if drawn < 0.5 else -0.5
        out = []
        for thing, size, base, move in (
            (back, 0.9 * _width(back), far, -side),
            (front, _width(front), near, side),
        ):
            first = move * shift - (thing.count - 1) / 2
            xs = [width / 2 + (first + i) * step * shrink for i in range(thing.count)]
            out += [Place(thing, x, base, size * unit * shrink) for x in xs]
        return out
    order = [things[0]]
    for thing in things[1:]:
        left = thing.position == "left" or (thing.position == "beside" and rng.random() < 0.5)
        order = [thing, *order] if left else [*order, thing]
    row = _row(order, width, unit, near, _fit(order, width, unit, most), deep, share)
    return sorted(row, key=lambda place: place.base)


def color_shares(scene: Scene) -> list[float]:
    """The approximate share of a square image, 0 to 1, that the color of each thing fills."""
    shares = [0.0] * len(scene.things)
    for place in places(scene, 1.0, 1.0, random.Random(0)):
        thing = place.thing
        fill = HULL if thing.name == "boat" and thing.trim else SHAPES[thing.name][2]
        shares[scene.things.index(thing)] += fill * place.size * place.size
    return shares
