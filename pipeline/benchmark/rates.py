"""The measurements table in, rate-distortion curves and BD-rates by source out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.benchmark.bd import (
    Array,
    Curve,
    Difference,
    Interpolation,
    Interval,
    NoComparison,
    bd_quality,
    bd_rate,
    bootstrap,
    mean_curve,
)
from pipeline.benchmark.metrics import METRICS, shown

POOLED = "all"
FOLDER, BD_RATES, REPORTED = "benchmark", "bd-rates.csv", "measurements"
"""Where the report of a run stands, its table of BD-rates, and the measurements that it is of."""


@dataclass(frozen=True)
class Curves:
    """One codec over the images of one source.

    Attributes:
        qualities: from low to high rate.
        bpp, encode_s, decode_s: float64, images x qualities: bits a pixel, above 0, and seconds.
        megapixels: float64, one for each image, in 10^6 pixels, above 0.
        images: ids of the images, those that were coded at every quality.
        failed: images that were not.
        values: such arrays of the columns of METRICS that say something of these images, not a
            number where an image has no prompt or mark, or is too small.
    """

    qualities: tuple[float, ...]
    images: tuple[str, ...]
    failed: int
    bpp: Array
    encode_s: Array
    decode_s: Array
    megapixels: Array
    values: Mapping[str, Array]

    @property
    def encode_s_per_mp(self) -> Array:
        """Seconds a megapixel to code (float64, images x qualities, at least 0)."""
        return self.encode_s / self.megapixels[:, None]

    @property
    def decode_s_per_mp(self) -> Array:
        """Seconds a megapixel to decode (float64, images x qualities, at least 0)."""
        return self.decode_s / self.megapixels[:, None]

    def points(self, metric: str) -> dict[str, tuple[Array, Array]]:
        """Rates and values by image, of those that have a number at every quality.

        Returns:
            Two of float64, shape (Q,) over the qualities: bits a pixel, above 0, and the metric as
            it is measured, finite.
        """
        if metric not in self.values:
            return {}
        rows = zip(self.images, self.bpp, self.values[metric], strict=True)
        return {image: (bpp, values) for image, bpp, values in rows if np.isfinite(values).all()}

    def means(self, metric: str) -> Curve:
        """The curve of the means over `points`; not numbers without any."""
        points = self.points(metric)
        if not points:
            return Curve(tuple(self.bpp.mean(0).tolist()), (math.nan,) * len(self.qualities))
        return mean_curve(list(points.values()))

    def curve(self, metric: str) -> Curve:
        """The means as tables and figures show them: averaged first, then given in dB."""
        return in_db(self.means(metric), metric)


def in_db(curve: Curve, metric: str) -> Curve:
    """The curve with values in dB, if the metric has such."""
    db = METRICS[metric].db
    return curve if db is None else Curve(curve.rates, tuple(db(value) for value in curve.values))


def group_name(source: str, watermark: str) -> str:
    """What figures call images of a source, with or without a mark."""
    return source if watermark == "none" else f"{source} ({watermark})"


def curves(measurements: pa.Table, order: Iterable[str]) -> dict[str, dict[str, Curves]]:
    """Curves by group and codec; where there are several groups, the last one pools the others.

    It is called `all`, and where a group of images is, `all together`.

    Args:
        measurements: of MEASUREMENTS.
        order: labels of the codecs, as figures list them.
    """
    found: dict[str, dict[str, dict[str, dict[float, dict[str, float]]]]] = {}
    together: dict[str, dict[str, dict[float, dict[str, float]]]] = {}
    columns = [
        *("image_id", "source", "watermark", "codec", "quality", "width", "height"),
        *("bpp", "encode_ms", "decode_ms", "error"),
    ]
    metrics = shown(measurements.column_names)
    for row in measurements.select([*columns, *(of.name for of in metrics)]).to_pylist():
        group = group_name(row["source"], row["watermark"])
        for of in (found.setdefault(group, {}), together):
            images = of.setdefault(row["codec"], defaultdict(dict))
            # Two sources may share a picture, as variants of a mark do not.
            images[f"{group}/{row['image_id']}"][row["quality"]] = row
    names = sorted(found)
    pool = POOLED
    while pool in found:
        pool += " together"
    if len(found) > 1:
        found[pool] = together
        names.append(pool)
    made = {
        name: {
            label: _curves(
                found[name][label], [of.name for of in metrics if of.pooled or name != pool]
            )
            for label in order
            if label in found[name]
        }
        for name in names
    }
    return {
        name: {label: one for label, one in of.items() if one is not None}
        for name, of in made.items()
    }


def _curves(
    images: Mapping[str, Mapping[float, Mapping[str, float]]], metrics: Iterable[str]
) -> Curves | None:
    qualities = sorted({quality for rows in images.values() for quality in rows})
    whole = {
        image: rows
        for image, rows in sorted(images.items())
        if all(q in rows and rows[q]["error"] is None for q in qualities)
    }
    if not whole:
        return None

    def array(column: str) -> Array:
        return np.array([[rows[q][column] for q in qualities] for rows in whole.values()], float)

    order = np.argsort(array("bpp").mean(0), kind="stable")
    values = {name: array(name)[:, order] for name in metrics}
    return Curves(
        qualities=tuple(qualities[i] for i in order),
        images=tuple(whole),
        failed=len(images) - len(whole),
        bpp=array("bpp")[:, order],
        encode_s=array("encode_ms")[:, order] / 1000,
        decode_s=array("decode_ms")[:, order] / 1000,
        megapixels=(array("width") * array("height"))[:, 0] / 1e6,
        values={name: of for name, of in values.items() if np.isfinite(of).any()},
    )


@dataclass(frozen=True)
class Comparison:
    """A codec against the anchor over the images that both coded.

    Attributes:
        quality: BD-PSNR or its like; None where the curves share no rates.
        reason: why there is no figure; empty where there is one.
    """

    images: int
    rate: Difference | None = None
    quality: Difference | None = None
    interval: Interval | None = None
    reason: str = ""


def compare(anchor: Curves, test: Curves, metric: str, how: Interpolation) -> Comparison:
    """BD-rate in per cent with its interval, and BD-quality in dB.

    Args:
        anchor, test: float64, images x qualities, of which the images of both are compared.
        metric: a name of METRICS.
        how: the interpolation.
    """
    ours, theirs = test.points(metric), anchor.points(metric)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return Comparison(0, reason="no image that both coded at every quality")
    one, two = (in_db(mean_curve([of[image] for image in shared]), metric) for of in (theirs, ours))
    try:
        rate = bd_rate(one, two, how)
    except NoComparison as error:
        return Comparison(len(shared), reason=str(error))
    quality = None
    with suppress(NoComparison):  # of a far better codec the rates may not overlap, as values do
        quality = bd_quality(one, two, how)

    def difference(one: Curve, other: Curve, how: Interpolation) -> Difference:
        return bd_rate(in_db(one, metric), in_db(other, metric), how)

    interval = bootstrap(theirs, ours, how, difference)
    return Comparison(len(shared), rate, quality, interval)


def against(
    anchor: str, found: Mapping[str, Curves], metric: str, how: Interpolation
) -> dict[str, Comparison]:
    """Each codec of a group against the anchor; none where that is not among them."""
    if anchor not in found:
        return {}
    return {
        label: compare(found[anchor], mine, metric, how)
        for label, mine in found.items()
        if label != anchor
    }
