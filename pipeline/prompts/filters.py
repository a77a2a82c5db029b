"""Scored texts in; why each one becomes no prompt, or that it may be one, out.

Scores are columns of the `texts` table, and thresholds are here alone: another one costs seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from pipeline.files import signature
from pipeline.prompts.language import LANGUAGES
from pipeline.prompts.personal import KINDS, Kind
from pipeline.settings import Count, Location, Settings, Share


class PromptFilters(Settings):
    """What a caption must be to become a prompt. Every refusal is a row of the rejects table."""

    min_words: Count = Field(3, description="fewest words of a prompt")
    max_words: Count = Field(77, description="most words of a prompt")
    max_tokens: Count | None = Field(
        None,
        description="CLIP tokens, start and end included; null: keep and mark `truncated` above 77",
    )
    min_ascii_letters: Share = Field(0.9, description="share of ASCII among the letters")
    max_noise: Share = Field(
        0.2,
        description="share of words that are URLs, hashtags, handles, signs or long numbers",
    )
    max_repeated: Share | None = Field(
        0.6, description="share of words that are there before; null: any"
    )
    person: str | None = Field(
        "person", description="replacement for <PERSON>; null: reject such captions"
    )
    blocklist: Location | None = Field(None, description="text file, one word or phrase per line")
    names: Location | None = Field(
        None, description="text file, one name a line: people who must not be named"
    )
    languages: tuple[str, ...] | None = Field(
        ("en",), description="languages that prompts may have, as ISO 639; null: any"
    )
    min_language: Share = Field(
        0.4, description="probability of another language from which that is believed"
    )
    personal: tuple[Kind, ...] = Field(
        KINDS, description="kinds of personal data that no prompt may have"
    )
    max_unsafe: Share | None = Field(
        0.5, description="highest score of each scorer of `prompts.safety`; null: any"
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """A language that nobody tells apart would keep nothing, or everything."""
        for code in codes or ():
            if code not in LANGUAGES:
                raise ValueError(f"no language {code}; there are {', '.join(sorted(LANGUAGES))}")
        return codes

    def recorded(self) -> dict[str, Any]:
        """As JSON values; filters that older records do not have only where they are on."""
        return without_off(self.model_dump(mode="json")) | self.lists()

    def lists(self) -> dict[str, Any]:
        """What stands for the content of the lists that are given, wherever they are."""
        given = {"blocklist": self.blocklist, "names": self.names}
        return {name: signature(path) for name, path in given.items() if path is not None}


OFF: dict[str, Any] = {
    "max_repeated": None, "names": None, "languages": None, "personal": [], "max_unsafe": None,
}  # fmt: skip
"""Filters that were not there before texts had scores, as if they were off."""


def without_off(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters as JSON values; those of `OFF` only where they are on."""
    found = {name: value for name, value in filters.items() if OFF.get(name, ...) != value}
    if "languages" not in found:
        found.pop("min_language", None)
    return found


Mask = Any
"""Arrow: bool, one value a row, or one for all; null counts as false."""


class Rule(NamedTuple):
    """One rule, with everything that is said about it.

    Attributes:
        reason: what its reasons begin with.
        setting: its threshold in `prompts.filters`; empty: the rule is always on.
        columns: of the `texts` table that it looks at.
        refuses: which rows it refuses with these filters.
        says: the reason of one row.
        swept: a threshold, and values of it to compare, from those that refuse the fewest on.
    """

    reason: str
    setting: str
    columns: tuple[str, ...]
    refuses: Callable[[pa.Table, PromptFilters], Mask]
    says: Callable[[Mapping[str, Any], PromptFilters], str]
    swept: tuple[str, tuple[float, ...]] = ("", ())

    def mask(self, rows: pa.Table, limits: PromptFilters) -> pa.Array:
        """The rows that it refuses with these filters: bool, no nulls; none where it is off."""
        refused = self.refuses(rows, limits)
        if isinstance(refused, pa.Scalar):
            return pa.repeat(refused, rows.num_rows)
        if isinstance(refused, pa.ChunkedArray):
            refused = refused.combine_chunks()
        return pc.fill_null(refused, False)


def _down(share: float) -> float:
    """Rounded down, so that a reason never says "0.9 < 0.9"."""
    return math.floor(100 * share + 1e-9) / 100


def _up(share: float) -> float:
    """Rounded up, so that a reason never says "0.2 > 0.2"."""
    return math.ceil(100 * share - 1e-9) / 100


def _other_language(rows: pa.Table, limits: PromptFilters) -> Mask:
    if limits.languages is None:
        return pa.scalar(False)
    mine = pc.is_in(rows["language"], value_set=pa.array(limits.languages, pa.string()))
    sure = pc.greater_equal(rows["language_probability"], limits.min_language)
    return pc.and_(pc.invert(mine), sure)


def _personal(rows: pa.Table, limits: PromptFilters) -> Mask:
    column = rows["personal"].combine_chunks()
    wanted = pc.is_in(column.flatten(), value_set=pa.array(limits.personal, pa.string()))
    rows_of = pc.list_parent_indices(column).filter(wanted)
    return _at(rows_of, rows.num_rows)


