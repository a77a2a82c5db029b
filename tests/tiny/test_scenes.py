"""Scenes say exactly what their pictures show: to a reader of captions and to rules on pixels."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.prompts.grammar import Grammar
from pipeline.tiny import scenes
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.rules import looks_night, seen_colors
from pipeline.tiny.scene import Scene, Thing, is_night, main_color
from pipeline.tiny.scenes import MAIN_SHARE, NUMBERS, draw_scene
from pipeline.tiny.things import COLORS, SHAPES, color_shares, places

Pixels = NDArray[np.uint8]
PROMPTS = Path(__file__).parents[2] / "prompts" / "grammar.yaml"
MANY = 5_000
SEEN = 0.025
"""The least share of the pixels from which a color counts as seen."""
WORD = re.compile(r"[a-z]+")


def digest(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [draw_scene(seed) for seed in range(MANY)]


@pytest.fixture(scope="module")
def rendered() -> list[tuple[Scene, Pixels]]:
    return [
        (scene, render(scene, 160, 160, seed)) for seed in range(500) if (scene := draw_scene(seed))
    ]


def test_draw_scene_covers_every_kind(many: list[Scene]) -> None:
    assert draw_scene(7) == draw_scene(7)
    assert len(set(many)) > 0.95 * MANY
    for field, values in {
        "kind": "landscape|still life",
        "time": "day|night|sunset|dawn",
        "weather": "clear|cloudy|rainy|snowy|foggy",
        "ground": "sea|lake|field|desert|plain|table|floor",
        "backdrop": "|mountains|forest|wall",
        "light": "|sun|moon",
    }.items():
        seen = Counter(getattr(scene, field) for scene in many)
        assert sorted(seen) == sorted(values.split("|"))
        assert min(seen.values()) > 0.01 * MANY, seen
    things = [thing for scene in many for thing in scene.things]
    assert {thing.count for thing in things} == {1, 2, 3, 4, 5}
    assert {thing.material for thing in things} == {"", *scenes.MATERIALS}
    assert {thing.position for thing in things} == {"", *scenes.OPPOSITE}
    colors = Counter(main_color(scene) for scene in many)
    assert set(colors) == set(COLORS)
    assert min(colors.values()) > 0.03 * MANY, colors


def test_boats_float_and_nothing_else_does(many: list[Scene]) -> None:
    for scene in many:
        afloat = scene.ground in ("sea", "lake") and scene.place == "on"
        assert all((thing.name == "boat") == afloat for thing in scene.things)
        named = [color for t in scene.things for color in (t.color, t.trim) if color]
        assert len(set(named)) == len(named), "one color, two things"
        if scene.ground == "desert":
            assert scene.weather in ("clear", "cloudy")
        if scene.stars or scene.light == "moon":
            assert scene.time == "night" and not scene.clouds


def test_main_thing_is_large_enough(many: list[Scene]) -> None:
    for scene in many:
        shares = color_shares(scene)
        assert shares[0] == max(shares) and shares[0] >= MAIN_SHARE


def test_things_stand_where_they_are_said_to(many: list[Scene]) -> None:
    for seed, scene in enumerate(many[:1500]):
        stand = places(scene, 256, 256, random.Random(seed))
        groups = [[p for p in stand if p.thing == thing] for thing in scene.things]
        assert [len(group) for group in groups] == [thing.count for thing in scene.things]
        for place in stand:
            assert place.size / 2 - 2 < place.x < 258 - place.size / 2
            assert place.base <= 233 and place.base - SHAPES[place.thing.name][1] * place.size > -5
        middles = [sum(p.x for p in group) / len(group) for group in groups]
        feet = [max(p.base for p in group) for group in groups]
        side = scene.things[0].position
        assert (side != "left" or middles[0] < 110) and (side != "right" or middles[0] > 146)
        for position, x, foot in list(
            zip((t.position for t in scene.things), middles, feet, strict=True)
        )[1:]:
            assert {
                "left": x < middles[0] - 40,
                "right": x > middles[0] + 40,
                "beside": abs(x - middles[0]) > 40,
                "in front": foot > feet[0] + 20,
                "behind": foot < feet[0] - 20,
                "above": foot < feet[0] - 80,
                "below": foot > feet[0] + 80,
            }[position]
        # No thing hides most of another: its neighbors are a good part of its width away.
        for a in stand:
            for b in stand:
                if a is not b and abs(a.base - b.base) < 18:
                    assert abs(a.x - b.x) > 0.9 * min(a.size, b.size)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (352, 160), (512, 256), (100, 180)])
def test_render_sizes(size: tuple[int, int]) -> None:
    for seed in range(12):
        pixels = render(draw_scene(seed), *size, seed)
        assert pixels.shape == (size[1], size[0], 3) and pixels.dtype == np.uint8
        assert pixels.std() > 8


def test_render_is_the_same_in_another_process() -> None:
    here = [digest(render(draw_scene(seed), 96, 80, seed, 0.02)) for seed in range(8)]
    code = (
        "from tests.tiny.test_scenes import *\n"
        "for s in range(8): print(digest(render(draw_scene(s), 96, 80, s, 0.02)))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=PROMPTS.parents[1], env={"PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert there.stdout.split() == here


def test_seed_and_jitter_move_things() -> None:
    for number in range(6):
        scene = draw_scene(number)
        first = render(scene, 128, 128, 1).astype(int)
        moved = np.abs(render(scene, 128, 128, 1, 0.02).astype(int) - first).mean()
        other = np.abs(render(scene, 128, 128, 2).astype(int) - first).mean()
        assert 0 < moved < other


def test_edges_are_anti_aliased() -> None:
    """A small picture is close to a large one made smaller, as none without blending is."""
    scene = Scene(
        "still life", (Thing("ball", "black"),), "floor", "on", "white", "", "wall", "white"
    )
    small = render(scene, 96, 96, 3).astype(int)
    large = Image.fromarray(render(scene, 384, 384, 3))
    box = np.asarray(large.resize((96, 96), Image.Resampling.BOX)).astype(int)
    rough = np.asarray(large.resize((96, 96), Image.Resampling.NEAREST)).astype(int)
    edge = (box[..., 0] > 60) & (box[..., 0] < 160)
    assert edge.sum() > 40
    assert np.abs(small - box)[edge].mean() < 0.6 * np.abs(rough - box)[edge].mean()


def noun_phrases(caption: str) -> list[tuple[int, str, str]]:
    """(count, color or "", name) of every "two small red wooden boats" in a caption."""
    names = "house|tree|boat|flower|ball|cube|cup|apple"
    pattern = rf"\b(a|an|{'|'.join(NUMBERS[1:])}) ((?:[a-z]+ ){{0,3}})({names})s?\b"
    found = []
    for number, words, name in re.findall(pattern, caption.lower()):
        color = [word for word in words.split() if word in COLORS]
        found.append(
            (max(1, NUMBERS.index(number) if number in NUMBERS else 1), "".join(color), name)
        )
    return found


def test_captions_are_true(many: list[Scene]) -> None:
    for seed, scene in enumerate(many):
        said = captions(scene, seed)
        assert said == captions(scene, seed)
        assert 6 >= len(said) == len(set(said)) >= 4, said
        true = {(t.count, color, t.name) for t in scene.things for color in (t.color, "")}
        known = {t.color for t in scene.things} | {t.trim for t in scene.things}
        known |= {*scene.sky_color.split(), scene.light_color, scene.backdrop_color}
        known |= {*scene.ground_color.split()}
        known |= {"white", "pink"} if scene.clouds else set()
        for caption in said:
            phrases = noun_phrases(caption)
            assert len(phrases) == len(scene.things), caption
            assert set(phrases) <= true, caption
            words = set(WORD.findall(caption.lower()))
            assert words & set(COLORS) <= known, caption
            numbers = {t.count for t in scene.things} | {scene.clouds}
            assert {NUMBERS.index(word) for word in words & set(NUMBERS)} <= numbers, caption
            assert not words & {"night", "sunset", "dawn", "day"} - {scene.time}, caption
            for word, there in {
                "moon": scene.light == "moon",
                "sun": scene.light == "sun",
                "stars": scene.stars,
                "clouds": scene.clouds > 1,
                "mountains": scene.backdrop == "mountains",
                "forest": scene.backdrop == "forest",
                "sea": scene.ground == "sea",
                "lake": scene.ground == "lake",
                "rain": scene.weather == "rainy",
                "rainy": scene.weather == "rainy",
                "fog": scene.weather == "foggy",
                "snow": scene.weather == "snowy",
                "cloudy": scene.weather == "cloudy",
                "clear": scene.weather == "clear" and not scene.clouds,
                "sunny": scene.light == "sun",
                "snowy": scene.weather == "snowy" or scene.snow_caps,
            }.items():
                assert there or word not in words, caption
            for material in scenes.MATERIALS:
                if material in words:
                    materials = {scene.ground_material, *(t.material for t in scene.things)}
                    assert material in materials, caption


def test_captions_are_many_and_in_the_words_of_the_grammar(many: list[Scene]) -> None:
    said = {caption for seed, scene in enumerate(many) for caption in captions(scene, seed)}
    assert len(said) > 20_000
    words = {word for caption in said for word in WORD.findall(caption.lower())}
    sentences = Grammar.load(str(PROMPTS)).sentences(3_000, seed=0)
    known = {word for sentence in sentences for word in WORD.findall(sentence.lower())}
    lines = (line for line in PROMPTS.read_text().splitlines() if not line.startswith("#"))
    known |= {word for line in lines for word in WORD.findall(line)}
    assert sorted(words - known) == []


def test_main_color_is_seen(rendered: list[tuple[Scene, Pixels]]) -> None:
    shares = [seen_colors(pixels)[main_color(scene)] for scene, pixels in rendered]
    assert np.mean(np.array(shares) >= SEEN) >= 0.98


def test_main_color_is_seen_because_of_the_thing(rendered: list[tuple[Scene, Pixels]]) -> None:
    """The same picture with the thing in another color shows less of the first one."""
    good = 0
    for seed, (scene, pixels) in enumerate(rendered[:150]):
        used = {thing.color for thing in scene.things}
        other = next(color for color in ("blue", "red", "yellow") if color not in used)
        things = (replace(scene.things[0], color=other), *scene.things[1:])
        swapped = render(replace(scene, things=things), 160, 160, seed)
        color = main_color(scene)
        good += seen_colors(pixels)[color] - seen_colors(swapped)[color] > 0.02
    assert good >= 0.97 * 150


def test_day_and_night_are_told_apart(rendered: list[tuple[Scene, Pixels]]) -> None:
    right = [looks_night(pixels) == is_night(scene) for scene, pixels in rendered]
    assert np.mean(right) >= 0.99
    assert any(is_night(scene) for scene, _ in rendered)


def test_time_of_day_is_clear_in_brightness(rendered: list[tuple[Scene, Pixels]]) -> None:
    """Dawn is brighter than sunset, sunset brighter than night."""
    upper: dict[str, list[float]] = {}
    for scene, pixels in rendered:
        if scene.kind == "landscape":
            upper.setdefault(scene.time, []).append(float(np.median(pixels[:64].mean(2))))
    middle = {time: float(np.median(values)) for time, values in upper.items()}
    assert middle["dawn"] > middle["sunset"] + 40 > middle["night"] + 80
