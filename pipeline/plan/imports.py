"""Listed images of an import in, shards of the plan out; images without a caption are rejected."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipeline import AigiError
from pipeline.pictures.container import Container
from pipeline.pictures.lists import list_captions, open_import
from pipeline.pictures.names import Escapes
from pipeline.pictures.original import OriginalPictures
from pipeline.pictures.pictures import in_order, open_pictures
from pipeline.pictures.sources import ImportedSource, OriginalSource
from pipeline.pictures.stated import Made
from pipeline.pixels import BadPicture, image_size
from pipeline.plan.ids import image_id_of, pair_id_of, plan_table, spans
from pipeline.plan.quotas import PLANNED_BYTES_PER_PIXEL, Plan, generations_of
from pipeline.plan.specification import OWN_MODEL, UNKNOWN_MODEL, ImportSpec
from pipeline.prompts.text import SplitShares, normalise, prompt_id, split_of
from pipeline.settings import SPLITS
from pipeline.shown import public_url

# Of an image whose header does not say.
UNKNOWN_PIXELS = 4_000_000


HEADER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Import:
    path: str
    prompt_id: str
    text: str
    split: str
    variants: Mapping[str, str] | None  # path by watermark, where they come marked
    made: Made  # as its file states it


def listed_imports(
    name: str,
    source: ImportedSource,
    shares: SplitShares,
    rejects: list[dict[str, Any]],
    notes: list[str],
) -> list[Import]:
    """Images of an import with caption and split, in the order in which they are planned.

    Images are in the order of their prompts' hashes, so that any first part is a fair sample.
    Images of the original release are in their order on disk, in which archives are read fastest.

    Args:
        notes: gets a line for what was found in another way than as it is.
    """
    found = []
    original = isinstance(source, OriginalSource)
    place = public_url(source.path)
    table = place if isinstance(source, OriginalSource) else public_url(source.captions or place)
    for number, listed in enumerate(list_captions(source, notes), start=1):
        path, caption, problem, stated, line, variants, made = listed
        text = normalise(caption) if caption is not None else ""
        if problem is None and not text:
            problem = "no caption"
        if problem is None and stated is not None and stated not in SPLITS:
            problem = f"unknown split: {stated}"
        if problem is not None:
            rejects.append(
                {
                    "source": name,
                    "file": f"{place if line is None else table}:{path}",
                    "line": line if original or line is not None else number,
                    "reason": problem,
                    "text": text,
                }
            )
            continue
        identity = prompt_id(text)
        split = stated or split_of(identity, shares)
        found.append(Import(path, identity, text, split, variants, made))
    if not original:
        found.sort(key=lambda item: (item.prompt_id, item.path))
    return found


def imported_shards(
    name: str,
    spec: ImportSpec,
    source: ImportedSource,
    split: str,
    pictures: list[Import],
    plan: Plan,
    rounds: list[int],
    options: bool = False,
) -> Iterator[tuple[int, pa.Table]]:
    size = spec.splits[split]  # type: ignore[index]
    wanted = generations_of(size, plan, len(pictures))
    first = min(len(pictures), math.ceil(wanted * (1 + plan.margin)))
    planned = min(len(pictures), first + sum(rounds))
    round_of = [
        number
        for number, start, end in spans([first, *rounds])
        for _ in range(start, min(end, planned))
    ]
    width, height = (None, None) if source.fit == "keep" else (size.width, size.height)
    pixels = _pixels(source, [picture.path for picture in pictures[:planned]], width, height)
    seen: dict[str, int] = defaultdict(int)
    indices = []
    for picture in pictures[:planned]:
        indices.append(seen[picture.prompt_id])
        seen[picture.prompt_id] += 1
    rows: list[dict[str, Any]] = []
    full = plan.shard_mb * 1e6 / PLANNED_BYTES_PER_PIXEL
    held = 0
    # The original release has its marked images; elsewhere we make them.
    watermarks = ("none",) if isinstance(source, OriginalSource) else size.watermarks
    for rank in read_order(source, pictures[:planned], round_of):
        picture, index = pictures[rank], indices[rank]
        paths = picture.variants or dict.fromkeys(watermarks, picture.path)
        each = pixels[rank] * len(paths)
        if rows and (held + each > full or round_of[rank] != rows[-1]["round"]):
            yield rows[-1]["round"], plan_table(rows, options)
            rows, held = [], 0
        held += each
        ids = {
            watermark: image_id_of(
                {"source": name, "path": path, "text": picture.text, "watermark": watermark}
            )
            for watermark, path in paths.items()
        }
        for watermark, image_id in ids.items():
            rows.append(
                {
                    "image_id": image_id,
                    "prompt_id": picture.prompt_id,
                    "text": picture.text,
                    "split": split,
                    "source": name,
                    **picture.made._asdict(),
                    "model": model_of(spec, picture.made),
                    "revision": spec.revision,
                    "width": width,
                    "height": height,
                    "watermark": watermark,
                    "pair_id": pair_id_of(ids),
                    "path": paths[watermark],
                    "index": index,
                    "rank": rank,
                    "round": round_of[rank],
                }
            )
    if rows:
        yield rows[-1]["round"], plan_table(rows, options)


def model_of(spec: ImportSpec, made: Made) -> str:
    """The model of a row: of its source or, where that says so, of the image itself."""
    return (made.model or UNKNOWN_MODEL) if spec.model == OWN_MODEL else spec.model


def read_order(source: ImportedSource, pictures: list[Import], round_of: list[int]) -> list[int]:
    """Ranks in the order in which images are read: where rows are read in groups, as they lie.

    What is planned is still the first of them by the hash of its prompt; only the order in which
    it is made differs, so that each row group is read once a round.
    """
    ranks = list(range(len(pictures)))
    if isinstance(source, OriginalSource) or not in_order(source.path):
        return ranks
    with open_pictures(source.path) as opened:
        places = {name: place for place, name in enumerate(opened.names())}
    return sorted(ranks, key=lambda rank: (round_of[rank], places.get(pictures[rank].path, 0)))


def _pixels(
    source: ImportedSource, names: list[str], width: int | None, height: int | None
) -> list[int]:
    """Pixels of each image, from the specification, else from its file header."""
    if width is not None and height is not None:
        return [width * height] * len(names)
    with open_import(source) as pictures:
        return [_pixels_of(pictures, name) for name in names]


def _pixels_of(pictures: Container | OriginalPictures, name: str) -> int:
    if not isinstance(pictures, OriginalPictures) and pictures.in_order:
        return UNKNOWN_PIXELS  # a header costs as much as its row group
    try:
        size = image_size(pictures.head(name, HEADER_BYTES))
    except (BadPicture, Escapes):  # its row will say so
        size = None
    return UNKNOWN_PIXELS if size is None else size[0] * size[1]


def stated_splits(
    imports: dict[str, list[Import]],
    rejects: list[dict[str, Any]],
    before: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Splits that import lists state; they win over the hash, for every source alike.

    Where two lists disagree about a prompt, a held-out split wins, test first.

    Args:
        before: splits of prompts that the run has had: no prompt changes its split.
    """
    order = {split: rank for rank, split in enumerate(("test", "validation", "train"))}
    stated: dict[str, str] = {}
    for pictures in imports.values():
        for picture in pictures:
            old = stated.get(picture.prompt_id)
            if old is None or order[picture.split] < order[old]:
                stated[picture.prompt_id] = picture.split
    stated |= before
    for name, pictures in imports.items():
        for picture in pictures:
            if stated[picture.prompt_id] != picture.split:
                rejects.append(
                    {
                        "source": name,
                        "file": picture.path,
                        "line": None,
                        "reason": f"split: listed as {picture.split}, but its prompt is in "
                        f"{stated[picture.prompt_id]}",
                        "text": picture.text,
                    }
                )
        imports[name] = [p for p in pictures if stated[p.prompt_id] == p.split]
    return stated


def local_import(sources: Mapping[str, object], name: str) -> ImportedSource:
    """Where the images of an imported source are on this machine.

    Args:
        sources: the workflow's `sources`.

    Raises:
        AigiError: they do not state where its images are.
    """
    source = sources.get(name)
    if not isinstance(source, ImportedSource):
        raise AigiError(
            f"sources.{name}: this source is imported; set where its images are, for example "
            f"--set sources.{name}.kind=import --set sources.{name}.path=FOLDER_OR_ZIP, "
            "or leave it out with plan.sources"
        )
    return source
