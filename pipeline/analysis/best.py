"""The `alignments` table in, the share of prompts for which each source is best out.

Images with a watermark are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Best:
    """Shares of prompts by source, for one score.

    Attributes:
        shares: they sum to 1; sources that tie share a prompt.
        prompts: number of prompts for which each of these sources has an image.
        left_out: sources that have no such prompts.
    """

    shares: dict[str, float]
    prompts: int
    left_out: tuple[str, ...]


def unmarked(table: pa.Table) -> pa.Table:
    """Rows without a watermark: the others show the same images again."""
    return table.filter(pc.equal(pc.fill_null(table["watermark"], "none"), "none"))


def _means(table: pa.Table) -> dict[str, dict[str, dict[str, float]]]:
    """Mean of each score by prompt and source."""
    values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in unmarked(table).select(["text", "source", "scores"]).to_pylist():
        for name, score in row["scores"] or ():
            values[name][row["text"]][row["source"]].append(score)
    return {
        name: {
            text: {source: sum(found) / len(found) for source, found in sources.items()}
            for text, sources in texts.items()
        }
        for name, texts in values.items()
    }


def best(table: pa.Table) -> dict[str, Best]:
    """The share of prompts for which each source is best, by score.

    Sources are compared over the prompts that all of them have. If there are none, the source that
    shares the fewest prompts with others is left out, and so on. A score with a single source left
    is omitted.
    """
    found = {}
    for name, texts in _means(table).items():
        sources = {source for means in texts.values() for source in means}
        left: list[str] = []
        common = [means for means in texts.values() if sources <= means.keys()]
        while not common and len(sources) > 1:
            shared: Counter[str] = Counter(dict.fromkeys(sources, 0))
            for means in texts.values():
                mine = sources & means.keys()
                shared.update(mine if len(mine) > 1 else ())
            fewest = min(sorted(sources), key=lambda source: shared[source])
            sources.remove(fewest)
            left.append(fewest)
            common = [means for means in texts.values() if sources <= means.keys()]
        if len(sources) < 2:
            continue
        shares = dict.fromkeys(sorted(sources), 0.0)
        for means in common:
            most = max(means[source] for source in sources)
            winners = [source for source in sources if means[source] == most]
            for source in winners:
                shares[source] += 1 / len(winners) / len(common)
        found[name] = Best(shares, len(common), tuple(sorted(left)))
    return found


def attributes(table: pa.Table) -> dict[tuple[str, str], tuple[int, int]]:
    """The number of images that are right, and of all, by attribute and source."""
    right: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for row in unmarked(table).select(["source", "attributes"]).to_pylist():
        for name, good in row["attributes"] or ():
            total[name, row["source"]] += 1
            right[name, row["source"]] += good
    return {key: (right[key], total[key]) for key in sorted(total)}
