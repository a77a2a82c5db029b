"""A seed in, a small captioned landscape out: the pictures of the demo's imported sources.

python -m pipeline.tiny.scenes FOLDER      writes the demo's pictures and caption files
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Color = tuple[int, int, int]

SKIES: dict[str, tuple[Color, Color]] = {
    "clear blue": ((52, 120, 210), (190, 222, 245)),
    "orange sunset": ((86, 60, 120), (250, 160, 80)),
    "dark night": ((8, 10, 34), (36, 44, 92)),
    "grey cloudy": ((120, 126, 134), (200, 204, 208)),
}
GROUNDS: dict[str, tuple[Color, Color]] = {
    "a calm sea": ((38, 96, 140), (20, 58, 104)),
    "a green field": ((104, 160, 64), (52, 110, 40)),
    "a sandy desert": ((224, 190, 128), (186, 146, 88)),
    "a snowy plain": ((240, 244, 250), (196, 208, 226)),
}
COLORS: dict[str, Color] = {
    "red": (200, 44, 40),
    "yellow": (238, 200, 60),
    "white": (244, 244, 240),
    "purple": (120, 62, 150),
    "green": (44, 130, 64),
}
_OVERSAMPLE = 3


@dataclass(frozen=True)
class Scene:
    """What is in a picture; the caption says exactly this."""

    sky: str
    ground: str
    thing: str  # boat, house or tree
    color: str
    count: int

    @property
    def caption(self) -> str:
        """For example `two red boats on a calm sea under a dark night sky`."""
        number = ("", "one", "two", "three")[self.count]
        name = self.thing + ("s" if self.count > 1 else "")
        place = "on" if self.thing == "boat" else "in"
        sky = ("an " if self.sky[0] in "aeiou" else "a ") + self.sky
        return f"{number} {self.color} {name} {place} {self.ground} under {sky} sky"


def draw_scene(seed: int) -> Scene:
    """A scene at random; boats are at sea, houses and trees are not."""
    rng = random.Random(seed)
    ground = rng.choice(sorted(GROUNDS))
    thing = "boat" if "sea" in ground else rng.choice(["house", "tree"])
    return Scene(
        rng.choice(sorted(SKIES)), ground, thing, rng.choice(sorted(COLORS)), rng.randint(1, 3)
    )


def _gradient(top: Color, bottom: Color, height: int, width: int) -> NDArray[np.float64]:
    share = np.linspace(0, 1, height)[:, None, None]
    return np.broadcast_to(
        np.array(top) * (1 - share) + np.array(bottom) * share, (height, width, 3)
    )


def render(scene: Scene, width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Draw a scene, anti-aliased: uint8 HxWx3 RGB. The seed moves things about."""
    rng = random.Random(seed)
    w, h = width * _OVERSAMPLE, height * _OVERSAMPLE
    horizon = int(h * rng.uniform(0.5, 0.62))
    canvas = np.empty((h, w, 3))
    canvas[:horizon] = _gradient(*SKIES[scene.sky], horizon, w)
    canvas[horizon:] = _gradient(*GROUNDS[scene.ground], h - horizon, w)
    image = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    disc = h * rng.uniform(0.05, 0.09)
    x, y = rng.uniform(0.15, 0.85) * w, rng.uniform(0.12, 0.4) * horizon + disc
    if "cloudy" not in scene.sky:
        light = (242, 240, 220) if "night" in scene.sky else (255, 232, 150)
        pen.ellipse([x - disc, y - disc, x + disc, y + disc], fill=light)
    size = h * 0.2
    for i in range(scene.count):
        center = w * (i + rng.uniform(0.35, 0.65)) / scene.count
        base = horizon + h * rng.uniform(0.08, 0.22)
        _thing(pen, scene.thing, COLORS[scene.color], center, base, size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def _thing(
    pen: ImageDraw.ImageDraw, thing: str, color: Color, x: float, base: float, size: float
) -> None:
    """One boat, house or tree standing on `base`."""
    if thing == "boat":
        hull = [(x - size / 2, base - size / 4), (x + size / 2, base - size / 4),
                (x + size / 3, base), (x - size / 3, base)]  # fmt: skip
        pen.polygon(hull, fill=(96, 62, 40))
        pen.polygon([(x, base - size), (x, base - size / 3), (x + size / 2.2, base - size / 3)],
                    fill=color)  # fmt: skip
    elif thing == "house":
        pen.rectangle([x - size / 2, base - size / 2, x + size / 2, base], fill=color)
        pen.polygon([(x - size / 1.7, base - size / 2), (x + size / 1.7, base - size / 2),
                     (x, base - size)], fill=(92, 50, 44))  # fmt: skip
        pen.rectangle([x - size / 10, base - size / 3, x + size / 10, base], fill=(60, 40, 30))
    else:
        pen.rectangle([x - size / 14, base - size / 2, x + size / 14, base], fill=(90, 60, 40))
        pen.ellipse(
            [x - size / 2.4, base - size * 1.1, x + size / 2.4, base - size / 3], fill=color
        )


def write_demo_pictures(folder: Path) -> None:
    """Write `mj52/` with captions.csv, and `mod.zip` with `mod.jsonl`, in mixed file formats."""

    def picture(number: int, width: int, height: int, ending: str) -> tuple[bytes, str]:
        scene = draw_scene(number)
        out = io.BytesIO()
        options: dict[str, dict[str, int]] = {
            "png": {"optimize": True},
            "webp": {"lossless": True},
            "jpg": {"quality": 95},
        }
        form = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}[ending]
        image = Image.fromarray(render(scene, width, height, number))
        image.save(out, form, **options[ending])
        return out.getvalue(), scene.caption

    mj = folder / "mj52"
    mj.mkdir(parents=True, exist_ok=True)
    with (mj / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "text", "split"])
        for i in range(10):
            split = "test" if i == 9 else "validation" if i == 8 else "train"
            ending = ("png", "png", "webp", "jpg")[i % 4]
            data, caption = picture(100 + i, 512 if split == "test" else 256, 256, ending)
            (mj / f"{i:02d}.{ending}").write_bytes(data)
            table.writerow([f"{i:02d}.{ending}", caption, split])
    lines = []
    with zipfile.ZipFile(folder / "mod.zip", "w") as archive:
        for i in range(8):
            split = "test" if i == 7 else "validation" if i == 6 else "train"
            size = (528, 240) if split == "test" else (352, 160)
            data, caption = picture(200 + i, *size, "png")
            # A fixed date: the same pictures give the same archive.
            archive.writestr(zipfile.ZipInfo(f"{split}/{i:02d}.png", (2026, 1, 1, 0, 0, 0)), data)
            lines.append({"file": f"{split}/{i:02d}.png", "text": caption, "split": split})
    (folder / "mod.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    write_demo_pictures(Path(sys.argv[1]))
