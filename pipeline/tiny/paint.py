"""A scene, a size and a seed in, pixels out: landscapes and still lifes of `pipeline.tiny.scenes`.

One seed gives the same bytes on every machine; see `pipeline.tiny.brush`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.tiny.brush import (
    F,
    Pen,
    Rgb,
    count_up,
    hash_noise,
    layered_noise,
    to_rgb,
    triangle_wave,
    value_noise,
)
from pipeline.tiny.things import COLORS, Light, draw_mirror, draw_shadow, draw_thing, places

if TYPE_CHECKING:
    from pipeline.tiny.scene import Scene

# From the zenith to the horizon; the color that is named has the most room.
SKIES: dict[tuple[str, str, str], tuple[Rgb, Rgb, Rgb]] = {
    ("clear", "day", "blue"): ((42, 106, 206), (92, 156, 230), (186, 218, 246)),
    ("cloudy", "day", "grey"): ((124, 132, 144), (164, 170, 178), (208, 212, 214)),
    ("rainy", "day", "grey"): ((86, 94, 108), (118, 126, 138), (158, 164, 170)),
    ("snowy", "day", "grey"): ((150, 158, 170), (184, 190, 200), (214, 219, 226)),
    ("foggy", "day", "grey"): ((182, 189, 196), (202, 208, 212), (222, 226, 228)),
    ("clear", "sunset", "orange"): ((150, 70, 66), (238, 122, 44), (255, 178, 74)),
    ("clear", "sunset", "red"): ((104, 28, 54), (206, 44, 42), (248, 122, 62)),
    ("clear", "sunset", "pink"): ((132, 76, 150), (232, 104, 156), (255, 172, 150)),
    ("clear", "sunset", "purple"): ((52, 30, 104), (124, 58, 156), (238, 120, 132)),
    ("clear", "dawn", "pink"): ((196, 190, 222), (246, 190, 210), (255, 224, 216)),
    ("clear", "dawn", "yellow"): ((196, 212, 214), (248, 226, 146), (255, 242, 196)),
    ("clear", "dawn", "orange"): ((206, 190, 190), (252, 192, 134), (255, 224, 180)),
    ("clear", "dawn", "purple"): ((158, 142, 206), (198, 170, 226), (246, 212, 226)),
    ("foggy", "dawn", "pink"): ((212, 196, 208), (228, 204, 210), (238, 216, 214)),
    ("clear", "night", "black"): ((4, 4, 9), (9, 10, 18), (22, 24, 40)),
    ("clear", "night", "dark blue"): ((6, 12, 48), (14, 26, 78), (34, 52, 116)),
    ("rainy", "night", "black"): ((10, 11, 16), (20, 22, 30), (38, 42, 54)),
    ("snowy", "night", "dark blue"): ((12, 18, 50), (24, 34, 76), (48, 60, 104)),
}
# From the horizon to the foot of the picture.
GROUNDS: dict[tuple[str, str], tuple[Rgb, Rgb]] = {
    ("sea", "blue"): ((74, 138, 196), (16, 62, 132)),
    ("sea", "green"): ((98, 172, 132), (20, 96, 70)),
    ("sea", "grey"): ((146, 156, 164), (78, 90, 102)),
    ("field", "green"): ((158, 190, 98), (70, 128, 44)),
    ("field", "yellow"): ((238, 212, 112), (212, 164, 40)),
    ("field", "brown"): ((164, 122, 84), (108, 72, 42)),
    ("field", "white"): ((240, 243, 248), (208, 218, 234)),
    ("desert", "yellow"): ((240, 212, 152), (214, 164, 98)),
    ("plain", "yellow"): ((206, 194, 132), (160, 144, 74)),
    ("plain", "white"): ((240, 243, 248), (208, 218, 234)),
}
MOUNTAINS: dict[str, Rgb] = {
    "blue": (84, 116, 176),
    "grey": (126, 130, 138),
    "green": (84, 124, 78),
    "purple": (124, 98, 160),
    "brown": (132, 98, 74),
    "white": (222, 228, 238),
}
CLOUDS: dict[str, Rgb] = {
    "day": (250, 250, 250),
    "sunset": (255, 206, 190),
    "dawn": (255, 250, 248),
}
LIGHTS: dict[str, Rgb] = {
    "yellow": (255, 226, 84), "orange": (255, 150, 40), "red": (240, 66, 40),
    "white": (248, 248, 240),
}  # fmt: skip

# --- Landscapes --------------------------------------------------------------------------------


def _gradient(stops: Sequence[Rgb], at: F) -> F:
    """Colors (H x 1 x 3) at shares `at` (H) of the way through the stops."""
    colors = np.array(stops, np.float32) / 255
    t = np.clip(at, 0, 1) * (len(stops) - 1)
    cell = np.minimum(t.astype(np.intp), len(stops) - 2)
    share = (t - cell.astype(np.float32))[:, None]
    out: F = (colors[cell] + (colors[cell + 1] - colors[cell]) * share)[:, None]
    return out


class _View:
    """An unfinished image, with what its parts need to know about each other."""

    def __init__(
        self, scene: Scene, image: F, rng: random.Random, seed: int, jitter: float
    ) -> None:
        self.scene, self.image, self.rng = scene, image, rng
        self.seed = seed * 4099 & 0xFFFFFFFF  # no two pictures share noise: a part adds < 4099
        self.height: int = image.shape[0]
        self.width: int = image.shape[1]
        self.unit: float = min(
            math.sqrt(self.width * self.height), 1.45 * self.height, 1.45 * self.width
        )
        self._moves = random.Random(seed ^ 0x6A09E667)
        self._jitter: float = jitter * self.unit
        stand = places(scene, self.width, self.height, rng)
        self.xs = [place.x for place in stand]  # not moved, so that the sun does not leap
        self.places = [
            replace(p, x=p.x + self.move(), base=p.base + 0.5 * self.move()) for p in stand
        ]
        self.y: F = (np.arange(self.height, dtype=np.float32) + 0.5) / self.height
        self.x: F = (np.arange(self.width, dtype=np.float32) + 0.5) / self.height
        self.horizon = self.height * (0.40 if scene.place == "beside" else rng.uniform(0.46, 0.54))
        self.horizon = round(self.horizon + 0.4 * self.move())

    def move(self) -> float:
        """A step in pixels, no longer than the jitter."""
        return self._jitter * self._moves.uniform(-1, 1)


def _gap(view: _View, ratio: float) -> float:
    """An x for sun or moon: of a few candidates, the farthest from all things."""
    tries: list[float] = [view.width * (ratio + (1 - 2 * ratio) * i / 8) for i in range(9)]
    view.rng.shuffle(tries)
    return max(tries, key=lambda x: min(abs(at - x) for at in view.xs))


def _light(view: _View) -> Light:
    time, weather = view.scene.time, view.scene.weather
    things = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.93, 0.87), "dawn": (1.0, 0.97, 0.96),
              "night": (0.84, 0.85, 0.89)}[time]  # fmt: skip
    land = {"day": (1.0, 1.0, 1.0), "sunset": (0.86, 0.66, 0.56), "dawn": (0.98, 0.92, 0.92),
            "night": (0.29, 0.32, 0.42)}[time]  # fmt: skip
    dull = 0.86 if weather == "rainy" and time == "day" else 1.0
    if weather == "snowy" and time == "night":
        land = (0.40, 0.44, 0.58)
    shadow = 0.5 if weather == "clear" and time != "night" else 0.3
    side = 1.0 if view.rng.random() < 0.5 else -1.0
    return Light(
        np.array(things, np.float32) * (0.93 if dull < 1 else 1),
        np.array(land, np.float32) * dull, side, shadow, time == "night",
    )  # fmt: skip


def _sky(view: _View) -> None:
    scene, image, horizon = view.scene, view.image, view.horizon
    stops = SKIES[(scene.weather, scene.time, scene.sky_color)]
    y = view.y[: horizon + 1]
    sky = _gradient(stops, y * view.height / max(horizon, 1))
    strokes = layered_noise(y * 16, view.x * 4, view.seed + 1)
    image[: horizon + 1] = sky * (1 + 0.06 * strokes)[:, :, None]
    if scene.weather in ("cloudy", "rainy", "snowy", "foggy"):
        billows = np.clip(layered_noise(y * 7, view.x * 3.2, view.seed + 5, 4) + 0.1, -0.6, 0.8)
        strength = {"cloudy": 0.30, "rainy": 0.30, "snowy": 0.12, "foggy": 0.05}[scene.weather]
        image[: horizon + 1] *= (1 + strength * billows)[:, :, None]
    if scene.stars:
        for _ in range(70):
            sx, sy = view.rng.random() * view.width, view.rng.random() * horizon * 0.96
            bright = view.rng.random()
            radius = view.height * (0.0028 + 0.005 * bright * bright * bright)
            pen = Pen(image, sx, sy, max(radius, 0.7), (-2.2, 2.2, -2.2, 2.2))
            pen.fill(pen.soft(0, 0, 2, 2), np.array([1, 0.98, 0.9], np.float32))
    slots = scene.clouds + (1 if scene.light and scene.time in ("day", "night") else 0)
    order = list(range(slots))
    view.rng.shuffle(order)
    if scene.light:
        _sun(view, order.pop() if scene.time in ("day", "night") else None, slots)
    for slot in order:
        _cloud(view, slot, slots)


def _sun(view: _View, slot: int | None, slots: int) -> None:
    """Sun or moon with its glow; a low one is where no thing hides it."""
    scene, image = view.scene, view.image
    radius = view.unit * (0.065 if slot is not None else 0.085)
    if slot is None:
        # Low, but no mountain and no wood may hide all of it.
        rise = {"mountains": 0.2, "forest": 0.15}.get(scene.backdrop, 0.0) * view.height
        x, y = _gap(view, 0.1), view.horizon - max(rise, radius * 0.55)
    else:
        x, y = (slot + view.rng.uniform(0.4, 0.6)) / slots * view.width, 0.14 * view.height
        if slots == 1:
            x = _gap(view, 0.12)
    x, y = x + view.move(), y + view.move()
    color = to_rgb(LIGHTS[scene.light_color])
    pen = Pen(image, x, y, radius, (-6, 6, -6, 6))
    glow = pen.soft(0, 0, 6, 6)
    pen.fill(glow * glow * (0.25 if scene.time == "night" else 0.5), color * 0.6 + 0.4)
    disc = pen.disc(0, 0, 1, 1)
    tone = np.ones_like(disc)
    if scene.light == "moon":
        tone = 1 - 0.16 * np.clip(pen.noise(1.6, 1.6, view.seed + 9, 2) * 2, 0, 1)
    pen.fill(disc, color * tone[:, :, None])


def _cloud(view: _View, slot: int, slots: int) -> None:
    """One cloud of a few puffs, whole and apart from the others."""
    rng = view.rng
    size = min(0.80 * view.width / slots, 0.36 * view.unit) * rng.uniform(0.86, 1.0)
    x = (slot + rng.uniform(0.42, 0.58)) / slots * view.width
    y = view.height * rng.uniform(0.11, 0.18)
    pen = Pen(view.image, x + view.move(), y + view.move(), size, (-0.6, 0.6, -0.2, 0.5))
    puffs = [(-0.3, 0.02, 0.17), (0.3, 0.02, 0.18), (-0.08, 0.1, 0.22), (0.14, 0.08, 0.19)]
    inside = pen.round(0, -0.02, 0.48, 0.09)
    for u, v, r in puffs:
        inside = np.maximum(inside, pen.round(u + rng.uniform(-0.03, 0.03), v, r, r * 0.72))
    fluff = pen.noise(8, 8, view.seed + 20 + slot, 2)
    shade = 0.93 + np.clip(pen.v * 0.4, -0.12, 0.07) + 0.04 * fluff
    cover = np.clip((inside + 0.03 * fluff) * 22 + 0.5, 0, 1)
    pen.fill(cover, to_rgb(CLOUDS[view.scene.time]) * shade[:, :, None])


def _ridge(view: _View, heights: F, colors: F) -> None:
    """Lay colors (h,W,3) under a line of heights (W,) in pixels above the horizon."""
    top = max(0, view.horizon - math.ceil(float(heights.max())) - 1)
    y = np.arange(top, view.horizon + 1, dtype=np.float32)[:, None]
    cover = np.clip(y - (view.horizon - heights)[None] + 1, 0, 1)
    part = view.image[top : view.horizon + 1]
    part += (colors[-part.shape[0] :] - part) * cover[:, :, None]


def _mountains(view: _View, light: Light) -> None:
    scene, rng = view.scene, view.rng
    depth = view.horizon + 2
    color = to_rgb(MOUNTAINS[scene.backdrop_color])
    wide = view.width / view.height
    y = (np.arange(depth, dtype=np.float32) - depth) / view.height
    x = view.x
    rough = layered_noise(np.zeros(1, np.float32), x * 9, view.seed + 30, 4)[0]
    peaks = max(3, round(wide * 3))
    best = np.full(view.width, -1, np.float32)
    second = best.copy()
    side = np.zeros(view.width, np.float32)
    for i in range(peaks):
        at = wide * (i + rng.uniform(0.25, 0.75)) / peaks
        tall, slope = rng.uniform(0.12, 0.235), rng.uniform(0.5, 0.85)
        rise = tall - np.abs(x - at) * slope
        side = np.where(rise > best, x - at, side)
        second = np.maximum(second, np.minimum(rise, best))
        best = np.maximum(best, rise)
    heights = np.maximum(best + rough * 0.032, 0.03) * view.height
    cliffs = layered_noise(y * 14, x * 10, view.seed + 34)
    lit = np.clip(-light.side * (side[None] + cliffs * 0.05) * 30, -1, 1)
    lit *= np.clip((best - second) * 18, 0, 1)  # no hard line where two mountains meet
    shade = 0.94 + 0.13 * lit + 0.10 * cliffs
    colors = color * shade[:, :, None]
    if scene.snow_caps or scene.weather == "snowy":
        # Snow down to a ragged line, farther down where the mountain is higher.
        high = -y[:, None] * view.height - (heights * 0.58)[None]
        snow = np.clip(high / view.height * 50 + cliffs * 2, 0, 1)
        white = to_rgb((246, 248, 252)) * (shade * 1.02)[:, :, None]
        colors += (white - colors) * snow[:, :, None]
    colors *= light.land * 0.4 + 0.6 if scene.time != "night" else light.land
    if scene.time != "night":
        haze = np.clip(1 + y * 5, 0, 1)[:, None, None] * 0.34
        colors += (to_rgb(SKIES[(scene.weather, scene.time, scene.sky_color)][2]) - colors) * haze
    _ridge(view, heights, colors)


def _forest(view: _View, light: Light) -> None:
    """Two rows of firs along the horizon, the farther one paler."""
    depth = view.horizon + 2
    y = (np.arange(depth, dtype=np.float32) - depth) / view.height
    for row, (pitch, tall, tone) in enumerate(((15, 0.15, 0.82), (11, 0.115, 0.58))):
        at = view.x * pitch + (0.37 * row)
        cell = np.floor(at)
        spread = hash_noise(count_up(row, 1), cell.astype(np.uint32), view.seed + 40)
        firs = (1 - np.abs(at - cell - 0.5) * 2) * (0.5 + 0.6 * spread)
        rough = value_noise(np.zeros(1, np.float32), view.x * 130, view.seed + 43)[0]
        heights = (0.035 + tall * firs + 0.006 * rough) * view.height
        leaves = layered_noise(y * 40, view.x * 30, view.seed + 44 + row, 2)
        shade = tone * (1 + 0.25 * leaves)
        colors = to_rgb((66, 118, 70)) * light.land * shade[:, :, None]
        if view.scene.weather == "snowy":
            colors += (light.land - colors) * np.clip(leaves - 0.1, 0, 0.5)[:, :, None]
        _ridge(view, heights, colors)


def _land(view: _View, light: Light) -> None:
    scene, horizon = view.scene, view.horizon
    ground = scene.ground if scene.place == "in" else "field"
    name = scene.ground_color if scene.place == "in" else "green"
    if scene.weather == "snowy":
        name = "white"
    part = view.image[horizon:]
    t = np.clip(np.arange(part.shape[0], dtype=np.float32) / max(part.shape[0] - 1, 1), 0, 1)
    colors = _gradient(GROUNDS[(ground, name)], t)
    # Rows lie closer to each other the farther away they are.
    away = 1 / (t + 0.12)
    tufts = layered_noise(away * 5, view.x * 7, view.seed + 50, 4)
    shade = 1 + (0.14 if name != "white" else 0.05) * tufts
    x = view.x[None] - (view.width / view.height / 2)
    if ground == "field" and name in ("yellow", "brown", "green"):
        rows = triangle_wave(x * away[:, None] * 1.7 + view.rng.random())
        shade += (rows - 0.5) * np.clip(t * 3, 0, 1)[:, None] * 0.16
    if ground == "desert":
        dunes = triangle_wave(
            away[:, None] * 0.9 + layered_noise(away * 0.5, view.x * 2, view.seed + 56, 2) * 0.8
        )
        shade += (dunes - 0.5) * 0.26
    if ground == "plain":
        shade += 0.10 * value_noise(away * 16, view.x * 3, view.seed + 58)
    part[:] = colors * light.land * shade[:, :, None]
    _haze(view, 0.15 if scene.backdrop == "forest" else 0.6)


def _haze(view: _View, strength: float) -> None:
    """Haze in front of distant things, so that the horizon is no hard line."""
    if view.scene.time != "night":
        part = view.image[view.horizon :]
        far = np.clip(1 - np.arange(part.shape[0], dtype=np.float32) / (0.09 * view.height), 0, 1)
        sky = to_rgb(SKIES[(view.scene.weather, view.scene.time, view.scene.sky_color)][2])
        part += (sky - part) * (strength * far * far)[:, None, None]


_NIGHT_WATER = np.array([0.34, 0.40, 0.62], np.float32)


def _water(view: _View, light: Light) -> None:
    """Sea from the horizon down, or a lake in the land: sky and hills upside down, and ripples."""
    scene, horizon, height = view.scene, view.horizon, view.height
    part = view.image[horizon:]
    deep = part.shape[0]
    t = np.arange(deep, dtype=np.float32) / max(deep - 1, 1)
    away = 1 / (t + 0.1)
    ripples = layered_noise(away * 9, view.x * 5, view.seed + 60)
    name = scene.ground_color or "blue"
    tone = _NIGHT_WATER if light.night else light.land
    colors = _gradient(GROUNDS[("sea", name.replace("dark ", ""))], t) * tone
    rows = horizon - 1 - np.arange(deep) * max(horizon - 1, 1) // max(deep, 1)
    wave = np.rint(ripples[:, view.width // 2] * (0.03 * height) * t).astype(np.intp)
    mirror = view.image[np.clip(rows + wave, 0, horizon)]
    share = 0.62 if scene.time in ("sunset", "dawn") else 0.34
    # Weaker towards the viewer: the clouds in the water are not to be counted.
    mix = (share * (1 - 0.78 * t))[:, None] + 0.16 * ripples
    water = colors + (mirror - colors) * np.clip(mix, 0.05, 0.9)[:, :, None]
    water *= (1 + 0.12 * ripples)[:, :, None]
    if scene.ground == "sea" and scene.place == "on":
        part[:] = water
        _haze(view, 0.5)
        return
    if scene.ground == "sea":
        rough = layered_noise(np.zeros(1, np.float32), view.x * 4, view.seed + 66)
        shore = (0.585 + 0.012 * rough) * height
        y = np.arange(horizon, height, dtype=np.float32)[:, None]
        cover = np.clip(shore - y, 0, 1)
        sand = np.clip((shore - y) / (0.03 * height) + 1.5, 0, 1)
        if scene.weather != "snowy":
            part += (to_rgb((232, 208, 158)) * light.land - part) * (sand * 0.9)[:, :, None]
    else:
        afloat = scene.place == "on"
        low = (0.95 if afloat else 0.69) * height
        high = max((0.53 if afloat else 0.5) * height, horizon + 0.035 * height)
        half = (0.54 if afloat else 0.46) * view.width
        pen = Pen(view.image, view.width / 2, (low + high) / 2, half, (-9, 9, -9, 9))
        inside = pen.round(0, 0, 1, (low - high) / 2 / half)[horizon - height :]
        inside = inside + 0.05 * layered_noise(away * 1.5, view.x * 4, view.seed + 68)
        part *= 1 - 0.3 * np.clip(inside * 40 + 1.2, 0, 1)[:, :, None]
        cover = pen.edge(inside)
    part += (water - part) * cover[:, :, None]


def _weather(view: _View) -> None:
    """Rain, snow and fog in front of everything, thin enough to leave things their color."""
    scene, image, height = view.scene, view.image, view.height
    rows, columns = np.arange(height, dtype=np.float32), np.arange(view.width, dtype=np.float32)
    if scene.weather == "foggy":
        haze = _gradient(SKIES[("foggy", scene.time, scene.sky_color)][1:], view.y)
        away = np.clip(1 - np.abs(rows - view.horizon) / (0.5 * height), 0, 1)
        drift = layered_noise(view.y * 5, view.x * 2, view.seed + 70)
        share = 0.14 + 0.12 * away[:, None] + 0.06 * drift
        image += (haze - image) * share[:, :, None]
    elif scene.weather == "rainy":
        scale = 256 / view.unit
        at = (columns[None] + rows[:, None] * 0.2) * (scale / 2.6)
        lane = np.floor(at)
        chance = hash_noise(count_up(0, 1), lane.astype(np.int64).astype(np.uint32), view.seed + 74)
        fall = rows[:, None] * (scale / 34) - chance * 19
        drop = np.clip(triangle_wave(fall) * 3 - 2, 0, 1) * (chance > 0.45)
        drop *= 1 - np.abs(at - lane - 0.5) * 2
        image += (0.92 - image) * (drop * 0.42)[:, :, None]
    elif scene.weather == "snowy":
        for size, share, number in ((13.0, 0.5, 0), (24.0, 0.75, 1)):
            cell = size * view.unit / 256
            y, x = rows / cell + (number / 2), columns / cell
            cy, cx = np.floor(y).astype(np.uint32)[:, None], np.floor(x).astype(np.uint32)[None]
            dy = (y - np.floor(y))[:, None] - (0.25 + 0.5 * hash_noise(cy, cx, view.seed + 80))
            dx = (x - np.floor(x))[None] - (0.25 + 0.5 * hash_noise(cy, cx, view.seed + 81))
            radius = 0.05 + 0.08 * hash_noise(cy, cx, view.seed + 82 + number)
            flake = np.clip((radius - np.sqrt(dy * dy + dx * dx)) * cell + 0.5, 0, 1)
            image += (0.97 - image) * (flake * share)[:, :, None]


def _landscape(view: _View) -> Light:
    scene = view.scene
    light = _light(view)
    _sky(view)
    if scene.backdrop == "mountains":
        _mountains(view, light)
    elif scene.backdrop == "forest":
        _forest(view, light)
    if scene.ground != "sea" or scene.place != "on":
        _land(view, light)
    if scene.ground in ("sea", "lake"):
        _water(view, light)
    return light


# --- Still lifes -------------------------------------------------------------------------------


def _boards(view: _View, pen_seed: int, color: Rgb, material: str, top: float) -> F:
    """Colors of a level surface from row `top` to the foot of the image, seen from above."""
    rows = np.arange(round(top), view.height, dtype=np.float32)
    t = (rows - top) / max(view.height - top, 1)
    x = view.x[None] - (view.width / view.height / 2)
    away = 1 / (t + 0.55)
    along = x * away[:, None]
    shade = (0.86 + 0.22 * t)[:, None] + np.zeros_like(along)
    if material == "wooden":
        plank = along * 4.2 + 40
        tone = hash_noise(count_up(0, 1), np.floor(plank).astype(np.uint32), pen_seed)
        seam = np.clip((triangle_wave(plank) - 0.93) * 16, 0, 1)
        grain = layered_noise(t * 3, view.x * 34, pen_seed, 2)
        shade *= 1 + 0.14 * (tone - 0.5) + 0.1 * grain - 0.3 * seam
    elif material == "stone":
        shade *= 1 + 0.2 * layered_noise(away * 22, view.x * 16, pen_seed, 4)
    elif material == "metal":
        sheen = triangle_wave(along * 0.55 + t[:, None] * 0.4 + 0.2)
        shade = shade * (0.8 + 0.42 * sheen * sheen)
        shade += 0.03 * value_noise(t * 160, view.x * 3, pen_seed)
    else:
        shade *= 1 + 0.04 * layered_noise(away * 9, view.x * 6, pen_seed)
    out: F = to_rgb(color) * shade[:, :, None]
    return out


def _still_life(view: _View) -> Light:
    scene, image, height, width = view.scene, view.image, view.height, view.width
    light = _light(view)
    pale = to_rgb(COLORS[scene.backdrop_color]) * 0.78 + 0.22
    if scene.backdrop_color in ("white", "grey", "brown", "green"):
        pale = to_rgb(COLORS[scene.backdrop_color]) * 0.94 + 0.03
    pen = Pen(image, width / 2, height / 2, height, (-9, 9, -9, 9))
    brush = layered_noise(view.y * 7, view.x * 7, view.seed + 90)
    lamp = pen.soft(-0.4 * light.side, 0.3, 1.5, 1.2)
    image[:] = pale * (0.78 + 0.25 * lamp + 0.05 * brush)[:, :, None]
    color = COLORS[scene.ground_color]
    top = round(height * 0.53 + view.move() * 0.3)
    plane = _boards(view, view.seed + 95, color, scene.ground_material, top)
    if scene.ground == "floor":
        image[top:] = plane
        strip = image[max(0, top - round(0.022 * height)) : top]
        strip += (0.93 - strip) * 0.8
        image[top : top + 2] *= 0.7
    else:
        # The floor under the table is darker than the wall and out of the light.
        image[round(0.74 * height) :] *= 0.62
        flat = Pen(image, 0, height, 1.0, (0, width, 0, height - top))
        front, edge = height * 0.13, height * 0.075
        left, right, inset = 0.015 * width, 0.985 * width, 0.1 * width
        leg = to_rgb(color) * 0.5
        for x in (left + 0.02 * width, right - 0.065 * width):
            flat.fill(flat.rect(x, x + 0.045 * width, 0, front), leg)
        far = height - top
        desk = ((left, front), (right, front), (right - inset, far), (left + inset, far))
        flat.fill(flat.polygon(*desk), plane)
        flat.fill(flat.rect(left, right, front - edge, front), plane[::-1] * 0.7)
    if len(scene.things) > 1 and scene.things[1].position in ("above", "below"):
        _shelf(view, light)
    return light


def _shelf(view: _View, light: Light) -> None:
    """A shelf on the wall for the things above."""
    board = Pen(view.image, view.width / 2, 0.36 * view.height, view.height, (-9, 9, -0.1, 0.03))
    half = 0.47 * view.width / view.height
    board.patch *= 1 - 0.3 * board.soft(0.02 * light.side, -0.05, half, 0.045)[:, :, None]
    wood = (
        to_rgb((150, 104, 64)) if view.scene.backdrop_color != "brown" else to_rgb((214, 206, 194))
    )
    grain = 1 + 0.12 * board.noise(2.5, 60, view.seed + 99)
    board.fill(board.rect(-half, half, -0.03, 0.0), wood * (grain * 0.75)[:, :, None])
    plank = board.polygon((-half, 0.0), (half, 0.0), (half - 0.02, 0.018), (0.02 - half, 0.018))
    board.fill(plank, wood * grain[:, :, None])


# --- Pictures ----------------------------------------------------------------------------------


def render(
    scene: Scene, width: int, height: int, seed: int, jitter: float = 0.0
) -> NDArray[np.uint8]:
    """Paint a scene, anti-aliased.

    Args:
        scene: what is in the image.
        width, height: in pixels, each 64 or more; the composition is the same at every size.
        seed: chooses what the scene leaves open: the shapes of hills and clouds, brush strokes.
        jitter: the most that things, sun, clouds and horizon move, as a share of the image from 0
            to 0.05; each has its own direction. Two values give near-duplicates.

    Returns:
        RGB, uint8, H x W x 3; the same bytes for the same arguments.
    """
    rng = random.Random(seed)
    image: F = np.zeros((height, width, 3), np.float32)
    view = _View(scene, image, rng, seed, jitter)
    light = _landscape(view) if scene.kind == "landscape" else _still_life(view)
    shelf = {"above": 1, "below": 0}.get(scene.things[1].position if len(scene.things) > 1 else "")
    for number, place in enumerate(view.places):
        on_shelf = shelf is not None and place.thing == scene.things[shelf]
        if not (scene.kind == "landscape" and scene.place == "on"):
            draw_shadow(image, place, light, light.shadow * (0.6 if on_shelf else 1))
        breed = view.seed + scene.things.index(place.thing)
        draw_thing(image, place, light, view.seed + 200 + 10 * number, breed)
        if scene.kind == "landscape" and scene.place == "on":
            draw_mirror(image, place, view.seed + 300 + number)
    if scene.kind == "landscape":
        _weather(view)
    # Strokes of the brush and the grain of the canvas: no part of a picture is flat.
    strokes = layered_noise(view.y * 60, view.x * 26, view.seed + 110, 2)
    grain = hash_noise(count_up(0, height)[:, None], count_up(0, width)[None], view.seed + 120)
    image *= (1 + 0.045 * strokes)[:, :, None]
    image += ((grain - 0.5) * 0.028)[:, :, None]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
