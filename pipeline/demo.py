"""An empty folder in, a small finished release out: the demo runs the embedded tiny models."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.files import resource
from pipeline.workflow import Workflow

if TYPE_CHECKING:
    from rich.table import Table

TINY = Path(__file__).resolve().parent / "tiny"
MODELS = TINY / "weights"
"""Folders `sd`, `sdxl` and `clip` of the embedded models; the model card is beside them."""


def demo_workflow(out: Path, overrides: Iterable[str]) -> Workflow:
    """The demo's workflow, with its run directory in `out` and the embedded models and images."""
    pictures = TINY / "pictures"
    places = [
        f"run={out.resolve()}",
        f"sources.sd21-base.folder={MODELS / 'sd'}",
        f"sources.sd21.folder={MODELS / 'sd'}",
        f"sources.sdxl.folder={MODELS / 'sdxl'}",
        f"sources.mj52.path={pictures / 'mj52'}",
        f"sources.mj52.captions={pictures / 'mj52' / 'captions.csv'}",
        f"sources.mod.path={pictures / 'mod.zip'}",
        f"sources.mod.captions={pictures / 'mod.jsonl'}",
        f"embeddings.folder={MODELS / 'clip'}",
    ]
    return workflows.load(resource("workflows/demo.yaml"), [*places, *overrides])


def load_back(release: Path) -> list[dict[str, Any]]:
    """Load every config and split as a user would, and compare the images' hashes.

    Returns:
        config, split, images, sizes, and whether all pixels equal the generated ones.
    """
    import numpy as np
    from datasets import disable_progress_bars, get_dataset_config_names, load_dataset

    disable_progress_bars()
    found = []
    # A cache inside the run: the user's own is not filled with demo data.
    cache = str(release.parent / "cache")
    for config in get_dataset_config_names(str(release)):
        for split, data in load_dataset(str(release), config, cache_dir=cache).items():
            sizes, same = set(), True
            for row in data:
                pixels = np.asarray(row["image"].convert("RGB"))
                sizes.add(f"{pixels.shape[1]}x{pixels.shape[0]}")
                same &= hashlib.sha256(pixels.tobytes()).hexdigest() == row["pixels_sha256"]
            found.append(
                {
                    "config": config,
                    "split": str(split),
                    "images": len(data),
                    "size": ", ".join(sorted(sizes)),
                    "same": same,
                }
            )
    return found


