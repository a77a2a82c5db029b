"""A measurements table in; what prompts cost, and the most that they can save, out.

Knowing the prompt T of an image X can save at most I(X;T) bits, which is at most H(T), the
information of the prompt itself. What a good coder makes of the prompt is near H(T). So a codec
that reads prompts and stores them cannot gain on average, and one that is told them for nothing
gains at most their bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.benchmark.bd import Interpolation
from pipeline.benchmark.rates import Comparison, against, curves


@dataclass(frozen=True)
class Spent:
    """What the prompts of a codec take at one quality: means over the images that have one.

    Attributes:
        images: of this codec and quality whose file contains a prompt.
        bpp, bpp_without_prompt: bits a pixel of the files, and without the prompts' bytes.
        prompt_bits: of the prompt in a file.
        most: share of the rate without the prompt's bytes that a prompt of so many bits could save.
    """

    codec: str
    quality: float
    images: int
    bpp: float
    bpp_without_prompt: float
    prompt_bits: float
    most: float


def spent(measurements: pa.Table) -> list[Spent]:
    """A line for each codec and quality that stores prompts; none without any.

    Args:
        measurements: of MEASUREMENTS.
    """
    groups: dict[tuple[str, float], list[tuple[int, int, int]]] = defaultdict(list)
    columns = ["codec", "quality", "width", "height", "bytes", "prompt_bytes", "error"]
    for row in measurements.select(columns).to_pylist():
        if row["error"] is None and row["prompt_bytes"]:
            pixels = row["width"] * row["height"]
            groups[row["codec"], row["quality"]].append((pixels, row["bytes"], row["prompt_bytes"]))
    return [
        Spent(
            *(codec, quality, len(rows)),
            bpp=fmean(8 * whole / pixels for pixels, whole, _ in rows),
            bpp_without_prompt=fmean(8 * (whole - own) / pixels for pixels, whole, own in rows),
            prompt_bits=fmean(8 * own for _, _, own in rows),
            most=sum(own for _, _, own in rows) / sum(whole - own for _, whole, own in rows),
        )
        for (codec, quality), rows in sorted(groups.items())
    ]


HEADINGS = (
    *("codec", "quality", "pictures", "bpp", "without prompts"),
    *("bits of a prompt", "can save at most"),
)
WORDS = (
    "A prompt can save at most its own information, for which its bits in a file stand here. A "
    "codec that stores the prompt gains nothing from it on average; one whose decoder knows it "
    "already gains at most the last column."
)


def cells(one: Spent) -> tuple[str, ...]:
    """A row of the table with `HEADINGS`."""
    rates = (f"{one.bpp:.4f}", f"{one.bpp_without_prompt:.4f}")
    named = (one.codec, f"{one.quality:g}", f"{one.images}")
    return (*named, *rates, f"{one.prompt_bits:.0f}", f"{one.most:.2%}")


def without_prompts(measurements: pa.Table) -> pa.Table:
    """The same measurements as if the prompts were known to the decoder: their bytes do not count.

    Args:
        measurements: of MEASUREMENTS; those that failed have no rate.
    """
    wide = [measurements[name].cast(pa.float64()) for name in ("bytes", "prompt_bytes")]
    pixels = pc.multiply(*(measurements[name].cast(pa.float64()) for name in ("width", "height")))
    bpp = pc.divide(pc.multiply(pc.subtract(*wide), pa.scalar(8.0)), pixels)
    place = measurements.column_names.index("bpp")
    return measurements.set_column(place, measurements.schema.field("bpp"), bpp)


def compared(
    measurements: pa.Table, labels: Sequence[str], anchor: str, how: Interpolation
) -> dict[str, dict[str, Comparison]]:
    """BD-rates (PSNR) against the anchor by group and codec, without the prompts' bytes.

    Args:
        measurements: of MEASUREMENTS.
        labels: of the codecs, as tables list them.
        anchor: one of them.
        how: the interpolation.
    """
    found = curves(without_prompts(measurements), labels)
    return {group: against(anchor, of, "psnr", how) for group, of in found.items() if anchor in of}
