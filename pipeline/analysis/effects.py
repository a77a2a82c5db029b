"""The `characteristics` table in, the `effects` table out: effect sizes and two-sample tests.

With thousands of images the smallest difference has a small p-value; effect sizes show how large it
is. The p-values ignore that images of one prompt are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.analysis.best import unmarked
from pipeline.analysis.characteristics import CHARACTERISTICS, Characteristics
from pipeline.progress import Progress
from pipeline.stage import Build
from pipeline.store import Shard, Store

EFFECTS = pa.schema(
    # A source beside the reference (or all other sources), for each number of characteristics;
    # pictures with a watermark are left out.
    [
        ("characteristic", pa.string()),
        ("source", pa.string()),
        ("against", pa.string()),  # null: all other sources
        ("images", pa.int64()),
        ("images_against", pa.int64()),
        ("mean", pa.float64()),
        ("mean_against", pa.float64()),
        ("std", pa.float64()),
        ("std_against", pa.float64()),
        ("cohens_d", pa.float64()),  # difference of means over the pooled standard deviation
        ("cliffs_delta", pa.float64()),  # P(greater) - P(less) of two pictures, -1 to 1
        ("ks", pa.float64()),  # two-sample Kolmogorov-Smirnov statistic, 0 to 1
        ("p_value", pa.float64()),  # of it
        ("p_adjusted", pa.float64()),  # by Benjamini and Hochberg, over all rows
    ]
)

VERSION = 1
NUMBERS = tuple(field.name for field in CHARACTERISTICS if field.type == pa.float32())
Floats = NDArray[np.float64]


def by_source(table: pa.Table, columns: Sequence[str]) -> dict[str, dict[str, Floats]]:
    """Known values by column and source; images with a watermark are left out.

    Returns:
        float64, shape (n,), n from 1: those of a column that are not null, in its unit and range.
    """
    plain = unmarked(table)
    sources = sorted(pc.unique(plain["source"]).to_pylist())
    rows = {source: plain.filter(pc.equal(plain["source"], source)) for source in sources}
    found: dict[str, dict[str, Floats]] = {}
    for column in columns:
        values = {
            source: mine[column].drop_null().cast(pa.float64()).to_numpy()
            for source, mine in rows.items()
        }
        found[column] = {source: numbers for source, numbers in values.items() if len(numbers)}
    return found


def compare(one: Floats, other: Floats) -> dict[str, float | None]:
    """Means, spreads, effect sizes and the test of two float64 samples, neither of them empty.

    A value that is undefined for small or flat samples is None.

    Args:
        one, other: float64, shapes (n,) and (m,), finite.
    """
    from scipy.stats import ks_2samp, rankdata

    n, m = len(one), len(other)
    spread = [float(values.std(ddof=1)) if len(values) > 1 else None for values in (one, other)]
    d = None
    if n + m > 2:
        pooled = ((n - 1) * (spread[0] or 0) ** 2 + (m - 1) * (spread[1] or 0) ** 2) / (n + m - 2)
        d = float(one.mean() - other.mean()) / math.sqrt(pooled) if pooled > 0 else None
    # Mann and Whitney's U counts the pairs in which `one` is greater, ties by half.
    ranks = rankdata(np.concatenate([one, other]))
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    test = ks_2samp(one, other)
    return {
        "images": n,
        "images_against": m,
        "mean": float(one.mean()),
        "mean_against": float(other.mean()),
        "std": spread[0],
        "std_against": spread[1],
        "cohens_d": d,
        "cliffs_delta": 2 * u / (n * m) - 1,
        "ks": float(test.statistic),
        "p_value": float(test.pvalue),
    }


def _rows(
    found: Mapping[str, Mapping[str, Floats]], reference: str | None
) -> Iterator[dict[str, Any]]:
    for column, values in found.items():
        for source, one in values.items():
            others = [v for name, v in values.items() if name != source]
            if reference is not None:
                others = [values[reference]] if reference in values and source != reference else []
            if others:
                yield {
                    "characteristic": column,
                    "source": source,
                    "against": reference,
                    **compare(one, np.concatenate(others)),
                }


def effects(found: Mapping[str, Mapping[str, Floats]], reference: str | None) -> pa.Table:
    """EFFECTS of values by column and source.

    Args:
        found: float64, shape (n,), n from 1, finite, as `by_source` returns them.
        reference: the source that all others are compared with; None: each with all others.

    Raises:
        AigiError: there is no source with the name of the reference.
    """
    from scipy.stats import false_discovery_control

    names = {source for values in found.values() for source in values}
    if reference is not None and reference not in names:
        raise AigiError(
            f"characteristics.reference: no source {reference}; there are "
            + ", ".join(sorted(names))
        )
    rows = list(_rows(found, reference))
    if rows:
        adjusted = false_discovery_control([row["p_value"] for row in rows])
        for row, value in zip(rows, adjusted.tolist(), strict=True):
            row["p_adjusted"] = value
    return pa.Table.from_pylist(rows, EFFECTS)


def _build(reference: str | None, store: Store, progress: Progress) -> list[Shard]:
    table = store.read_all("characteristics")
    failed = table.num_rows - table["error"].null_count
    made = effects(by_source(table, NUMBERS), reference)
    if failed:
        progress.say(f"effects: {failed:,} of {table.num_rows:,} images have no numbers")
    return [store.write("effects", "part-00000", made, EFFECTS)]


def stage(settings: Characteristics) -> Build:
    """The effects stage: sources are compared with the reference, or each with all others."""
    reference = settings.reference
    return Build(
        table="effects",
        version=VERSION,
        schema=EFFECTS,
        settings={"reference": reference},
        inputs=("characteristics",),
        build=partial(_build, reference),
        remake=True,
    )