def findings(run: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Number of dropped images by reason, and dropped imported files with their reasons."""
    from pipeline.store import Store

    store = Store(str(run))
    counts: dict[str, int] = {}
    files = []
    for shard in store.shards("selection"):
        rows = store.read("selection", shard).to_pylist()
        plan = store.read("plan", shard, ["path", "image_id"]).to_pylist()
        for row, planned in zip(rows, plan, strict=True):
            if row["keep"]:
                continue
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
            if planned["path"] is not None:
                files.append((planned["path"], row["reason"]))
    return counts, sorted(files)


CODED = 2  # test pictures of each source


def code_pictures(run: Path, models: dict[str, str]) -> list[tuple[str, int, float, float, float]]:
    """Code test images of the run's release to files in `run/coded`, and decode them again.

    Args:
        models: folders or names of models, by the name for files and rows.

    Returns:
        name and quality, number of images, and means: bits a pixel, bits a pixel of the prompt
        alone, PSNR in dB.
    """
    import numpy as np

    from pipeline.benchmark.metrics import psnr
    from pipeline.collection import Collection, Pictures
    from pipeline.learned.bitstream import MOST_PIXELS, rates
    from pipeline.learned.codec import load
    from pipeline.pixels import decode, png_bytes

    folder = run / "coded"
    folder.mkdir(exist_ok=True)
    pictures = Pictures(place=str(run), splits=("test",), limit=CODED)
    collection = Collection(pictures)
    columns = ["image_id", "image", "text"]
    rows = [row for p in collection.parts for row in collection.read(p.name, columns).to_pylist()]
    found = []
    for name, model in models.items():
        codec = load(model, device="cpu")
        for quality in range(1, codec.qualities + 1):
            label = name if codec.qualities == 1 else f"{name}-q{quality}"
            measured = []
            for row in rows:
                picture = decode(row["image"]["bytes"], MOST_PIXELS).rgb
                file = folder / f"{row['image_id'][:12]}-{label}.aigi"
                file.write_bytes(codec.encode(picture, row["text"], quality))
                data = file.read_bytes()
                decoded = codec.decode(data)
                file.with_suffix(".png").write_bytes(png_bytes(decoded))
                rate = rates(data)
                prompt = rate.bpp - rate.bpp_without_prompt
                measured.append((rate.bpp, prompt, psnr(picture, decoded)))
            bpp, prompt, decibels = np.mean(measured, axis=0)
            found.append((label, len(rows), float(bpp), float(prompt), float(decibels)))
    return found


@dataclass(frozen=True)
class Measured:
    """A codec over images of the demo: means, but for the number of images."""

    codec: str
    images: int
    bpp: float
    psnr: float
    encode_s: float
    decode_s: float


def code_at_hand(run: Path) -> tuple[list[Measured], list[str]]:
    """Code the first test image of each source by every codec at hand that is not trained.

    Files of `recipe` are in `run/coded`.

    Returns:
        the codecs, and lines on what was left out and on what recipes need.
    """
    import numpy as np
    import torch

    from pipeline.benchmark.measurements import Bench
    from pipeline.codecs.codec import CodecSettings, Here
    from pipeline.codecs.command import Missing
    from pipeline.codecs.recipe import known_of, needs
    from pipeline.codecs.table import CODECS, qualities
    from pipeline.collection import Collection, Pictures
    from pipeline.learned.bitstream import MOST_PIXELS
    from pipeline.pixels import decode
    from pipeline.release.making import NotKnown

    (run / "coded").mkdir(exist_ok=True)
    collection = Collection(Pictures(place=str(run), splits=("test",), limit=1))
    images, known = [], []
    for part in collection.parts:
        for row in collection.read(part.name, ["image_id", "image"]).to_pylist():
            images.append((row["image_id"], decode(row["image"]["bytes"], MOST_PIXELS).rgb))
        known += known_of(collection, part.name)
    found, notes, absent = [], [], []
    bench = Bench(Here(device="cpu"), torch.get_num_threads())
    for name, codec in CODECS.items():
        if name in ("learned", "compressai"):
            continue
        given = CodecSettings(codec=name)
        usual = qualities(given)
        middle = usual[len(usual) // 2]
        measured = []
        try:
            for (image_id, image), text in zip(images, known, strict=True):
                try:
                    coded = bench.measure(given, middle, image, "", text if codec.rows else None)
                except NotKnown as why:
                    notes.append(str(why))
                    continue
                if codec.rows:
                    (run / "coded" / f"{image_id[:12]}-{name}.aigi").write_bytes(coded.data)
                of = coded.columns
                measured.append((of["bpp"], of["psnr"], of["encode_ms"], of["decode_ms"]))
        except Missing:
            absent.append(name)
        if measured:
            bpp, decibels, encode_ms, decode_ms = np.mean(measured, axis=0).tolist()
            label = f"{name} {middle:g}" if len(usual) > 1 else name
            seconds = (encode_ms / 1000, decode_ms / 1000)
            found.append(Measured(label, len(measured), bpp, decibels, *seconds))
    notes += [f"recipe needs {model} beside the file" for model in needs(known, {})]
    if absent:
        notes.append(f"not on this machine: {', '.join(absent)}")
    return found, notes


def run_demo(
    out: Path,
    overrides: Iterable[str],
    execute: Callable[[Workflow], None],
    show: Callable[[Table | str], None],
) -> None:
    """Run every stage, load the release back, code some of its images, and print the results.

    Raises:
        AigiError: a stage failed, or an image differs after loading.
    """
    from rich.table import Table

    from pipeline.learned.shipped import DEFAULT
    from pipeline.pixels import CAP_DB

    started = time.perf_counter()
    execute(demo_workflow(out, overrides))
    release = out / "release"
    lines = load_back(release)
    table = Table("config", "split", "size", title="Loaded back with datasets.load_dataset")
    table.add_column("images", justify="right")
    table.add_column("pixels")
    for line in lines:
        table.add_row(
            line["config"],
            line["split"],
            line["size"],
            str(line["images"]),
            "as generated" if line["same"] else "DIFFERENT",
        )
    show(table)
    counts, files = findings(out)
    dropped = Table("reason", "images", "imported files", title="Dropped images and reasons")
    for reason, count in counts.items():
        names = ", ".join(name for name, why in files if why == reason)
        dropped.add_row(reason, str(count), names)
    show(dropped)
    if not all(line["same"] for line in lines):
        raise AigiError(f"{release}: the loaded images differ from the generated ones")
    trained = {path.parent.name: str(path) for path in sorted(out.glob("train/*/last"))}
    coded = Table("codec", title=f"Test images coded to files in {out / 'coded'} and decoded")
    for heading in ("images", "bpp", "prompt bpp", "PSNR, dB"):
        coded.add_column(heading, justify="right")
    for name, count, bpp, prompt, decibels in code_pictures(out, trained | {DEFAULT: DEFAULT}):
        coded.add_row(name, f"{count}", f"{bpp:.3f}", f"{prompt:.3f}", f"{decibels:.2f}")
    show(coded)
    title = "The first test image of each source by the other codecs at hand"
    others = Table("codec, quality", title=title)
    for heading in ("images", "bpp", "PSNR, dB", "seconds to encode", "to decode"):
        others.add_column(heading, justify="right")
    at_hand, notes = code_at_hand(out)
    for one in at_hand:
        times = (f"{one.encode_s:.2f}", f"{one.decode_s:.2f}")
        exact = " (exact)" if one.psnr == CAP_DB else ""
        cells = (f"{one.images}", f"{one.bpp:.4f}", f"{one.psnr:.2f}{exact}", *times)
        others.add_row(one.codec, *cells)
    show(others)
    for note in notes:
        show(note)
    images = sum(line["images"] for line in lines)
    show(f"{images} images in {time.perf_counter() - started:.0f} s: {release}")
    show(f"next: aigi status {out}; aigi verify {release}; aigi report {out}")
