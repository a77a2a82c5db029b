"""Random ViT-B-32 weights and PNG pictures in, images/s of the `Embedder` out.

The peer is the bare model on tensors that were prepared beforehand, in the same batches, with
every distinct prompt tokenised beforehand and encoded once. Both sides hold the same weights and
take turns; their vectors are compared. Two images share a prompt, as in the dataset. Beside the
clock the processor is asked: where others work here, more threads get a larger part of it, and
ours has those that decode.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.perf import bare
from tests.perf.report import Measurement

TARGET = 0.9
MODEL = "ViT-B-32"
SIDE = 512  # as SD 2.1-base makes them


@dataclass(frozen=True)
class Size:
    """How much is embedded a run, and how often the two sides take turns."""

    batch: int
    batches: int
    pairs: int


FULL = Size(batch=16, batches=6, pairs=5)
QUICK = Size(batch=4, batches=2, pairs=1)


def save(folder: Path) -> None:
    """Write a random model as open_clip's local folders are laid out; its tokenizer is built in."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, pretrained=None)
    folder.mkdir(parents=True)
    config = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def shard(count: int) -> pa.Table:
    """Rows of a shard: smooth pictures with some grain, whose PNG is as large as a photo's."""
    from pipeline.pixels import png_bytes
    from pipeline.tables import IMAGES, PLAN

    sentences = bare.sentences((count + 1) // 2)
    rows = []
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 4, smooth.shape)
        rgb = (smooth + grain).clip(0, 255).astype(np.uint8)
        image = {"bytes": png_bytes(rgb), "path": f"{i}.png"}
        size = {"width": SIDE, "height": SIDE}
        rows.append({"image_id": str(i), "image": image, **size, "text": sentences[i // 2]})
    columns = ("image_id", "image", "width", "height")
    schema = pa.schema([*(IMAGES.field(name) for name in columns), PLAN.field("text")])
    return pa.Table.from_pylist(rows, schema=schema)


def run(quick: bool = False) -> list[Measurement]:
    """Make model and pictures, let both sides take turns, and compare.

    Raises:
        RuntimeError: the two sides did not make the same vectors.
    """
    import torch

    from pipeline.models.clip import Embeddings
    from pipeline.scores.embeddings import Embedder, column_vectors, stored_picture

    size, threads = QUICK if quick else FULL, os.cpu_count() or 1
    count = size.batch * size.batches
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="aigi-bench-") as name:
        save(Path(name) / "model")
        settings = Embeddings(folder=str(Path(name) / "model"), batch_size=size.batch)
        worker = Embedder(settings, "cpu")
    clip = worker.clip
    rows = shard(count)
    listed = rows.to_pylist()
    images: list[Any] = []
    texts: list[Any] = []
    seen: set[str] = set()
    for start in range(0, count, size.batch):
        part = listed[start : start + size.batch]
        images.append(torch.stack([clip.prepare(stored_picture(row)) for row in part]))
        new = [text for text in dict.fromkeys(row["text"] for row in part) if text not in seen]
        seen.update(new)
        texts.append(clip.tokenizer(new) if new else None)

    made: dict[str, Any] = {}

    def ours() -> None:
        table = pa.concat_tables(worker(rows))
        made["ours"] = column_vectors(table["image_vector"])

    def peer() -> None:
        found = []
        with torch.inference_mode():
            for pixels, tokens in zip(images, texts, strict=True):
                if tokens is not None:
                    clip.model.encode_text(tokens, normalize=True)
                found.append(clip.model.encode_image(pixels, normalize=True).numpy())
        made["bare"] = np.concatenate(found)

    with torch.inference_mode():  # the first call of a model prepares what it keeps
        clip.model.encode_image(images[0])
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    busy: dict[str, list[float]] = {"ours": [], "bare": []}
    for pair in range(size.pairs):
        sides = [("ours", ours), ("bare", peer)]
        # Who goes first changes: a machine that warms up or throttles favours neither.
        for side, work in reversed(sides) if pair % 2 else sides:
            started, before = time.perf_counter(), time.process_time()
            work()
            seconds[side].append(time.perf_counter() - started)
            busy[side].append(time.process_time() - before)
        print(
            f"embeddings: pair {pair + 1} of {size.pairs}, {seconds['ours'][-1]:.1f} s and bare "
            f"{seconds['bare'][-1]:.1f} s for {count} images",
            flush=True,
        )
    if np.abs(made["ours"] - made["bare"]).max() > 1e-3:  # stored as float16
        raise RuntimeError("embeddings: our vectors differ from those of the bare model")
    rate, bare_rate = (count / statistics.median(seconds[side]) for side in ("ours", "bare"))
    return [
        Measurement(
            what=f"embeddings of {SIDE}x{SIDE} PNG over bare {MODEL} on prepared tensors",
            unit="images/s",
            ours=rate,
            peer=bare_rate,
            target=f"ratio of at least {TARGET}",
            met=rate / bare_rate >= TARGET,
            detail={
                "threads": threads,
                "decode_threads": worker.threads,
                "batch": size.batch,
                "batches": size.batches,
                "texts": len(seen),
                "png_bytes": sum(len(row["image"]["bytes"]) for row in listed),
                "seconds": seconds,
                "processor_seconds": busy,
                "ratio_of_each_pair": [
                    b / a for a, b in zip(seconds["ours"], seconds["bare"], strict=True)
                ],
            },
        ),
        Measurement(
            what="the same by seconds of the processor, decoding and resizing included",
            unit="images/s",
            ours=count / statistics.median(busy["ours"]),
            peer=count / statistics.median(busy["bare"]),
        ),
    ]
