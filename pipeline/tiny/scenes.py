"""A seed in, a scene with its exact contents, true captions and a painted picture out.

Training data of the tiny models, and a source whose every count, color and hour is known. The
words are those of the core of `prompts/grammar.yaml`; `pipeline.tiny.paint` has the pixels, and
`pipeline.tiny.gallery` writes them to files.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.tiny.paint import MOUNTAINS, SKIES, render
from pipeline.tiny.things import COLORS, color_shares

__all__ = ["Scene", "Thing", "captions", "draw_scene", "is_night", "main_color", "render"]

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
"""The least share of a square picture that the main color fills."""

# What an eye, or a rule on pixels, could take for one another in one picture.
_ALIKE = {
    "red": {"red"}, "orange": {"orange", "yellow", "brown"}, "yellow": {"yellow", "orange"},
    "green": {"green"}, "blue": {"blue"}, "dark blue": {"blue", "black", "purple"},
    "purple": {"purple"}, "pink": {"pink"}, "white": {"white", "grey"}, "grey": {"grey", "white"},
    "black": {"black", "blue", "brown", "grey", "purple"}, "brown": {"brown", "orange"},
}  # fmt: skip
_OPPOSITE = {
    "left": "right", "right": "left", "beside": "beside", "in front": "behind",
    "behind": "in front", "above": "below", "below": "above",
}  # fmt: skip
_ROOFS = ("red", "blue", "green", "black", "purple", "orange")
_SUNS = {"day": ["yellow"], "sunset": ["red", "orange", "yellow"], "dawn": ["orange", "yellow"]}


@dataclass(frozen=True)
class Thing:
    """One or more things of a kind, all alike.

    `position` of a scene's first thing is its place in the picture: left, right or "" (about the
    middle). Of the second it is relative to the first: left, right, beside, in front, behind,
    above or below. Of a third it is right: it ends the row.
    """

    name: str  # house, tree, boat, flower; ball, cube, cup, apple
    color: str
    count: int = 1  # to 5
    material: str = ""  # wooden, metal, glass, stone or "" (painted)
    position: str = ""
    size: str = ""  # small, large or "" (neither)
    trim: str = ""  # color of the roofs of houses or the sails of boats, if not the usual one


@dataclass(frozen=True)
class Scene:
    """Everything that a caption may say of a picture; "" or 0 is for what is not there."""

    kind: str  # landscape or still life
    things: tuple[Thing, ...]  # the main one first
    ground: str  # sea, lake, field, desert, plain; table, floor
    place: str  # on, in or beside the ground
    ground_color: str = ""
    ground_material: str = ""
    backdrop: str = ""  # mountains, forest; wall
    backdrop_color: str = ""
    snow_caps: bool = False
    time: str = "day"  # day, night, sunset, dawn
    weather: str = "clear"  # clear, cloudy, rainy, snowy, foggy
    sky_color: str = ""
    light: str = ""  # sun or moon, if it is in the picture
    light_color: str = ""
    clouds: int = 0  # single ones, to 5
    stars: bool = False


def main_color(scene: Scene) -> str:
    """The color of the main thing, one of `COLORS`."""
    return scene.things[0].color


def is_night(scene: Scene) -> bool:
    """Whether a scene is dark; still lifes are by daylight."""
    return scene.time == "night"


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
    """A landscape, or none where all colors for its things are taken by what is around them."""
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
    """Ground, where things are to it, and its color; water at sunset has that of the sky."""
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
    """Things on a table or floor before a wall, or none where table and wall look alike."""
    wall = rng.choice(_free(COLORS, {"black"}))
    ground = rng.choice(["table", "table", "floor"])
    material = _pick(rng, {"wooden": 4, "": 3, "stone": 1.5, "metal": 1})
    natural = {"wooden": "brown", "stone": "grey", "metal": "grey"}
    color = natural.get(material) or rng.choice(_free(COLORS, _ALIKE[wall]))
    if color in _ALIKE[wall]:
        return None
    taken = _ALIKE[wall] | _ALIKE[color]
    groups = rng.choices((1, 2, 3), (3, 4.5, 1.2))[0]
    beside = rng.choice(sorted(_OPPOSITE))
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


def _join(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _several(count: int, words: str, one: str = "") -> str:
    """`words` ends with the noun in the singular."""
    return (f"{one} {words}" if one else _a(words)) if count == 1 else f"{NUMBERS[count]} {words}s"


def _thing(thing: Thing, rng: random.Random, detail: int) -> str:
    """For example "two small red wooden boats with white sails"; detail 0, 1 or 2."""
    size, material = (thing.size, thing.material) if detail else ("", "")
    color = thing.color
    if detail == 1 and rng.random() < 0.3:
        # Of two notes leave one: "a wooden cube" is as true as "a brown wooden cube".
        if material:
            color = ""
        else:
            size = ""
    text = _several(
        thing.count, _join(size, color, material, thing.name), "one" if rng.random() < 0.15 else ""
    )
    if thing.trim and (detail == 2 or rng.random() < 0.25):
        part = {"house": "roof", "boat": "sail"}[thing.name]
        part = f"{thing.trim} {part}"
        text += f" with {_a(part) if thing.count == 1 else part + 's'}"
    return text


def _relation(position: str, rng: random.Random) -> str:
    return {
        "left": "to the left of",
        "right": "to the right of",
        "beside": rng.choice(["beside", "next to", "near"]),
        "in front": "in front of",
    }.get(position, position)


def _subject(scene: Scene, rng: random.Random, detail: int) -> str:
    """All things and how they stand to each other."""
    texts = [_thing(thing, rng, detail) for thing in scene.things]
    if len(texts) == 1:
        return texts[0]
    if len(texts) == 3:
        return f"{texts[0]}, {texts[1]} and {texts[2]}"
    position = scene.things[1].position
    if rng.random() < 0.2:
        return f"{texts[0]} and {texts[1]}"
    if rng.random() < 0.5:
        return f"{texts[1]} {_relation(position, rng)} {texts[0]}"
    return f"{texts[0]} {_relation(_OPPOSITE[position], rng)} {texts[1]}"


def _where(scene: Scene, rng: random.Random, detail: int) -> str:
    """On, in or beside what they stand: "on a calm blue sea", "in the desert"."""
    ground, color = scene.ground, scene.ground_color if detail else ""
    if ground in ("sea", "lake"):
        calm = detail and ground == "sea" and scene.weather != "rainy" and rng.random() < 0.4
        words = _join("calm" if calm else "", color, ground)
        return f"{scene.place} {'the sea' if words == 'sea' else _a(words)}"
    if ground == "desert":
        return "in the desert" if rng.random() < 0.6 else "in a desert"
    if ground in ("field", "plain"):
        if scene.weather == "snowy":
            color = "snowy" if scene.time == "night" else rng.choice(["snowy", "white"])
        elif scene.time == "night":
            color = ""
        return f"{'in' if ground == 'field' else 'on'} {_a(_join(color, ground))}"
    if not detail:
        return f"on {rng.choice(['the', 'a'])} {ground}"
    return f"on {_a(f'{scene.ground_material or color} {ground}')}"


def _backdrop(scene: Scene, rng: random.Random) -> str:
    if scene.backdrop == "wall":
        return f"in front of {_a(f'{scene.backdrop_color} wall')}"
    if scene.backdrop == "forest":
        return "in front of a forest"
    if not scene.backdrop:
        return ""
    snowy = scene.snow_caps and rng.random() < 0.5
    color = "snowy" if snowy else scene.backdrop_color if scene.time in ("day", "dawn") else ""
    return f"in front of {color or 'the'} mountains"


def _sky(scene: Scene, rng: random.Random) -> str:
    """Follows an article: "blue sky with three white clouds"."""
    color = scene.sky_color
    cloud = "pink" if scene.time == "sunset" else "white"
    extras = []
    if scene.clouds:
        extras.append(_several(scene.clouds, f"{cloud} cloud"))
    if scene.light:
        extras.append(_a(f"{scene.light_color} {scene.light}"))
    if scene.stars:
        extras.append("many stars")
    if scene.weather == "cloudy":
        return rng.choice(["cloudy sky", "cloudy grey sky", "grey sky"])
    if scene.weather == "rainy":
        return rng.choice(["dark rainy sky", "rainy sky", f"{color} sky"])
    if scene.time == "day" and scene.weather == "clear" and not scene.clouds and rng.random() < 0.5:
        color = "clear blue"
    if scene.time == "dawn" and rng.random() < 0.4:
        color = f"pale {color}"
    if scene.stars and rng.random() < 0.4:
        return "dark sky full of stars" if color == "black" else f"{color} sky full of stars"
    if extras and rng.random() < 0.8:
        return f"{color} sky with {' and '.join(extras)}"
    return f"{color} sky"


def _when(scene: Scene, rng: random.Random) -> str:
    time, weather = scene.time, scene.weather
    if weather in ("rainy", "snowy"):
        noun = {"rainy": "rain", "snowy": "snow"}[weather]
        return rng.choice(
            [f"on a {weather} {time}", f"in the {noun}" + (" at night" if time == "night" else "")]
        )
    if weather == "foggy":
        return (
            "at dawn in the fog" if time == "dawn" else rng.choice(["in the fog", "on a foggy day"])
        )
    if time != "day":
        return f"at {time}"
    if weather == "cloudy":
        return "on a cloudy day"
    options = ["during the day", "on a bright day"]
    options += ["on a clear day"] if not scene.clouds else []
    options += ["on a sunny day"] * 2 if scene.light else []
    return rng.choice(options)


def _side(scene: Scene) -> str:
    first = scene.things[0].position
    return f"on the {first}" if first in ("left", "right") else ""


def _sentence(*parts: str) -> str:
    return f"{_join(*parts).capitalize()}."


def captions(scene: Scene, seed: int) -> list[str]:
    """Distinct true captions of a scene, from brief to long, in words of the grammar's core.

    Args:
        scene: what is in the picture.
        seed: chooses among the ways to say it.

    Returns: four to six captions.
    """
    rng = random.Random(seed)
    subjects = [_subject(scene, rng, detail) for detail in (0, 1, 2)]
    medium = f"{_a(rng.choice(MEDIA))} of"
    say = _land_captions if scene.kind == "landscape" else _table_captions
    return list(dict.fromkeys(say(scene, rng, subjects, medium)))


def _table_captions(
    scene: Scene, rng: random.Random, subjects: list[str], medium: str
) -> Iterator[str]:
    brief, full = (_where(scene, rng, detail) for detail in (0, 1))
    yield _join(subjects[0], brief)
    yield _join(subjects[1], full)
    yield _join(subjects[2], rng.choice([full, ""]), _backdrop(scene, rng))
    yield _join(medium, rng.choice(subjects), rng.choice([brief, full]))
    first = scene.things[0]
    verb = "are" if first.count > 1 else "is"
    if len(scene.things) == 1:
        yield _sentence(_thing(first, rng, 2), verb, _side(scene), full)
        yield _sentence("there", verb, subjects[1], full, _side(scene))
    elif len(scene.things) == 2:
        second = scene.things[1]
        relation = _relation(_OPPOSITE[second.position], rng)
        yield _sentence(_thing(first, rng, 1), verb, relation, _thing(second, rng, 1))
    else:
        yield _join(subjects[0], "in a row", full)


def _land_captions(
    scene: Scene, rng: random.Random, subjects: list[str], medium: str
) -> Iterator[str]:
    sky, when = _a(_sky(scene, rng)), _when(scene, rng)
    brief, full = (_where(scene, rng, detail) for detail in (0, 1))
    hour = "" if scene.time == "day" else f"at {scene.time}"
    yield _join(subjects[0], rng.choice([brief, when]))
    yield _join(subjects[1], full, when)
    yield _join(subjects[2], full, _backdrop(scene, rng), "under", sky, hour)
    yield _join(medium, rng.choice(subjects[:2]), brief, when)
    first = scene.things[0]
    if len(scene.things) == 1:
        verb = {"boat": "float", "house": "stand"}.get(first.name, "grow")
        verb += "s" if first.count == 1 else ""
        yield _sentence(_thing(first, rng, 2), verb, _side(scene), full, when)
    if hour or rng.random() < 0.4:
        yield _join(sky, "over", subjects[0], brief)
    else:
        yield _join(subjects[1], f"{brief},", sky)
