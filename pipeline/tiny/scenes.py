"""A seed in, a scene with its exact contents, true captions and a painted image out.

Scenes train the tiny models, and are a source whose every count, color and hour is known. The words
come from the core of `prompts/grammar.yaml`; `pipeline.tiny.paint` paints the pixels, and
`pipeline.tiny.gallery` writes them to files.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from pipeline.tiny.paint import MOUNTAINS, SKIES
from pipeline.tiny.scene import Scene, Thing
from pipeline.tiny.things import COLORS, color_shares

NUMBERS = ("", "one", "two", "three", "four", "five")
LAND_COLORS = {
    "house": ["red", "orange", "yellow", "blue", "purple", "pink", "white", "grey", "brown"],
    "tree": ["green", "red", "orange", "yellow", "pink", "white", "purple", "brown"],
    "flower": ["red", "orange", "yellow", "blue", "purple", "pink", "white"],
}
TABLE_THINGS = ("ball", "cube", "cup", "apple")
MATERIALS = ("wooden", "metal", "glass", "stone")
MEDIA = ("painting", "oil painting", "picture", "illustration", "digital illustration")
GLASS_COLORS = frozenset(["red", "orange", "yellow", "green", "blue", "purple", "pink"])
MAIN_SHARE = 0.04
"""The least share of a square image that the main color fills."""

# What an eye, or a rule on pixels, could take for one another in one picture.
_ALIKE = {
    "red": {"red"}, "orange": {"orange", "yellow", "brown"}, "yellow": {"yellow", "orange"},
    "green": {"green"}, "blue": {"blue"}, "dark blue": {"blue", "black", "purple"},
    "purple": {"purple"}, "pink": {"pink"}, "white": {"white", "grey"}, "grey": {"grey", "white"},
    "black": {"black", "blue", "brown", "grey", "purple"}, "brown": {"brown", "orange"},
}  # fmt: skip
OPPOSITE = {
    "left": "right", "right": "left", "beside": "beside", "in front": "behind",
    "behind": "in front", "above": "below", "below": "above",
}  # fmt: skip
_ROOFS = ("red", "blue", "green", "black", "purple", "orange")
_SUNS = {"day": ["yellow"], "sunset": ["red", "orange", "yellow"], "dawn": ["orange", "yellow"]}


# --- Scenes ------------------------------------------------------------------------------------


def draw_scene(seed: int) -> Scene:
    """A scene at random, the same for the same seed; its main color fills at least `MAIN_SHARE`."""
    rng = random.Random(seed)
    draw = _landscape if rng.random() < 0.6 else _still_life
    while True:
        scene = draw(rng)
        if scene is not None:
            shares = color_shares(scene)
            if shares[0] >= max(MAIN_SHARE, *shares):
                return scene


def _pick(rng: random.Random, options: dict[str, float]) -> str:
    return rng.choices(list(options), list(options.values()))[0]


def _count(rng: random.Random, most: int) -> int:
    return rng.choices(range(1, most + 1), (5, 4, 4, 3, 3)[:most])[0]


def _size(rng: random.Random, count: int) -> str:
    return _pick(rng, {"": 4, "small": 1.5, "large": 1.5 if count < 3 else 0})


def _free(colors: Iterable[str], taken: set[str]) -> list[str]:
    return [color for color in colors if color not in taken]


def _landscape(rng: random.Random) -> Scene | None:
    """A landscape, or None if its surroundings take all colors for its things."""
    time = _pick(rng, {"day": 5.0, "sunset": 2.5, "dawn": 2.0, "night": 3.0})
    kinds = [(weather, color) for weather, hour, color in sorted(SKIES) if hour == time]
    clear = 1.5 if time == "day" else 3.0
    weathers = {kind: clear if kind == "clear" else 1.0 for kind, _ in kinds}
    weather = _pick(rng, weathers)
    sky = rng.choice([color for kind, color in kinds if kind == weather])
    taken = _ALIKE[sky] | ({"white"} if time == "dawn" else set())
    if sky == "red":
        taken |= {"orange", "pink"}
    if sky in ("pink", "purple"):
        taken |= {"pink", "purple"}

    ground, place, ground_color = _ground(rng, time, weather)
    taken |= _ALIKE[ground_color or "blue"]
    if ground in ("desert", "plain"):
        taken |= {"brown", "yellow", "orange"}
    if ground in ("sea", "lake") and (ground, place) != ("sea", "on"):
        taken.add("white" if weather == "snowy" else "green")  # the land around

    backdrop, backdrop_color, caps = "", "", False
    if weather != "foggy" and rng.random() < 0.6:
        wooded = ground in ("lake", "field", "plain") and rng.random() < 0.35
        backdrop = "forest" if wooded else "mountains"
        if wooded:
            taken |= {"green"} | ({"black"} if time == "night" else set())
        else:
            hidden = {"green", "brown"} if time == "night" else set()
            hidden |= {"green", "brown", "white"} if weather == "snowy" else set()
            backdrop_color = rng.choice(_free(MOUNTAINS, hidden))
            caps = backdrop_color in ("blue", "grey", "purple") and rng.random() < 0.4
            taken |= _ALIKE[backdrop_color]

    things = _boats(rng, taken) if place == "on" else _land_things(rng, taken)
    if not things:
        return None
    light, light_color, clouds, stars = "", "", 0, False
    if weather == "clear" and time == "night":
        stars = rng.random() < 0.65
        if not stars or rng.random() < 0.6:
            light, light_color = "moon", rng.choice(["white", "yellow"])
    elif weather == "clear":
        clouds = _count(rng, 5) if rng.random() < 0.4 else 0
        if rng.random() < 0.5:
            clouds = min(clouds, 3)
            light, light_color = "sun", rng.choice(_free(_SUNS[time], {sky}))
    return Scene(
        "landscape", things, ground, place, ground_color, "", backdrop, backdrop_color, caps,
        time, weather, sky, light, light_color, clouds, stars,
    )  # fmt: skip


def _ground(rng: random.Random, time: str, weather: str) -> tuple[str, str, str]:
    """Ground, its preposition, and its color; at sunset, water has the color of the sky."""
    dry = 1.2 if weather in ("clear", "cloudy") else 0.0
    ground = _pick(rng, {"sea": 3, "lake": 1.6, "field": 3.4, "desert": dry, "plain": 1.2})
    if ground in ("sea", "lake"):
        by_day = rng.choice(["blue", "green"]) if weather == "clear" else "grey"
        color = {"day": by_day, "night": "dark blue"}.get(time, "")
        return ground, rng.choice(["on", "on", "beside"]), color
    if weather == "snowy":
        return ground, "in", "white"
    fields = ["green", "green", "yellow", "brown"]
    return ground, "in", rng.choice(fields) if ground == "field" else "yellow"


def _boats(rng: random.Random, taken: set[str]) -> tuple[Thing, ...]:
    things: list[Thing] = []
    pair = rng.random() < 0.25
    beside = rng.choice(["left", "right", "beside", "in front", "behind"])
    for position in ("", beside)[: 1 + pair]:
        count = _count(rng, 2 if pair else 5)
        used = taken | {color for thing in things for color in (thing.color, thing.trim)}
        color = rng.choice(_free(COLORS, used))
        if not pair and count == 1:
            position = rng.choice(["", "", "left", "right"])
        sails = _free(("white", "red", "yellow", "orange", "blue"), used | {color})
        trim = rng.choice(sails) if sails and rng.random() < 0.35 else ""
        material = rng.choice(["wooden", "metal"]) if rng.random() < 0.3 else ""
        things.append(Thing("boat", color, count, material, position, _size(rng, count), trim))
    return tuple(things)


def _land_things(rng: random.Random, taken: set[str]) -> tuple[Thing, ...]:
    names = [_pick(rng, {"house": 4, "tree": 4, "flower": 2})]
    pair = rng.random() < 0.45
    beside = rng.choice(["left", "right", "beside", "in front", "behind"])
    if pair:
        names.append(_pick(rng, {"house": 2, "tree": 2, "flower": 1}))
        if names == ["flower", "flower"]:
            beside = rng.choice(["left", "right", "beside"])
        elif "flower" in names:
            # Beside a house it would be as tall as the house: a flower has to be nearer.
            beside = "behind" if names[0] == "flower" else "in front"
    things: list[Thing] = []
    for number, name in enumerate(names):
        # A tree that is not the main thing may be green before green: its own is darker.
        allowed = taken - {"green"} if number and name == "tree" else taken
        used = {color for thing in things for color in (thing.color, thing.trim)}
        colors = _free(LAND_COLORS[name], allowed | used)
        if not colors:
            return ()
        color = rng.choice(colors)
        count = _count(rng, (3, 2)[number] if pair else 5)
        position = ("", beside)[number]
        if not pair and count == 1:
            position = rng.choice(["", "", "left", "right"])
        material, trim = "", ""
        if name == "house":
            material = rng.choice(["wooden", "stone"]) if rng.random() < 0.4 else ""
            roofs = _free(_ROOFS, taken | used | {color})
            trim = rng.choice(roofs) if roofs and rng.random() < 0.4 else ""
        things.append(Thing(name, color, count, material, position, _size(rng, count), trim))
    return tuple(things)


def _still_life(rng: random.Random) -> Scene | None:
    """Things on a table or floor before a wall, or None if table and wall look alike."""
    wall = rng.choice(_free(COLORS, {"black"}))
    ground = rng.choice(["table", "table", "floor"])
    material = _pick(rng, {"wooden": 4, "": 3, "stone": 1.5, "metal": 1})
    natural = {"wooden": "brown", "stone": "grey", "metal": "grey"}
    color = natural.get(material) or rng.choice(_free(COLORS, _ALIKE[wall]))
    if color in _ALIKE[wall]:
        return None
    taken = _ALIKE[wall] | _ALIKE[color]
    groups = rng.choices((1, 2, 3), (3, 4.5, 1.2))[0]
    beside = rng.choice(sorted(OPPOSITE))
    positions = ("", beside) if groups == 2 else ("", "right", "right")
    things: list[Thing] = []
    for position in positions[:groups]:
        colors = _free(COLORS, taken | {thing.color for thing in things})
        if not colors:
            return None
        hue = rng.choice(colors)
        count = _count(rng, {1: 5, 2: 3, 3: 1}[groups])
        name = rng.choice(TABLE_THINGS)
        made = rng.choice(MATERIALS) if rng.random() < 0.5 else ""
        if made == "glass" and hue not in GLASS_COLORS:
            made = ""
        if groups == 1 and count == 1:
            position = rng.choice(["", "", "left", "right"])
        things.append(Thing(name, hue, count, made, position, _size(rng, count)))
    return Scene("still life", tuple(things), ground, "on", color, material, "wall", wall)


# --- Captions ----------------------------------------------------------------------------------
