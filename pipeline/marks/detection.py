"""Images in; the messages of their watermarks, and how likely they are by chance, out.

A p-value is the chance that an image without this mark scores as high. For a message it is
binomial: an unmarked image agrees with each of the 48 bits by the toss of a coin. For a visible
mark it is a rank: how many other places of the same image, where the mark is not, look as much
like it. Each p-value belongs to one image and one variant; among a thousand unmarked images, ten
are expected below 0.01.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from pipeline import AigiError
from pipeline.marks.dwt_dct import BITS, READ, Floats, read_message, rightly_read
from pipeline.marks.names import embed, parse
from pipeline.marks.visible import Visible, layer, place
from pipeline.outside import opened
from pipeline.pictures.image_rows import ParquetPictures
from pipeline.pictures.names import Escapes
from pipeline.pictures.pictures import FolderPictures, open_pictures, packed
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.store import Store

MAX_PIXELS = 64_000_000
PLACES = 64  # looked at along each side, at most


@dataclass(frozen=True)
class Detection:
    """What was found of one variant in one image.

    Attributes:
        bits: the message as read, `0`, `1`, or `.` where no block holds the bit; empty for a
            visible mark.
        bit_accuracy: share of the bits read that are right; None where none was read.
        match: visible marks: correlation with the mark at its place, -1 to 1; None where the
            mark or the image is flat there.
        p_value: chance of a score as high without the mark; 1 where nothing is known.
        whole: every bit was read, and right; None for a visible mark.
    """

    variant: str
    bits: str
    bit_accuracy: float | None
    match: float | None
    p_value: float
    whole: bool | None


def chance(right: int, of: int) -> float:
    """Probability of at least `right` heads in `of` tosses of a coin."""
    ways = sum(math.comb(of, count) for count in range(right, of + 1))
    return float(ways / 2**of)


def _luma(rgb: NDArray[Any]) -> Floats:
    luma: Floats = rgb @ np.array([0.299, 0.587, 0.114])
    return luma


def _template(visible: Visible, height: int, width: int) -> Floats:
    """What the mark looks like over mid grey, less its mean (hxw)."""
    colour, weight = layer(visible, height, width)
    grey = _luma(colour / 1000) / 255 + 128 * (1 - weight[..., 0] / 255_000)
    centred: Floats = grey - grey.mean()
    return centred


def _correlation(patches: Floats, template: Floats) -> list[float]:
    """Of every patch (Nxhxw) with the template; NaN where a patch is flat."""
    flat = patches.reshape(len(patches), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    size = np.sqrt((flat * flat).sum(axis=1) * (template * template).sum())
    product = flat @ template.ravel()
    found = np.full(len(flat), np.nan)
    return [float(x) for x in np.divide(product, size, out=found, where=size > 1e-6)]


def _steps(length: int, size: int) -> list[int]:
    """Offsets along one side, half a mark apart or more."""
    count = min(PLACES, 2 * (length - size) // size + 1)
    return sorted({round(x) for x in np.linspace(0, length - size, max(count, 1))})


def match_visible(rgb: RGB, visible: Visible) -> tuple[float | None, float]:
    """Correlation with the mark at its place, and the share of other places that match as well.

    Other places are half a mark apart and never touch the stated one. The p-value counts the
    stated place too, so with n others it is at least 1/(n+1): a large mark leaves few others
    and cannot be told from chance.

    Args:
        rgb: uint8, H x W x 3.
    """
    luma = _luma(rgb)
    height, width = luma.shape
    rows, columns = place(visible, height, width)
    template = _template(visible, height, width)
    h, w = template.shape
    if not template.any():
        return None, 1.0
    (here,) = _correlation(luma[rows, columns][None], template)
    if math.isnan(here):
        return None, 1.0
    others: list[float] = []
    for top in _steps(height, h):
        lefts = [
            left
            for left in _steps(width, w)
            if abs(top - rows.start) >= h or abs(left - columns.start) >= w
        ]
        if lefts:
            band = sliding_window_view(luma[top : top + h], (h, w))[0]
            others += _correlation(band[lefts], template)
    as_good = sum(1 for other in others if other >= here)
    return here, (1 + as_good) / (1 + len(others))


def detect(rgb: RGB, name: str) -> Detection:
    """Look for one variant in an HxWx3 uint8 image.

    Raises:
        ValueError: no such variant, or one that leaves no mark (`none`).
    """
    variant = parse(name)
    if isinstance(variant, Visible):
        match, p_value = match_visible(rgb, variant)
        return Detection(str(variant), "", None, match, p_value, None)
    if variant not in READ:
        raise ValueError(f"{variant}: leaves no mark; use {', '.join(READ)} or visible:…")
    bits = read_message(READ[variant](rgb))
    right, read = rightly_read(bits), BITS - bits.count(".")
    accuracy = right / read if read else None
    return Detection(variant, bits, accuracy, None, chance(right, read), right == BITS)


# --- files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One line of `aigi watermark detect`.

    Attributes:
        stated: the watermark that the release states; empty for other images.
    """

    file: str
    stated: str
    variant: str
    bit_accuracy: float | None = None
    match: float | None = None
    p_value: float | None = None
    whole: bool | None = None
    bits: str = ""
    error: str = ""


