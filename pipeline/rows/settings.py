"""Settings of files of rows: what cannot be found by looking at them."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.settings import Settings


def _encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name)
    except LookupError:
        raise ValueError(
            f"{name}: no such encoding; for example latin-1, cp1252, gb18030"
        ) from None
    try:
        # Those that are no encoding of text, such as base64, fail here.
        "".encode(codec.name)
    except LookupError:
        raise ValueError(f"{name}: not an encoding of text") from None
    return name


class TableFormat(Settings):
    """How a CSV, JSON or parquet file of captions is written, where that is not usual."""

    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="of a CSV; null: the one of comma, tab, semicolon and bar that fits its header",
    )
    header: tuple[str, ...] | None = Field(
        None, description="names of the columns of a CSV that has no line of names"
    )
    quoting: bool = Field(True, description="of a CSV; false: a quotation mark is part of the text")
    encoding: Annotated[str, AfterValidator(_encoding)] | None = Field(
        None, description="of a text file; null: UTF-8, or what its byte order mark says"
    )
    lists: Literal["first", "all", "rows"] | None = Field(
        None,
        description="of several captions in one field: the first, all in one text, or a row each "
        "(prompts only); null: such a row is rejected",
    )


USUAL = TableFormat()
