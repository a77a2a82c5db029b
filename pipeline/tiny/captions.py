"""A scene in, true sentences about it out: the captions that the tiny models are trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator

from pipeline.tiny.scene import Scene, Thing
from pipeline.tiny.scenes import MEDIA, NUMBERS, OPPOSITE


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
    """All things and their positions to each other."""
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
    return f"{texts[0]} {_relation(OPPOSITE[position], rng)} {texts[1]}"


def _where(scene: Scene, rng: random.Random, detail: int) -> str:
    """What the things are on, in or beside: "on a calm blue sea", "in the desert"."""
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
        scene: what is in the image.
        seed: chooses the wording.

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
        relation = _relation(OPPOSITE[second.position], rng)
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