def _stated(path: str, count: int) -> list[str]:
    """The `watermark` column of a parquet file; empty strings where it has none."""
    with opened(path) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        if "watermark" not in parquet.schema_arrow.names:
            return [""] * count
        column = parquet.read(columns=["watermark"]).column(0).cast(pa.string())
        return [value or "" for value in column.to_pylist()]


def _look(name: str, stated: str, data: bytes, wanted: Iterable[str]) -> Iterator[Found]:
    """Lines of one image, a variant each; the stated one is looked for as well."""
    try:
        rgb = decode(data, MAX_PIXELS).rgb
    except BadPicture as error:
        yield Found(name, stated, "", error=str(error))
        return
    for variant in dict.fromkeys([*wanted, *([stated] if stated not in ("", "none") else [])]):
        try:
            found = detect(rgb, variant)
        except ValueError as error:
            yield Found(name, stated, variant, error=str(error))
        else:
            yield Found(name, stated, **asdict(found))


def _search_source(location: str, wanted: tuple[str, ...]) -> Iterator[Found]:
    """All images of one folder, zip or parquet file."""
    try:
        with open_pictures(location) as pictures:
            names = pictures.names()
            marks = [""] * len(names)
            if isinstance(pictures, ParquetPictures):
                marks = _stated(location, len(names))
            for name, stated in zip(names, marks, strict=True):
                where = f"{location.rstrip('/')}/{name}"
                try:
                    data = pictures.read(name)
                except (BadPicture, Escapes) as error:
                    yield Found(where, stated, "", error=str(error))
                else:
                    yield from _look(where, stated, data, wanted)
    except (OSError, AigiError, pa.ArrowException) as error:
        yield Found(location, "", "", error=str(error))


def _search_file(path: str, wanted: tuple[str, ...]) -> Iterator[Found]:
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.lexists(path):
        yield Found(path, "", "", error="no such picture")
        return
    try:
        data = FolderPictures(folder).read(name)
    except (BadPicture, AigiError) as error:
        yield Found(path, "", "", error=str(error))
    else:
        yield from _look(path, "", data, wanted)


def search(paths: Iterable[str], wanted: tuple[str, ...] = tuple(READ)) -> Iterator[Found]:
    """Look for variants in images, folders, zip and parquet files, and release folders.

    A file that cannot be read is a line with an error; the search goes on.
    """
    for path in paths:
        if packed(path):
            yield from _search_source(path, wanted)
        elif "://" in path or os.path.isdir(path):
            # A release holds its images in parquet files; any other folder as files.
            files = [f"{path.rstrip('/')}/{name}.parquet" for name in Store(path).shards("")]
            for location in files or [path]:
                yield from _search_source(location, wanted)
        else:
            yield from _search_file(path, wanted)


