"""The rules see colors and compact things in pixels, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tiny.rules import object_seen, rules, seen_colors
from pipeline.tiny.scene import Scene, Thing
from pipeline.tiny.things import COLORS


def test_seen_colors_names_the_palette() -> None:
    for name, color in COLORS.items():
        shares = seen_colors(np.full((4, 4, 3), color, np.uint8))
        assert shares[name] == 1.0
        assert sum(shares.values()) == pytest.approx(1.0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert sum(seen_colors(noise).values()) == pytest.approx(1.0)


def test_rules_see_the_object() -> None:
    grey = np.full((120, 120, 3), 128, np.uint8)
    assert not object_seen(grey, "red")
    dotted = grey.copy()
    dotted[::3, ::3] = (220, 20, 20)  # as many pixels, but nothing compact
    assert not object_seen(dotted, "red")
    block = grey.copy()
    block[40:70, 40:70] = (220, 20, 20)
    assert object_seen(block, "red")
    assert not object_seen(block, "blue")


def test_each_rule_fails_alone() -> None:
    scene = Scene("landscape", (Thing("boat", "red"),), "sea", "on", "blue", sky_color="blue")
    good = np.full((120, 120, 3), (92, 156, 230), np.uint8)
    good[60:90, 40:70] = COLORS["red"]
    assert rules(good, scene) == {"color": True, "night": True, "object": True}
    dark = good.copy()
    dark[:50] = 10
    assert rules(dark, scene) == {"color": True, "night": False, "object": True}
    spread = np.full_like(good, (92, 156, 230))
    spread[60:, ::4] = COLORS["red"]
    assert rules(spread, scene) == {"color": True, "night": True, "object": False}
    little = np.full_like(good, (92, 156, 230))
    little[60:70, 40:50] = COLORS["red"]
    assert rules(little, scene) == {"color": False, "night": True, "object": True}