def _unsafe(rows: pa.Table, limits: PromptFilters) -> Mask:
    if limits.max_unsafe is None:
        return pa.scalar(False)
    column = rows["unsafe"].combine_chunks()
    entries = column.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())])))
    above = pc.greater(pc.struct_field(entries.flatten(), "value"), limits.max_unsafe)
    return _at(pc.list_parent_indices(entries).filter(above), rows.num_rows)


def _at(places: pa.Array, count: int) -> pa.Array:
    """A mask that is true at these places."""
    return pc.is_in(pa.array(range(count), pa.int64()), value_set=pc.cast(places, pa.int64()))


def _letters(row: Mapping[str, Any], limits: PromptFilters) -> str:
    if row["ascii_letters"] is None:
        return "not English letters: none"
    return f"not English letters: {_down(row['ascii_letters'])} < {limits.min_ascii_letters}"


def _highest(row: Mapping[str, Any], limits: PromptFilters) -> str:
    name, score = max(row["unsafe"], key=lambda entry: entry[1])
    return f"unsafe: {name} {_up(score)} > {limits.max_unsafe}: {row['unsafe_for']}"


RULES = (
    Rule("", "", ("problem",),
         lambda rows, limits: pc.is_valid(rows["problem"]),
         lambda row, limits: str(row["problem"])),
    Rule("too few words", "min_words", ("words",),
         lambda rows, limits: pc.less(rows["words"], limits.min_words),
         lambda row, limits: f"too few words: {row['words']} < {limits.min_words}",
         ("min_words", (2, 3, 4, 5, 6, 8))),
    Rule("too many words", "max_words", ("words",),
         lambda rows, limits: pc.greater(rows["words"], limits.max_words),
         lambda row, limits: f"too many words: {row['words']} > {limits.max_words}",
         ("max_words", (100, 77, 60, 40, 30, 20))),
    Rule("not English letters", "min_ascii_letters", ("ascii_letters",),
         lambda rows, limits: pc.or_(
             pc.is_null(rows["ascii_letters"]),
             pc.fill_null(pc.less(rows["ascii_letters"], limits.min_ascii_letters), False)),
         _letters, ("min_ascii_letters", (0.5, 0.8, 0.9, 0.95, 1.0))),
    Rule("noise", "max_noise", ("noise",),
         lambda rows, limits: pc.greater(rows["noise"], limits.max_noise),
         lambda row, limits: f"noise: {_up(row['noise'])} > {limits.max_noise}",
         ("max_noise", (0.5, 0.3, 0.2, 0.1, 0.0))),
    Rule("repeats", "max_repeated", ("repeated",),
         lambda rows, limits: pa.scalar(False) if limits.max_repeated is None
         else pc.greater(rows["repeated"], limits.max_repeated),
         lambda row, limits: f"repeats: {_up(row['repeated'])} > {limits.max_repeated}",
         ("max_repeated", (0.7, 0.6, 0.5, 0.4, 0.3))),
    Rule("blocklist", "blocklist", ("blocked",),
         lambda rows, limits: pc.is_valid(rows["blocked"]),
         lambda row, limits: f"blocklist: {row['blocked']}"),
    Rule("name", "names", ("named",),
         lambda rows, limits: pc.is_valid(rows["named"]),
         lambda row, limits: f"name: {row['named']}"),
    Rule("language", "languages", ("language", "language_probability"),
         _other_language,
         lambda row, limits: f"language: {row['language']} ({_down(row['language_probability'])})",
         ("min_language", (0.9, 0.7, 0.5, 0.4, 0.3, 0.2))),
    Rule("personal", "personal", ("personal",),
         _personal,
         lambda row, limits: "personal: " + ", ".join(
             kind for kind in row["personal"] if kind in limits.personal)),
    Rule("unsafe", "max_unsafe", ("unsafe", "unsafe_for"), _unsafe, _highest,
         ("max_unsafe", (0.95, 0.9, 0.8, 0.5, 0.35, 0.1))),
)  # fmt: skip
"""All rules; a text has the first reason that applies."""
COLUMNS = tuple(dict.fromkeys(column for rule in RULES for column in rule.columns))


def reasons(rows: pa.Table, limits: PromptFilters) -> pa.Array:
    """Why texts become no prompts: string, one a row; null: it may be one.

    Args:
        rows: of the `texts` table, with `COLUMNS`.
    """
    count = rows.num_rows
    found: list[str | None] = [None] * count
    left = pa.array([True] * count, pa.bool_())
    for rule in RULES:
        refused = pc.and_(left, rule.mask(rows, limits))
        places = pc.indices_nonzero(refused)
        if not len(places):
            continue
        chosen = rows.select(rule.columns).take(places).to_pylist()
        for place, row in zip(places.to_pylist(), chosen, strict=True):
            found[place] = rule.says(row, limits)
        left = pc.and_not(left, refused)
    return pa.array(found, pa.string())