# --- robustness -------------------------------------------------------------------------------


def _jpeg(rgb: RGB, quality: int) -> RGB:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality)
    return decode(out.getvalue(), MAX_PIXELS).rgb


def _halved(rgb: RGB) -> RGB:
    height, width = rgb.shape[:2]
    picture = Image.fromarray(rgb)
    half = picture.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BICUBIC)
    return np.asarray(half.resize((width, height), Image.Resampling.BICUBIC))


def _cropped(rgb: RGB) -> RGB:
    top, left = (size // 10 for size in rgb.shape[:2])
    return rgb[top : rgb.shape[0] - top, left : rgb.shape[1] - left]


ATTACKS: dict[str, Callable[[RGB], RGB]] = {
    "nothing": lambda rgb: rgb,
    "JPEG 90": lambda rgb: _jpeg(rgb, 90),
    "JPEG 75": lambda rgb: _jpeg(rgb, 75),
    "JPEG 50": lambda rgb: _jpeg(rgb, 50),
    "half size and back": _halved,
    "a tenth cut off each side": _cropped,
}
"""What may happen to a marked image. JPEG has halved colour planes, as Pillow's default has
and most programs'; both resizes are bicubic. After a crop the blocks are elsewhere, and the
message is read as it then is, without a search for its beginning."""


@dataclass(frozen=True)
class Survival:
    """How many of the marked images could still be read.

    Attributes:
        whole: share of images whose message is read back whole.
        bit_accuracy: mean over the images.
    """

    variant: str
    after: str
    pictures: int
    whole: float
    bit_accuracy: float


def robustness(
    folder: str, limit: int | None = None, say: Callable[[str], None] = print
) -> list[Survival]:
    """Watermark the images of a folder, zip or parquet file, degrade them, and read them.

    The first lines of each variant are the images without a mark: what chance reads.

    Args:
        limit: at most this many, evenly spread over all names.
        say: called with a line for every image that cannot be used.

    Raises:
        AigiError: no image could be used.
    """
    results: dict[tuple[str, str], list[Detection]] = {
        (variant, after): [] for variant in READ for after in ("not marked", *ATTACKS)
    }
    with open_pictures(folder) as pictures:
        names = pictures.names()
        count = len(names) if limit is None else min(limit, len(names))
        for name in (names[i * len(names) // count] for i in range(count)):
            try:
                rgb = decode(pictures.read(name), MAX_PIXELS).rgb
            except BadPicture as error:
                say(f"{name}: skipped: {error}")
                continue
            if (rgb.shape[0] * 8 // 10 // 8) * (rgb.shape[1] * 8 // 10 // 8) < BITS:
                say(f"{name}: skipped: {rgb.shape[1]}x{rgb.shape[0]} holds fewer than {BITS} bits")
                continue
            for variant in READ:
                results[variant, "not marked"].append(detect(rgb, variant))
                marked = embed(rgb, variant)
                for after, attack in ATTACKS.items():
                    results[variant, after].append(detect(attack(marked), variant))
    if not any(results.values()):
        raise AigiError(f"{folder}: no readable image that has room for {BITS} bits")
    return [
        Survival(
            variant,
            after,
            len(found),
            sum(d.whole is True for d in found) / len(found),
            sum(d.bit_accuracy or 0.0 for d in found) / len(found),
        )
        for (variant, after), found in results.items()
    ]


def write_csv(rows: Iterable[Any], kind: type, out: IO[str]) -> None:
    """Rows of one kind as CSV with a header, each written as soon as it is there."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(kind)])
    for row in rows:
        writer.writerow(["" if value is None else value for value in astuple(row)])
