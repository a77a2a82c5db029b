"""The description of a scene: its ground, its things, its light; no pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """One or more things of a kind, all alike.

    `position` of a scene's first thing is its place in the image: left, right or "" (about the
    middle). That of the second is relative to the first: left, right, beside, in front, behind,
    above or below. That of a third is right: it ends the row.
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
    """Everything that a caption may mention; "" or 0 means that it is absent."""

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
    """Whether a scene is dark; still lifes are in daylight."""
    return scene.time == "night"
