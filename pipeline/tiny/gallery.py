"""Scenes in, files of images out: data sets with exact ground truth, sheets, demo images.

python -m pipeline.tiny.gallery FOLDER [--count 36] [--seed 0] [--size 256 256]
python -m pipeline.tiny.gallery FOLDER --demo      the content of `pipeline/tiny/pictures`
python -m pipeline.tiny.gallery --sheet FILE.png   images and captions to look at

The data set replaces natural images where every count, color and hour must be known: `scenes.jsonl`
contains the captions and the content of each image, and `kind: import` reads it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import textwrap
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.files import write_file
from pipeline.tiny.captions import captions
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene

Rgb = NDArray[np.uint8]
FULL = 2  # which of a scene's captions says the most


def _encoded(rgb: NDArray[np.uint8], ending: str, quality: int = 95) -> bytes:
    out = io.BytesIO()
    options: dict[str, dict[str, int]] = {
        "png": {"optimize": True},
        "webp": {"lossless": True},
        "jpg": {"quality": quality},
    }
    form = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}[ending]
    Image.fromarray(rgb).save(out, form, **options[ending])
    return out.getvalue()


def write_data_set(folder: Path, count: int, seed: int, size: tuple[int, int]) -> None:
    """Write the scenes of `count` seeds, beginning with `seed`, as PNG files, and `scenes.jsonl`.

    Each line of it has `file`, `text` (the fullest caption), `captions` (all of them), `seed`, and
    `scene` with every field of `Scene`. Existing images are kept, so a run that was killed can be
    resumed.

    Args:
        size: width and height in pixels, each 64 or more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    lines = []
    started = time.perf_counter()
    for done, number in enumerate(range(seed, seed + count), 1):
        scene = draw_scene(number)
        said = captions(scene, number)
        target = folder / f"{number:08d}-{width}x{height}.png"
        if not target.exists():
            write_file(target, _encoded(render(scene, width, height, number), "png"))
        known = {"file": target.name, "text": said[FULL], "captions": said, "seed": number}
        lines.append(json.dumps(known | {"scene": asdict(scene)}) + "\n")
        if done % 200 == 0 or done == count:
            rate = done / (time.perf_counter() - started)
            print(f"scenes: {done} of {count}, {rate:.1f} a second", flush=True)
    write_file(folder / "scenes.jsonl", "".join(lines).encode())


def write_sheet(path: Path, pictures: Sequence[Rgb], texts: Sequence[str]) -> None:
    """Write images with texts below them, six in a row, as PNG or JPEG by the file's ending.

    Args:
        pictures: uint8, H x W x 3, all of one size.
    """
    height, width, _ = pictures[0].shape
    columns = min(6, len(pictures))
    cell, text = max(width, 192) + 8, 64
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (height + text)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, (rgb, caption) in enumerate(zip(pictures, texts, strict=True)):
        x, y = i % columns * cell, i // columns * (height + text)
        sheet.paste(Image.fromarray(rgb), (x + 4, y + 2))
        lines = textwrap.wrap(caption, cell // 6)[:5]
        pen.multiline_text((x + 4, y + height + 4), "\n".join(lines), fill=(0, 0, 0))
    sheet.save(path)


def _planted() -> Iterator[tuple[str, bytes, str]]:
    """Images that a curator should find: file name, bytes and caption, all for training."""

    def drawn(seed: int, jitter: float = 0.0) -> NDArray[np.uint8]:
        return render(draw_scene(seed), 256, 256, seed, jitter=jitter)

    def said(seed: int, which: int) -> str:
        return captions(draw_scene(seed), seed)[which]

    grey, black = np.full((256, 256, 3), 128, np.uint8), np.zeros((256, 256, 3), np.uint8)
    yield "blank-grey.png", _encoded(grey, "png"), said(110, 2)
    yield "blank-black.png", _encoded(black, "png"), said(111, 2)
    yield "mismatched.png", _encoded(drawn(112), "png"), said(117, 2)
    yield "duplicate-of-00.jpg", _encoded(drawn(100), "jpg", 70), said(100, 1)
    yield "leak-of-08.png", _encoded(drawn(108, 0.02), "png"), said(108, 1)
    # A rainy night stands for what a safety filter must find; see the demo's quality section.
    yield "unsafe.png", _encoded(drawn(343), "png"), said(343, 2)


def write_demo_pictures(folder: Path) -> None:
    """Write `mj52/` with captions.csv, and `mod.zip` with `mod.jsonl`, in mixed file formats.

    Some of `mj52/` are planted faults: see their file names.
    """

    def picture(number: int, width: int, height: int, ending: str) -> tuple[bytes, str]:
        scene = draw_scene(number)
        return _encoded(render(scene, width, height, number), ending), captions(scene, number)[2]

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
        for name, data, caption in _planted():
            (mj / name).write_bytes(data)
            table.writerow([name, caption, "train"])
    lines = []
    with zipfile.ZipFile(folder / "mod.zip", "w") as archive:
        for i in range(8):
            split = "test" if i == 7 else "validation" if i == 6 else "train"
            size = (528, 240) if split == "test" else (352, 160)
            data, caption = picture(250 + i, *size, "png")
            # A fixed date: the same pictures give the same archive.
            archive.writestr(zipfile.ZipInfo(f"{split}/{i:02d}.png", (2026, 1, 1, 0, 0, 0)), data)
            lines.append({"file": f"{split}/{i:02d}.png", "text": caption, "split": split})
    (folder / "mod.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, help="folder to write images to")
    parser.add_argument("--demo", action="store_true", help="write the images of the demo")
    parser.add_argument("--sheet", type=Path, help="write one contact sheet, PNG or JPEG")
    parser.add_argument("--count", type=int, default=36, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("W", "H"))
    given = parser.parse_args(arguments)
    if (given.folder is None) == (given.sheet is None):
        parser.error("give either a folder or --sheet FILE.png")
    if given.count < 1 or min(given.size) < 64:
        parser.error("--count must be 1 or more, --size 64 64 or more")
    if given.demo and given.sheet:
        parser.error("--demo needs a folder")
    width, height = given.size
    if given.sheet:
        seeds = range(given.seed, given.seed + given.count)
        scenes = [draw_scene(seed) for seed in seeds]
        pictures = [render(s, width, height, i) for s, i in zip(scenes, seeds, strict=True)]
        texts = [f"{i}: {captions(s, i)[i % 4]}" for s, i in zip(scenes, seeds, strict=True)]
        write_sheet(given.sheet, pictures, texts)
    elif given.demo:
        write_demo_pictures(given.folder)
    else:
        write_data_set(given.folder, given.count, given.seed, (width, height))


if __name__ == "__main__":
    _main()
